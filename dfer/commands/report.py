"""`dfer report`: tables and pages of a run or cross-validation folder."""

import argparse
from typing import TYPE_CHECKING

from dfer.cli import add_command

if TYPE_CHECKING:
    from dfer.storage import Folder

EXAMPLES = """dfer report runs/dfew/dfer_clip
dfer report /data/alice/dfew --out alice_dfew"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    text = "write Markdown, JSON and one HTML page from a run folder"
    sub = add_command(commands, "report", text, EXAMPLES, _report)
    sub.add_argument("run", help="run folder (also s3://...)")
    sub.add_argument("--out", metavar="FOLDER", help="write them here (also s3://...); default: RUN/report")


def _report(args: argparse.Namespace) -> None:
    from dfer.jobs.config import RunConfig
    from dfer.report.write import write_report
    from dfer.storage import Folder

    out = Folder(args.out, what="--out") if args.out else None
    write_report(Folder(args.run, what="the run folder"), RunConfig, out=out)
    show_report(args.run, out)


def show_report(run_folder: str, out: "Folder | None" = None) -> None:
    """Print the table of a run folder and where its page is."""
    from dfer.jobs.config import RunConfig
    from dfer.report.crossval import summarise
    from dfer.report.tables import text_table
    from dfer.storage import Folder

    home = Folder(run_folder)
    print(text_table(summarise(home, RunConfig)))
    page = (out or home / "report") / "index.html"
    print(f"\nReport: {page.local.resolve() if page.local else page}")
