"""`dfer errors`: the most confident wrong answers of a run, with pictures."""

import argparse

from dfer.cli import add_command, positive

ERRORS = """dfer errors runs/dfew/dfer_clip
dfer errors runs/dfew/dfer_clip/fold_1 --most 100 --out fold_1_errors"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    sub = add_command(commands, "errors", "a page of the most confident wrong answers of a run", ERRORS, _errors)
    sub.add_argument("run", metavar="RUN", help="run or cross-validation folder (also s3://...)")
    sub.add_argument("--most", type=positive, default=48, help="number of clips (default 48)")
    sub.add_argument("--shards", metavar="FOLDER", help="where the shards are now, if they moved (also s3://...)")
    sub.add_argument("--out", metavar="FOLDER", help="write errors.html here (also s3://...); default: RUN/report")


def _errors(args: argparse.Namespace) -> None:
    from dfer.errors import DeniedError
    from dfer.evaluation.results import ELSEWHERE
    from dfer.jobs.errors import worst
    from dfer.report.errors import error_lines, error_page
    from dfer.storage import Folder
    from dfer.text_files import write_text

    home = Folder(args.run, what="the run folder")
    out = Folder(args.out, what="--out") if args.out else home / "report"
    found = worst(home, most=args.most, shards=args.shards)
    print(error_lines(found))
    try:
        write_text(out, "errors.html", error_page(found))
    except DeniedError as error:
        raise DeniedError(f"{error} {ELSEWHERE.format(command=f'dfer errors {home}')}") from error
    print(f"\nPage: {out.where('errors.html')}")
