"""Reports of a run folder: Markdown, JSON, one self-contained HTML page, and a table for the terminal."""

import json
from dataclasses import dataclass

from dfer.evaluation.summary import Report, summarise
from dfer.evaluation.tables import markdown, plain, text_table
from dfer.storage import Folder

__all__ = ["Report", "ReportPaths", "summarise", "text_table", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """URLs of one report's files."""

    markdown: str
    json: str
    html: str


def write_report(run_folder: Folder, *, out: Folder | None = None) -> ReportPaths:
    """Write report.md, report.json and index.html for a run or cross-validation folder, by default into its report/.

    Raises:
        CheckpointError: no result yet, damaged files, or folds that must not share a table.
        StorageError: the report cannot be written.
    """
    from dfer.evaluation.page import page  # here: every rank imports this module, and matplotlib takes half a second

    report = summarise(run_folder)
    folder = out or run_folder / "report"
    paths = ReportPaths(
        markdown=folder.where("report.md"), json=folder.where("report.json"), html=folder.where("index.html")
    )
    folder.write("report.md", markdown(report).encode())
    folder.write("report.json", (json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n").encode())
    folder.write("index.html", page(report).encode())
    return paths
