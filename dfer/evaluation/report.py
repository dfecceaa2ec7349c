"""Reports of a run folder: Markdown, JSON, one self-contained HTML page, and a table for the terminal."""

import json
from dataclasses import dataclass
from pathlib import Path

from dfer.evaluation.page import page
from dfer.evaluation.results import publish
from dfer.evaluation.summary import Report, summarise
from dfer.evaluation.tables import markdown, plain, text_table

__all__ = ["Report", "ReportPaths", "summarise", "text_table", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Files of one report."""

    markdown: Path
    json: Path
    html: Path


def write_report(run_folder: Path, *, out: Path | None = None) -> ReportPaths:
    """Write report.md, report.json and index.html for a run or cross-validation folder, by default into its report/.

    Raises:
        CheckpointError: no result yet, damaged files, or folds that must not share a table.
        StorageError: the report cannot be written.
    """
    report = summarise(run_folder)
    folder = out or run_folder / "report"
    return ReportPaths(
        markdown=publish(folder / "report.md", lambda: markdown(report)),
        json=publish(folder / "report.json", lambda: json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n"),
        html=publish(folder / "index.html", lambda: page(report)),
    )
