"""The result table of a report, for the terminal, Markdown and JSON.

It has the form of tables in the field (DK-CLIP, Li et al., ACM MM 2024, DFEW per fold): a row per fold with the recall
of every class, UAR and WAR, then mean and standard deviation. Published numbers are in a separate row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dfer.choices import SELECTION_TEXT
from dfer.config import to_plain
from dfer.evaluation.scores import Scores, percent
from dfer.evaluation.statistics import RESAMPLES, Interval
from dfer.report.beside import beside, means, rank_means
from dfer.report.crossval import Report, Row, label

RowKind = Literal["fold", "absent", "seed", "mean", "std", "pooled", "variant", "ranks", "theirs"]
SCORES: tuple[RowKind, ...] = ("fold", "seed", "mean", "pooled", "variant", "ranks")
"""Rows with scores of ours."""
STD_TEXT = "sample standard deviation (n - 1) over folds"
SEED_STD_TEXT = "sample standard deviation (n - 1) over seeds, of their means over folds"
VARIANT_TEXT = "another answer of the same weights for the same clips"
RANKS_TEXT = "UAR and recalls averaged over ranks that share the test clips; WAR over all clips"
INTERVAL_TEXT = "95 % bootstrap interval over the test clips"
STRATA_TEXT = f"{RESAMPLES:,} resamples within each class of each fold"
POOLED_TEXT = "from the sum of the folds' confusion matrices"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of the result table. cells: class recalls, UAR, WAR in percent. detail: describes what it summarises."""

    kind: RowKind
    label: str
    detail: str = ""
    cells: tuple[str, ...]


def short_names(classes: Sequence[str]) -> list[str]:
    """Return the shortest prefixes, of three letters or more, that distinguish the classes."""

    def short(name: str) -> str:
        others = [other for other in classes if other != name]
        sizes = (n for n in range(3, len(name)) if not any(other.startswith(name[:n]) for other in others))
        return name[: next(sizes, len(name))]

    return [short(name) for name in classes]


def table_rows(report: Report) -> list[TableRow]:
    """Make the lines of the result table: folds, means of seeds, mean, standard deviations, pooled counts, variants,
    published numbers. Scores of ours carry the report's warning."""
    rows = _rows(report)
    if not report.warning:
        return rows
    return [replace(row, label=f"{row.label}, {report.warning}") if row.kind in SCORES else row for row in rows]


def _rows(report: Report) -> list[TableRow]:
    several, nothing = report.num_folds > 1, Row(recall=(None,) * len(report.first.classes), uar=None, war=None)
    rows = [part_row(report, name) for name in _part_names(report)]
    if several:
        rows += [
            TableRow(kind="seed", label=f"seed {seed}", detail="mean over its folds", cells=_cells(mean))
            for seed, mean in report.means.by_seed.items()
        ]
    if several or report.repeated:
        rows.append(TableRow(kind="mean", label="mean", detail=ours(report), cells=_cells(report.mean)))
    if several:
        detail = f"{STD_TEXT}, of their means over seeds" if report.repeated else STD_TEXT
        rows.append(TableRow(kind="std", label="std", detail=detail, cells=_cells(report.std or nothing)))
    if report.repeated:
        cells = _cells(report.means.seed_std or nothing)
        rows.append(TableRow(kind="std", label="std of seeds", detail=SEED_STD_TEXT, cells=cells))
    if several or report.repeated:
        detail = f"{pooled_words(report)[0]}: {POOLED_TEXT}"
        rows.append(TableRow(kind="pooled", label="pooled", detail=detail, cells=_cells(report.pooled)))
    rows += _variant_rows(report) + _rank_rows(report)
    rows += _beside_rows(report)
    if theirs := report.published:
        cells = (*map(printed, theirs.recalls(report.first.classes)), *theirs.text.split(" / "))
        name = ", ".join(filter(None, ("published", theirs.warning)))
        rows.append(TableRow(kind="theirs", label=name, detail=theirs.described, cells=cells))
    return rows


def printed(number: float | None) -> str:
    """Format a published number, which is in percent; a dash for one that is not given."""
    return "–" if number is None else f"{number:.2f}"


