"""`dfer report`: tables and pages of a run or cross-validation folder."""

import argparse

from dfer.cli import add_command

EXAMPLES = """dfer report runs/dfew/dfer_clip
dfer report /data/alice/dfew --out alice_dfew"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    text = "write Markdown, JSON and one HTML page from a run folder"
    sub = add_command(commands, "report", text, EXAMPLES, _report)
    sub.add_argument("run", help="run folder (also s3://...)")
    sub.add_argument("--out", metavar="FOLDER", help="write them here (also s3://...); default: RUN/report")


def _report(args: argparse.Namespace) -> None:
    from dfer.jobs.config import RunConfig
    from dfer.report.write import write_report
    from dfer.storage import Folder

    home, out = Folder(args.run, what="the run folder"), Folder(args.out, what="--out") if args.out else None
    print(write_report(home, RunConfig, out=out).text)
