"""Write the report of a run folder as Markdown, JSON and one self-contained HTML page, and a table for the terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dfer.errors import DeniedError
from dfer.evaluation.results import ELSEWHERE
from dfer.report.crossval import Report, summarise
from dfer.report.tables import markdown, plain, text_table
from dfer.storage import Folder
from dfer.text_files import write_text

__all__ = ["Report", "WrittenReport", "summarise", "text_table", "write_report"]


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """URLs of one report's files. text: its table and where its page is, for the terminal."""

    markdown: str
    json: str
    html: str
    text: str


def write_report(run_folder: Folder, kind: type, *, out: Folder | None = None) -> WrittenReport:
    """Write report.md, report.json and index.html for a run or cross-validation folder, by default into its report/.

    kind: dataclass of its configurations.

    Raises:
        CheckpointError: there is no result yet, a file is damaged, or the folds are not comparable.
        StorageError: the report cannot be written; a DeniedError says how to write it elsewhere.
    """
    from dfer.report.page import page  # not at the top: every rank imports this module, and matplotlib takes 0.5 s

    folder = out or run_folder / "report"
    with _telling_where_else(run_folder):
        folder.check_writable()
    report = summarise(run_folder, kind)
    written = texts(report) | {"index.html": page(report)}
    with _telling_where_else(run_folder):
        for name, text in written.items():
            write_text(folder, name, text)
    local = (folder / "index.html").local
    html = folder.where("index.html")
    return WrittenReport(
        markdown=folder.where("report.md"),
        json=folder.where("report.json"),
        html=html,
        text=f"{text_table(report)}\n\nReport: {local.resolve() if local else html}",
    )


def texts(report: Report) -> dict[str, str]:
    """Make the report's files without plots, by name."""
    return {
        "report.md": markdown(report),
        "report.json": json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n",
    }


@contextmanager
def _telling_where_else(run_folder: Folder) -> Iterator[None]:
    try:
        yield
    except DeniedError as error:
        raise DeniedError(f"{error} {ELSEWHERE.format(command=f'dfer report {run_folder}')}") from error
