"""The command line `dfer`: train, crossval, evaluate, zeroshot, predict, import, export, report, compare, errors,
bench."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import NoReturn

from dfer import cli
from dfer.commands import bench, compare, errors, jobs, models, predict, report, run
from dfer.exit import ProcessExit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a DferError becomes one line on stderr and its exit code."""
    with redirect_stderr(sys.stderr if _prints_usage_errors() else StringIO()):
        args = parse(argv)
    cli.hide_notices()
    said = "the same command continues from the last checkpoint"
    return cli.exit_code(lambda: args.command(args), interrupted=said, prints_usage_errors=_prints_usage_errors)


def _prints_usage_errors() -> bool:
    """Whether this process prints usage errors: under a launcher only the first one of each node does, since a file may
    be missing on one node. LOCAL_RANK alone decides nothing: it may be left over from another job."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("DFER_LAUNCHER_PID") == str(os.getppid())
    return not launched or os.environ.get("LOCAL_RANK", "0") == "0"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; `command` of the result is the function that runs it."""
    return cli.parse(parser(), argv)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line, with an example for every command."""
    top = argparse.ArgumentParser(prog="dfer", description="Recognise facial expressions in video.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for each in (run, jobs, predict, models, report, compare, errors, bench):
        each.add(commands)
    return top


def run_and_leave() -> NoReturn:
    """Entry point of the command `dfer`: run `main`, then exit without the exit handlers of C++ libraries."""
    ProcessExit().run_and_exit(main)


if __name__ == "__main__":
    run_and_leave()
