"""The table of the zero-shot suite as one self-contained HTML page; writes all its forms. The page loads no other files
and runs no script."""

import json
from html import escape

from dfer.report import zeroshot_tables as tables
from dfer.report.zeroshot import SetTable, Suite
from dfer.storage import Folder
from dfer.text_files import write_text


def write_suite(suite: Suite, folder: Folder) -> str:
    """Write report.md, report.json and index.html; returns the table as text, and where the page is.

    Raises:
        StorageError: they cannot be written.
    """
    folder.check_writable()
    texts = {
        "report.md": tables.markdown(suite),
        "report.json": json.dumps(tables.plain(suite), indent=1, ensure_ascii=False) + "\n",
        "index.html": page(suite),
    }
    for name, text in texts.items():
        write_text(folder, name, text)
    local = (folder / "index.html").local
    return f"{tables.text(suite)}\n\nReport: {local.resolve() if local else folder.where('index.html')}"


def page(suite: Suite) -> str:
    """Make the page. Everything from the results is escaped."""
    from dfer.report.compare_page import page_of, plain_table  # not at the top: matplotlib takes 0.5 s

    head, *body = tables.overview(suite)
    missing = "".join(f'<p class="note">{escape(line)}</p>' for line in tables.missing(suite))
    remark = f'<p class="note">{escape(suite.remark)}</p>' if suite.remark else ""
    parts = [
        f'<header><h1>{tables.TITLE}</h1>{remark}<p class="soft">{escape(tables.LEGEND)}</p></header>',
        f"<section><h2>All data sets: UAR / WAR (%)</h2>{plain_table(head, body)}{missing}</section>",
        *map(_section, suite.sets),
        f"<section><h2>Models</h2>{plain_table(tables.MODEL_HEADS, tables.model_facts(suite), words=True)}</section>",
    ]
    return page_of(tables.TITLE, "".join(parts))


def _section(table: SetTable) -> str:
    from dfer.report.compare_page import figure_of, plain_table
    from dfer.report.compare_plots import score_picture

    lines = (*tables.differences(table), tables.facts(table), *tables.sources(table))
    said = "".join(f'<p class="soft">{escape(text)}</p>' for text in lines)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    picture = figure_of(score_picture(table.result.data, table.lines))
    listed = plain_table(tables.HEADS, tables.rows(table), kinds=tables.styles(table))
    return (
        f"<section><h2>{escape(table.result.data)} (%)</h2>{listed}{said}{notes}"
        f'<div class="stack">{picture}</div>{_matrices(table)}</section>'
    )


def _matrices(table: SetTable) -> str:
    """Draw the confusion matrix of every model and kind, over all folds; folded up by model."""
    from dfer.report.compare_page import figure_of
    from dfer.report.plots import confusion_picture

    found, classes = [], table.result.classes
    large = " large" if len(classes) > 8 else ""
    for model in dict.fromkeys(line.model for line in table.lines):
        drawn = [
            confusion_picture(line.pooled, classes=classes, title=f"{table.result.name}: {line.label}", small=True)
            for line in table.lines
            if line.model == model and line.pooled is not None
        ]
        figures = "".join(map(figure_of, drawn))
        found.append(
            f"<details><summary>Confusion matrices of {escape(model)}, sums over folds</summary>"
            f'<div class="many{large}">{figures}</div></details>'
        )
    return "".join(found)
