"""The command line: `dfer-launch local CONFIG`. SLURM and Ray take the same arguments once they are here."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dfer.errors import DferError
from launch import local

EXAMPLES = """examples:
  dfer-launch local configs/dfew/dfer_clip.yaml --processes 4
  dfer-launch local configs/dfew/dfer_clip.yaml --parallel 5 --processes 1
  dfer-launch local configs/demo.yaml --verb train --processes 2 engine.zero=2 --dry-run
  dfer-launch local runs/dfew/dfer_clip/fold_1 --verb evaluate --processes 2"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="dfer-launch", description="Start a job of several processes.")
    places = top.add_subparsers(required=True, metavar="PLACE")
    sub = places.add_parser(
        "local", help="on this machine", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub.add_argument("config", type=_source, help="YAML file, see configs/; a run folder for --verb evaluate")
    sub.add_argument("--processes", type=int, default=1, metavar="N", help="ranks; one a GPU")
    sub.add_argument("--parallel", type=int, default=1, metavar="K", help="folds at a time, each in N processes")
    sub.add_argument("--folds", type=_numbers, default=[], metavar="1,2", help="only these folds")
    sub.add_argument("--verb", choices=["train", "crossval", "evaluate"], default="crossval", help="what dfer does")
    sub.add_argument("--dry-run", action="store_true", help="print the command of a process instead of running it")
    return top


def _source(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2, got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Start the job; its exit code is ours. Everything of the form a.b=c is passed on to `dfer`."""
    top = parser()
    args, overrides = top.parse_known_args(argv)
    stray = [text for text in overrides if text.startswith("-") or "=" not in text]
    if stray:
        top.error(f"unrecognized arguments: {' '.join(stray)}")
    try:
        job = local.Local(
            verb=args.verb, source=str(args.config), overrides=overrides, processes=args.processes,
            parallel=args.parallel, folds=args.folds,
        )  # fmt: skip
        if args.dry_run:
            print(shlex.join(local.command(job)))
            return 0
        return local.run(job)
    except DferError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
