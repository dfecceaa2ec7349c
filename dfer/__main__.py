"""The command line: `dfer train | crossval | evaluate | predict | report | bench`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import NoReturn

from dfer import cli
from dfer.commands import bench, predict, report, run
from dfer.exit import Leaving


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a DferError becomes one line on stderr and its exit code."""
    with redirect_stderr(sys.stderr if _speaks() else StringIO()):
        args = parse(argv)
    cli.hide_notices()
    said = "the same command continues from the last checkpoint"
    return cli.exit_code(lambda: args.command(args), interrupted=said, speaks=_speaks)


def _speaks() -> bool:
    """Whether this process tells of wrong usage: under a launcher the first one of each node, since a file may be
    missing on one. LOCAL_RANK alone may be left over from another job."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("DFER_LAUNCHER_PID") == str(os.getppid())
    return not launched or os.environ.get("LOCAL_RANK", "0") == "0"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of a command line, with the function that runs it as `command`."""
    return cli.parse(parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The whole command line, with an example for every command."""
    top = argparse.ArgumentParser(prog="dfer", description="Recognise facial expressions in video.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for each in (run, predict, report, bench):
        each.add(commands)
    return top


def run_and_leave() -> NoReturn:
    """The command `dfer`: `main`, after which nothing of what libraries do at a process's end holds it up."""
    Leaving().after(main)


if __name__ == "__main__":
    run_and_leave()
