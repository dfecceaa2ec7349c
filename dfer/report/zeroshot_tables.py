"""The table of the zero-shot suite as text, Markdown and JSON."""

from collections.abc import Sequence
from typing import Any

from dfer.config import to_plain
from dfer.evaluation.results import Published
from dfer.evaluation.scores import percent
from dfer.evaluation.statistics import Interval
from dfer.report.compare_tables import aligned
from dfer.report.tables import limits, md_table, md_text
from dfer.report.zeroshot import Line, ModelFacts, SetTable, Suite

TITLE = "Zero-shot suite"
LEGEND = (
    "UAR and WAR are means over folds, with 95 % bootstrap intervals over the test clips, all in per cent. A row names "
    "its prompt kind. Published numbers stand beside released heads and OpenAI's CLIPs alone; they have no "
    "intervals."
)
HEADS = ("model, prompt kind", "UAR", "WAR", "published UAR / WAR")
RULES = {
    "repeat_first": "a clip of at most {frames} frames shows its first one {frames} times (repeat_first, Exp-CLIP's)",
    "repeat_last": "a clip of at most {frames} frames shows all of them, and repeats the last one (repeat_last)",
}


def rows(table: SetTable) -> list[list[str]]:
    """Make the rows of a data set: label, UAR, WAR with intervals, the published numbers."""
    found = []
    for number, line in enumerate(table.lines):
        found.append(_row(line))
        last = number + 1 == len(table.lines) or table.lines[number + 1].model != line.model
        if last and line.model in table.readme:
            published = table.readme[line.model]
            found.append([f"{line.model}, published, {published.note}", "", "", published.text])
    return found


def styles(table: SetTable) -> list[str]:
    """Return the style of each of `rows` on a page: those of a mean and of published numbers."""
    found = []
    for number, line in enumerate(table.lines):
        found.append("mean" if line.pooled is None else "fold")
        last = number + 1 == len(table.lines) or table.lines[number + 1].model != line.model
        found += ["theirs"] if last and line.model in table.readme else []
    return found


def _row(line: Line) -> list[str]:
    scores = [
        f"{percent(line.mean.uar)} {limits(line.intervals.uar)}",
        f"{percent(line.mean.war)} {limits(line.intervals.war)}",
    ]
    return [line.label, *scores, line.published.text if line.published else "–"]


def overview(suite: Suite) -> list[list[str]]:
    """Make head and rows of the table over all data sets: a row a model and kind, UAR / WAR in each set's column."""
    labels = dict.fromkeys(line.label for table in suite.sets for line in table.lines)
    cells = {(table.result.name, line.label): line for table in suite.sets for line in table.lines}
    found = [["model, prompt kind", *(table.result.name for table in suite.sets), *suite.absent]]
    for label in labels:
        own = [_both(cells.get((table.result.name, label))) for table in suite.sets]
        found.append([label, *own, *("absent" for _ in suite.absent)])
    return found


def _both(line: Line | None) -> str:
    return "–" if line is None else f"{percent(line.mean.uar)} / {percent(line.mean.war)}"


def facts(table: SetTable) -> str:
    """Say what was tested and how, in one line."""
    own = table.result
    folds = f"{len(own.folds)} folds" if len(own.folds) > 1 else "one fold"
    frames = "stills"
    if own.frames > 1:
        frames = f"{own.frames} frames a clip; {RULES[own.short_clips].format(frames=own.frames)}: {own.short:,} clips"
    return (
        f"{own.clips:,} test clips, {folds} of `{own.protocol}`, {len(own.classes)} classes; {frames}; {own.precision}."
    )


def sources(table: SetTable) -> list[str]:
    """Say where the published numbers of a data set are from, each source once."""
    published: list[Published] = [line.published for line in table.lines if line.published]
    found = [f"{each.source}{f' ({each.note})' if each.note else ''}" for each in (*published, *table.readme.values())]
    return [f"Published: {text}." for text in dict.fromkeys(found)]


def differences(table: SetTable) -> list[str]:
    """Say how much better every head is than its plain towers, in points, with paired intervals; a line each."""
    return [
        f"{each.model} minus {each.plain}, {each.kind}: UAR {_points(each.intervals.uar)}, "
        f"WAR {_points(each.intervals.war)} (points, paired 95 % intervals)."
        for each in table.differences
    ]


def _points(each: Interval) -> str:
    return f"{100 * each.value:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}]"


def model_facts(suite: Suite) -> list[list[str]]:
    """Make a row for every model: name, CLIP, weights, head, normalisation."""
    models = {model.name: model for table in suite.sets for model in table.result.models}
    return [_model_row(model) for model in models.values()]


def _model_row(model: ModelFacts) -> list[str]:
    head = "none" if not model.head else f"{model.head}, sha256 {model.head_sha256[:12]}"
    if model.released:
        head += f", the released {model.released}"
    return [model.name, model.arch, model.weights, head, model.normalisation, f"{model.size} px"]


MODEL_HEADS = ("model", "CLIP", "weights", "head", "normalisation", "size")


def missing(suite: Suite) -> list[str]:
    """Say which data sets have no numbers, and why."""
    found = [f"{name}: absent, {why}." for name, why in suite.absent.items()]
    return found + [
        f"{name}: there, but not evaluated with this configuration, these clips and weights yet."
        for name in suite.waiting
    ]


def text(suite: Suite) -> str:
    """Format the table for the terminal."""
    blocks = []
    for table in suite.sets:
        own = aligned([list(HEADS), *rows(table)])
        said = [*differences(table), facts(table), *table.notes, *sources(table)]
        blocks.append("\n".join([table.result.data, *own, *said]))
    listed = "\n".join(["All data sets: UAR / WAR", *aligned(overview(suite)), *missing(suite)])
    return "\n\n".join([*blocks, listed, *filter(None, (suite.remark,)), LEGEND])


def markdown(suite: Suite) -> str:
    """Format the table as Markdown."""
    head, *body = overview(suite)
    parts = [
        f"# {TITLE}",
        md_text(suite.remark),
        LEGEND,
        "## All data sets",
        "UAR / WAR.",
        _table(head, body),
        _list(missing(suite)),
    ]
    for table in suite.sets:
        parts += [f"## {md_text(table.result.data)}", _table(HEADS, rows(table))]
        parts.append(_list([*differences(table), facts(table), *table.notes, *sources(table)]))
    parts += ["## Models", _table(MODEL_HEADS, model_facts(suite))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return md_table(head, [[md_text(cell) for cell in row] for row in body])


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {md_text(line)}" for line in lines)


def plain(suite: Suite) -> dict[str, Any]:
    """Return the table as plain values: scores from 0 to 1, published numbers in per cent, all confusion counts."""
    return {
        "sets": [
            {"result": to_plain(table.result), "lines": to_plain(table)["lines"], "readme": to_plain(table)["readme"]}
            | {"differences": to_plain(table)["differences"], "notes": list(table.notes)}
            for table in suite.sets
        ],
        "absent": suite.absent,
        "waiting": list(suite.waiting),
        "remark": suite.remark,
    }