def pooled_words(report: Report) -> list[str]:
    """Say how many of all folds' predictions are correct, then the report's warning if it has one. A clip that is
    tested in two folds counts twice."""
    hits = sum(row[k] for k, row in enumerate(report.pooled.confusion))
    counted = f"{hits:,} of {report.pooled.num_clips:,} predictions correct"
    return [text for text in (counted, report.warning) if text]


def _variant_rows(report: Report) -> list[TableRow]:
    """Make the lines of the variants, by name: mean and deviation over folds, or scores on the single test split."""
    nothing = Row(recall=(None,) * len(report.first.classes), uar=None, war=None)
    rows = []
    for name, found in report.variants.items():
        several = report.num_folds > 1
        label = f"{name}: mean" if several else name
        rows.append(TableRow(kind="variant", label=label, detail=VARIANT_TEXT, cells=_cells(found.mean)))
        if several:
            rows.append(TableRow(kind="variant", label=f"{name}: std", cells=_cells(found.std or nothing)))
    return rows


def _rank_rows(report: Report) -> list[TableRow]:
    """Make the line of the means over ranks, averaged over the folds; none unless every fold has them."""
    found = rank_means(report.folds)
    if found is None:
        return []
    ranks, mean = found
    label = f"rank mean of {ranks}" + (": mean" if len(report.folds) > 1 else "")
    return [TableRow(kind="ranks", label=label, detail=RANKS_TEXT, cells=_cells(mean))]


def _beside_rows(report: Report) -> list[TableRow]:
    """Make the lines of the last checkpoints and of second results: the mean of each, and its deviation."""
    rows = []
    for found in beside(report):
        mean, std = means(found)
        detail = f"the last checkpoint; all other rows: selection {report.first.selection}"
        if found.kind == "other":
            detail = f"a second result of the same weights; {len(found.results)} of {len(report.folds)} results"
        several = ": mean" if len(found.results) > 1 else ""
        rows.append(TableRow(kind="variant", label=f"{found.name}{several}", detail=detail, cells=_cells(mean)))
        if std is not None:
            rows.append(TableRow(kind="variant", label=f"{found.name}: std", cells=_cells(std)))
    return rows


def interval_rows(report: Report) -> list[list[str]]:
    """Make the lines of the table of intervals: name, UAR and WAR of every part, the mean and the pooled counts."""
    known = report.intervals
    found = {label(part): known.parts[part] for part in sorted(known.parts, key=_by_number)}
    if len(found) > 1:
        found |= {name: each for name, each in (("mean", known.mean), ("pooled", known.pooled)) if each is not None}
    elif report.num_folds == 1:
        found = {"test split": next(iter(found.values()))}
    return [[name, *(f"{percent(s.value)} {limits(s)}" for s in (each.uar, each.war))] for name, each in found.items()]


def limits(interval: Interval) -> str:
    """Format an interval in percent: `[58.10, 61.02]`."""
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def mean_limits(report: Report, name: Literal["uar", "war"]) -> str:
    """Format the interval of the report's mean of a score; empty if it is not known."""
    known = report.intervals.mean
    return "" if known is None else limits(getattr(known, name))


