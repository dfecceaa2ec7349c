"""A comparison of runs as text for the terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfer.evaluation.results import Published
from dfer.evaluation.scores import percent
from dfer.report.compare import Cell, Comparison, Entry, Pair, Pending, Table
from dfer.report.tables import RANKS_TEXT, limits, md_table, md_text, printed, short_names

LineKind = Literal["run", "last", "other", "ranks", "theirs", "pending"]
TITLE = "Comparison of runs"
LEGEND = (
    "UAR and WAR are means over folds and seeds, with 95 % bootstrap intervals over the test clips; ECE is the "
    "expected calibration error. All in per cent."
)
PAIRED = (
    "Differences are second minus first, in points, with paired bootstrap intervals; p is McNemar's exact test on WAR, "
    "of the first seed of each run; `only first`, `only second`: clips that one of the two alone classified rightly. "
    "It is not corrected for several tests."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table. detail: the source and note of published numbers, or what the line is. cells: recalls, UAR,
    WAR, ECE, folds and seeds, selection."""

    kind: LineKind
    label: str
    detail: str = ""
    cells: tuple[str, ...]


def heads(classes: Sequence[str]) -> list[str]:
    """Return the heads of the columns behind the label."""
    return [*classes, "UAR", "WAR", "ECE", "folds, seeds", "selection"]


def lines(table: Table) -> list[Line]:
    """Make the lines of a table: each run, what stands beside it, its published numbers; then what is pending."""
    blank = ("–",) * len(table.classes)
    found = []
    for number, entry in enumerate(table.entries):
        found += [_line(entry), *_ranks(entry)]
        following = table.entries[number + 1].run if number + 1 < len(table.entries) else None
        if following != entry.run:
            own = next((one for one in table.entries if one.run == entry.run and one.published), None)
            found += [_theirs(own.run, own.published, table.classes)] if own and own.published else []
    for row in table.pending:
        found.append(_pending(row, blank))
        found += [_theirs(row.label, row.published, table.classes)] if row.published else []
    return found


def _line(entry: Entry) -> Line:
    known = entry.intervals
    scores = [(entry.mean.uar, known.uar if known else None), (entry.mean.war, known.war if known else None)]
    ece = percent(entry.calibration.ece) if entry.calibration else "–"
    seeds = f"{entry.coverage.partition(',')[0]}, seed {' '.join(map(str, entry.seeds))}"
    return Line(
        kind=entry.kind,
        label=entry.label,
        cells=(
            *(percent(share) for share in entry.mean.recall),
            *(f"{percent(share)} {limits(interval)}" if interval else percent(share) for share, interval in scores),
            ece,
            seeds,
            entry.first.selection,
        ),
    )


def _ranks(entry: Entry) -> list[Line]:
    """Make the line of the means over ranks, which some papers print, if the run has them."""
    if entry.ranks is None:
        return []
    number, mean = entry.ranks
    cells = (*map(percent, (*mean.recall, mean.uar, mean.war)), "–", "–", entry.first.selection)
    return [Line(kind="ranks", label=f"{entry.label}, rank mean of {number}", detail=RANKS_TEXT, cells=cells)]


def _theirs(name: str, published: Published, classes: Sequence[str]) -> Line:
    scores = (*published.recalls(classes), published.uar, published.war)
    cells = (*map(printed, scores), "–", "–", published.selection)
    label = ", ".join(filter(None, (name, "published", published.warning)))
    detail = "; ".join(filter(None, (published.source, published.note)))
    return Line(kind="theirs", label=label, detail=detail, cells=cells)


def _pending(row: Pending, blank: tuple[str, ...]) -> Line:
    label = ", ".join(filter(None, (row.label, row.warning)))
    return Line(kind="pending", label=label, cells=(*blank, "pending", "pending", "–", "–", "–"))


def text(comparison: Comparison) -> str:
    """Format a comparison for the terminal: aligned columns, classes as their shortest distinct prefixes."""
    blocks = []
    for table in comparison.tables:
        rows = [["", *heads(short_names(table.classes))], *([line.label, *line.cells] for line in lines(table))]
        said = [*_details(table), *([table.alike] if table.alike else []), *table.unlike, *table.notes]
        blocks.append("\n".join([f"{table.data}, per cent", *aligned(rows), *said]))
        if table.pairs:
            blocks.append("\n".join(["Differences in points", *aligned([PAIR_HEADS, *map(pair_cells, table.pairs)])]))
    if comparison.matrix:
        blocks.append("\n".join(["Trained on (rows) x tested on: UAR / WAR", *aligned(matrix_rows(comparison))]))
    if any(table.entries for table in comparison.tables):
        blocks.append(LEGEND + (f" {PAIRED}" if any(table.pairs for table in comparison.tables) else ""))
    return "\n\n".join(blocks)


def _details(table: Table) -> list[str]:
    return [f"{line.label}: {line.detail}" for line in lines(table) if line.detail]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of rows, the first to the left, and rule off the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    found = ["  ".join([c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]) for row in rows]
    return [found[0].rstrip(), "-" * len(found[0]), *(line.rstrip() for line in found[1:])]


PAIR_HEADS = ["second minus first", "UAR", "WAR", "only first", "only second", "clips", "p"]


def pair_cells(pair: Pair) -> list[str]:
    """Return the cells of a test between two rows."""
    scores = [
        f"{100 * each.value:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}]"
        for each in (pair.difference.uar, pair.difference.war)
    ]
    p = f"{pair.test.p:.3f}" if pair.test.p >= 0.001 else f"{pair.test.p:.1e}" if pair.test.p > 1e-99 else "< 1e-99"
    counts = (pair.test.first_only, pair.test.second_only, pair.clips)
    return [f"{pair.second} - {pair.first}", *scores, *(f"{count:,}" for count in counts), p]


def matrix_rows(comparison: Comparison) -> list[list[str]]:
    """Return head and rows of the matrix trained on x tested on."""
    tested = list(dict.fromkeys(data for row in comparison.matrix.values() for data in row))
    found = [["", *tested]]
    for (run, trained), row in comparison.matrix.items():
        found.append([f"{run} ({trained})", *(_crossed(row.get(data)) for data in tested)])
    return found


def _crossed(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return ", ".join(filter(None, (f"{percent(cell.uar)} / {percent(cell.war)}", cell.warning)))


def markdown(comparison: Comparison) -> str:
    """Format a comparison as Markdown."""
    parts = [f"# {TITLE}"]
    if any(table.entries for table in comparison.tables):
        parts.append(LEGEND)
    for table in comparison.tables:
        parts.append(f"## {md_text(table.data)}")
        rows = [[md_text(cell) for cell in (line.label, *line.cells)] for line in lines(table)]
        parts.append(md_table(["", *heads(table.classes)], rows))
        parts.append(
            "\n".join(
                f"- {md_text(each)}" for each in (*_details(table), table.alike, *table.unlike, *table.notes) if each
            )
        )
        if table.pairs:
            pairs = [[md_text(cell) for cell in pair_cells(each)] for each in table.pairs]
            parts += [f"### Differences on {md_text(table.data)}", PAIRED, md_table(PAIR_HEADS, pairs)]
    if comparison.matrix:
        head, *rows = matrix_rows(comparison)
        cells = [[md_text(cell) for cell in row] for row in rows]
        parts += ["## Trained on x tested on", "UAR / WAR; rows say the training data.", md_table(head, cells)]
    return "\n\n".join(part for part in parts if part) + "\n"
