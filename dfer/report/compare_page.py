"""A comparison of runs as one self-contained HTML page; the page loads no other files and runs no script."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from dfer.report.compare import Comparison, Table
from dfer.report.compare_plots import pictures
from dfer.report.compare_tables import (
    LEGEND,
    PAIR_HEADS,
    PAIRED,
    TITLE,
    Line,
    heads,
    lines,
    matrix_rows,
    pair_cells,
)
from dfer.report.plots import Picture
from dfer.report.tables import short_names

STYLE_END = "</style>"


def compare_page(comparison: Comparison) -> str:
    """Make the page. Everything from run folders is escaped."""
    body = [f"<header><h1>{TITLE}</h1>"]
    if any(table.entries for table in comparison.tables):
        body.append(f'<p class="soft">{escape(LEGEND)}</p>')
    body.append("</header>")
    body += [_section(table) for table in comparison.tables]
    if comparison.matrix:
        head, *rows = matrix_rows(comparison)
        say = "UAR / WAR (%); every row was trained on the data in brackets."
        body.append(
            f'<section><h2>Trained on x tested on</h2><p class="soft">{say}</p>{plain_table(head, rows)}</section>'
        )
    return page_of(TITLE, "".join(body))


def page_of(title: str, body: str) -> str:
    """Make a page in the style of the reports. title: not escaped yet; body: HTML."""
    template = files("dfer.report").joinpath("report.html").read_text(encoding="utf-8")
    head = template[: template.index(STYLE_END) + len(STYLE_END)]
    top = Template(head).substitute(title=escape(title))
    return f"{top}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"


def _section(table: Table) -> str:
    classes = short_names(table.classes)
    pairs = [f"{short}: {name}" for short, name in zip(classes, table.classes) if short != name]
    names = f'<p class="soft">Recalls per class: {escape(", ".join(pairs))}.</p>' if pairs else ""
    names += f'<p class="soft">{escape(table.alike)}</p>' if table.alike else ""
    rows = "".join(_row(line) for line in lines(table))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in (*table.unlike, *table.notes))
    columns = [f"<div>{''.join(map(figure_of, column))}</div>" for column in pictures(table)]
    figures = "".join(columns)
    tests = ""
    if table.pairs:
        cells = plain_table(PAIR_HEADS, [pair_cells(each) for each in table.pairs])
        tests = f'<h2>Differences on {escape(table.data)}</h2>{cells}<p class="soft">{escape(PAIRED)}</p>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *heads(classes)))
    return (
        f"<section><h2>{escape(table.data)} (%)</h2>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'{names}{notes}<div class="pair">{figures}</div>{tests}</section>'
    )


KINDS = {
    "run": "mean",
    "last": "variant",
    "other": "variant",
    "ranks": "variant",
    "theirs": "theirs",
    "pending": "absent",
}
"""The page's styles of rows, which are those of a report."""


def _row(line: Line) -> str:
    cells = "".join(map(_cell, line.cells))
    detail = f'<small class="soft">{escape(line.detail)}</small>' if line.detail else ""
    return f'<tr class="{KINDS[line.kind]}"><th scope="row">{escape(line.label)}{detail}</th>{cells}</tr>'


def _cell(text: str) -> str:
    """Make a cell; an interval, and the seeds, stand small below what is before them."""
    for mark, kept in ((" [", "["), (", seed", "seed")):
        value, found, rest = text.partition(mark)
        if found:
            return f'<td>{escape(value)}<br><small class="soft">{kept}{escape(rest)}</small></td>'
    return f"<td>{escape(text)}</td>"


def figure_of(picture: Picture) -> str:
    """Make a picture with its caption below."""
    return f"<figure>{picture.svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, kinds: Sequence[str] = (), words: bool = False
) -> str:
    """Make a table of text cells; the first of each row is its head. kinds: style of each row. words: the cells are
    long texts such as paths, which are broken to fit the page."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    marks = [f' class="{kind}"' for kind in kinds] or [""] * len(rows)
    body = "".join(
        f'<tr{mark}><th scope="row">{escape(first)}</th>{"".join(map(_cell, rest))}</tr>'
        for mark, (first, *rest) in zip(marks, rows, strict=True)
    )
    style = ' class="words"' if words else ""
    return f'<div class="scroll"><table{style}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