def _by_number(name: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", name)]


def _part_names(report: Report) -> list[str]:
    names = [*report.missing, *map(report.part_of, report.folds)]
    return sorted(names, key=_by_number)


def part_row(report: Report, part: str) -> TableRow:
    """Make the line of one fold, given the name of its part; dashes if it has no result yet."""
    shown = label(part).replace("fold 1", "test split") if report.num_folds == 1 else label(part)
    for fold in report.folds:
        if report.part_of(fold) == part:
            alone = report.num_folds == 1 and not report.repeated
            return TableRow(kind="fold", label=shown, detail=ours(report) if alone else "", cells=_cells(fold.scores))
    width = len(report.first.classes) + 2
    state = "training incomplete" if part in report.incomplete else "no result yet"
    return TableRow(kind="absent", label=f"{shown}: {state}", cells=("–",) * width)


def _cells(row: Row | Scores) -> tuple[str, ...]:
    return tuple(percent(share) for share in (*row.recall, row.uar, row.war))


def ours(report: Report) -> str:
    """Describe our row: folds, selection rule, seeds."""
    on = f"on {report.first.data}; " if report.first.generated else ""
    return f"ours: {on}{report.coverage}; selection: {report.first.selection}; {seeds_text(report)}"


def seeds_text(report: Report) -> str:
    """Return `seed 1` or `seeds 1, 2`."""
    return f"seed{'s' if len(report.seeds) > 1 else ''} {', '.join(map(str, report.seeds))}"


def title(report: Report) -> str:
    """Make the title of the report."""
    return f"{report.first.method} on {report.first.data}" + (f", {report.warning}" if report.warning else "")


def _headline(report: Report) -> str:
    def one(name: Literal["uar", "war"]) -> str:
        return " ".join([percent(getattr(report.mean, name)), *spread(report, name)])

    shown = [f"UAR {one('uar')}, WAR {one('war')} (%)"]
    if report.num_folds > 1:
        shown.append(f"pooled WAR {percent(report.pooled.war)} ({pooled_words(report)[0]})")
    return ", ".join([*shown, *([report.warning] if report.warning else [])])


def text_table(report: Report) -> str:
    """Format the result table for the terminal: aligned columns, classes as their shortest distinct prefixes."""
    rows = table_rows(report)
    lines = [["", *short_names(report.first.classes), "UAR", "WAR"], *([row.label, *row.cells] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))]) for line in lines
    ]
    rule = "-" * len(text[0])
    details = [f"{row.label}: {row.detail}" for row in rows if row.detail]
    if report.intervals.mean is not None:
        details.append(f"{INTERVAL_TEXT}: UAR {mean_limits(report, 'uar')}, WAR {mean_limits(report, 'war')}")
    head = f"{title(report)}, {report.coverage}, per cent"
    return "\n".join([head, rule, text[0], rule, *text[1:], rule, *details, *report.notes])


