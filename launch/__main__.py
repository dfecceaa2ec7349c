"""The command line: `dfer-launch local CONFIG`. SLURM and Ray take the same arguments once they are here."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dfer.errors import DferError
from launch import local

EXAMPLES = """examples:
  dfer-launch local configs/dfew/dfer_clip.yaml --processes 4
  dfer-launch local configs/demo.yaml --verb train --processes 2 engine.zero=2 --dry-run"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="dfer-launch", description="Start a job of several processes.")
    places = top.add_subparsers(required=True, metavar="PLACE")
    sub = places.add_parser(
        "local", help="on this machine", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub.add_argument("config", type=Path, help="YAML file, see configs/")
    sub.add_argument("--processes", type=int, default=1, metavar="N", help="ranks; one a GPU")
    sub.add_argument("--verb", choices=["train", "crossval"], default="crossval", help="what dfer does")
    sub.add_argument("--dry-run", action="store_true", help="print the command instead of running it")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Start the job; its exit code is ours. Everything of the form a.b=c is passed on to `dfer`."""
    top = parser()
    args, overrides = top.parse_known_args(argv)
    stray = [text for text in overrides if text.startswith("-") or "=" not in text]
    if stray:
        top.error(f"unrecognized arguments: {' '.join(stray)}")
    try:
        if args.dry_run:
            print(" ".join(local.command(args.verb, args.config, overrides, processes=args.processes)))
            return 0
        return local.run(args.verb, args.config, overrides, processes=args.processes)
    except DferError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