def markdown(report: Report) -> str:
    """Format the report as Markdown: table, descriptions of its rows, pooled confusion counts, facts."""
    rows = table_rows(report)
    header = ["", *report.first.classes, "UAR", "WAR"]
    lines = [[f"**{row.label}**" if row.kind == "mean" else row.label, *row.cells] for row in rows]
    details = [f"- {row.label}: {row.detail}" for row in rows if row.detail]
    counts = [[md_text(name), *map(str, row)] for name, row in zip(report.first.classes, report.pooled.confusion)]
    parts = [
        f"# {md_text(title(report))}",
        f"{_headline(report)}. {md_text(ours(report))}.",
        *(f"> {md_text(note)}" for note in report.notes),
        "## Results (%)",
        md_table(header, lines),
        "\n".join(md_text(line) for line in details),
        "## Intervals (%)",
        f"{INTERVAL_TEXT}; {STRATA_TEXT}.",
        md_table(["", "UAR", "WAR"], [[md_text(cell) for cell in row] for row in interval_rows(report)]),
        "## Confusion counts",
        f"Rows are the truth, columns the prediction; {md_text(report.coverage)}, {report.pooled.num_clips:,} clips.",
        md_table(["truth", *report.first.classes], counts),
        "## How it was run",
        "\n".join(f"- {name}: {md_text(value)}" for name, value in facts(report)),
        "Pictures, configuration and environment are in `index.html` beside this file.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def spread(report: Report, name: Literal["uar", "war"]) -> list[str]:
    """Format the standard deviations of one score, `± 1.23`: over folds and over seeds, each if there are several. They
    are labelled only if the folds were repeated with several seeds."""
    found = [(report.std, " over folds"), (report.means.seed_std, " over seeds")]
    shares = [(getattr(row, name), over) for row, over in found if row is not None]
    return [f"± {percent(share)}{over if report.repeated else ''}" for share, over in shares if share is not None]


def md_text(text: str) -> str:
    """Escape a text so that Markdown, and HTML made from it, show it unchanged."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|[]*`":
        text = text.replace(mark, f"\\{mark}")
    return text


def md_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table of cells that are Markdown already; the header's are text."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join([row([md_text(h) for h in header]), row(ruler), *(row(line) for line in lines)])


def facts(report: Report) -> list[tuple[str, str]]:
    """List what a reader needs for a comparison, as name and value: data, selection, protocol, checkpoints."""
    first, shown = report.first, report.first.protocol
    times = ", each once for every seed" if report.repeated else ""
    found = [
        ("run", report.name),
        ("method", first.method),
        ("data set", f"{first.data}, {len(first.classes)} classes; test clips: {report.pooled.num_clips:,}{times}"),
        ("trained on", " + ".join((first.data, *first.joined)) if first.joined else ""),
        ("generated with", first.generated),
        ("folds", report.coverage),
        ("split protocol", first.split),
        ("training and test", first.overlap.words(first.num_folds) if first.overlap else ""),
        ("epochs", _epochs(report)),
        ("selection", SELECTION_TEXT[first.selection]),
        ("validation", first.validation),
        ("seeds", ", ".join(map(str, report.seeds))),
        ("test input", f"{shown.num_frames} frames of {shown.size} x {shown.size}, {shown.views}"),
        ("input normalisation", shown.normalisation),
        ("presentation", shown.presentation),
        ("labels", f"{shown.warning}: the model was given the true labels" if shown.leaks_label else ""),
        ("training layout", first.layout),
        ("training augmentation", shown.augment),
        ("training targets", _targets(report)),
        ("weights evaluated", shown.weights),
        ("shards", f"manifest sha256 {first.manifest_sha256}"),
    ]
    return [(name, value) for name, value in found if value]


def _targets(report: Report) -> str:
    """Say what training aimed at, and in how many training clips of all folds, where not in all."""
    counts = [fold.votes for fold in report.folds if fold.votes]
    if not counts:
        return report.first.protocol.targets
    some, every = map(sum, zip(*counts, strict=True))
    where = "" if len(counts) == len(report.folds) == 1 else f" in {len(counts)} of {len(report.folds)} results"
    return f"{report.first.protocol.targets}; only {some:,} of {every:,} training clips{where} have votes"


def _epochs(report: Report) -> str:
    """Say how many epochs were trained, and in which folds fewer because of an early stop."""
    if not report.first.epochs:
        return "none: the weights as they are"
    early = [f"{label(report.part_of(fold))} after {fold.stopped}" for fold in report.folds if fold.stopped]
    return f"{report.first.epochs}" + (f"; stopped early: {', '.join(early)}" if early else "")


def plain(report: Report) -> dict[str, Any]:
    """Convert the report to JSON values: fractions from 0 to 1, except `published`, in percent as in the paper."""
    first = report.first
    return {
        "version": 2,
        "unit": "share from 0 to 1; published: percent",
        "run": report.name,
        "dataset": first.dataset,
        "generated": first.generated,
        "excluded": first.excluded,
        "method": first.method,
        "classes": list(first.classes),
        "selection": first.selection,
        "seeds": report.seeds,
        "split": first.split,
        "overlap": to_plain(first.overlap) if first.overlap else None,
        "protocol": to_plain(first.protocol),
        "num_folds": report.num_folds,
        "missing_parts": list(report.missing),
        "incomplete_parts": list(report.incomplete),
        "mean": to_plain(report.mean),
        "std": to_plain(report.std) if report.std else None,
        "std_kind": STD_TEXT,
        "seed_means": {str(seed): to_plain(row) for seed, row in report.means.by_seed.items()},
        "seed_std": to_plain(report.means.seed_std) if report.means.seed_std else None,
        "seed_std_kind": SEED_STD_TEXT,
        "pooled": to_plain(report.pooled),
        "variants": {name: to_plain(found) for name, found in report.variants.items()},
        "intervals": {"kind": f"{INTERVAL_TEXT}; {STRATA_TEXT}", **to_plain(report.intervals)},
        "beside": [
            {"name": found.name, "kind": found.kind, "results": [to_plain(each) for each in found.results.values()]}
            for found in beside(report)
        ],
        "published": to_plain(report.published) if report.published else None,
        "notes": list(report.notes),
        "results": [to_plain(fold) for fold in report.folds],
    }
