"""The report as one self-contained HTML page.

The page loads no other files and runs no script; everything from a run folder is escaped and shown as text.
"""

from html import escape
from importlib.resources import files
from string import Template
from typing import Literal

from dfer.choices import SELECTION_TEXT
from dfer.evaluation.results import FoldResult
from dfer.evaluation.scores import percent
from dfer.report.crossval import Report, label
from dfer.report.plots import Picture, confusion_picture, curve_pictures, recall_picture
from dfer.report.tables import (
    INTERVAL_TEXT,
    SEED_STD_TEXT,
    STD_TEXT,
    STRATA_TEXT,
    TableRow,
    facts,
    interval_rows,
    mean_limits,
    ours,
    part_row,
    pooled_words,
    seeds_text,
    short_names,
    spread,
    table_rows,
    title,
)

MAX_WIDE = 8
"""Largest number of classes for which the page has whole names and pictures side by side."""


def page(report: Report) -> str:
    """Make the self-contained HTML page. Everything from the run folder is escaped."""
    template = Template(files("dfer.report").joinpath("report.html").read_text(encoding="utf-8"))
    named = {report.part_of(fold): fold for fold in report.folds}
    values = {
        "title": escape(title(report)),
        "subtitle": escape(f"{report.name} · {ours(report)}"),
        "cards": _cards(report),
        "summary": escape(_summary_text(report)),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        "table": _html_table(report),
        "legend": escape(_legend(report)),
        "intervals": _intervals(report),
        "pair": "stack" if _many(report) else "pair",
        "recall": _figure(recall_picture(named, mean=report.mean)),
        "pooled": _pooled(report),
        "matrices": _matrices(report),
        "curves": _curves(report),
        "facts": "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(report)),
        "details": _details(report),
    }
    return template.substitute(values)


def _summary_text(report: Report) -> str:
    stds = [text for row, text in ((report.std, STD_TEXT), (report.means.seed_std, SEED_STD_TEXT)) if row]
    over = f"Mean ± {' ± '.join(stds)}, {report.coverage}. " if stds else ""
    return f"{over}Selection {SELECTION_TEXT[report.first.selection]}. {seeds_text(report).capitalize()}."


def _cards(report: Report) -> str:
    def card(name: str, value: str, deviation: str, below: str, kind: str = "") -> str:
        small = f" <small>{escape(deviation)}</small>" if deviation else ""
        return (
            f'<div class="card {kind}">{escape(name)}<b>{escape(value)}{small}</b>'
            f'<span class="soft">{escape(below)}</span></div>'
        )

    def card_of(name: Literal["uar", "war"]) -> str:
        value = percent(getattr(report.mean, name))
        below = ", ".join(text for text in (f"ours, {report.coverage}", report.warning) if text)
        if interval := mean_limits(report, name):
            below += f"; 95 % interval {interval}"
        return card(f"{name.upper()} (%)", value, " ".join(spread(report, name)), below)

    cards = [card_of("uar"), card_of("war")]
    if report.num_folds > 1:
        cards.append(card("WAR pooled (%)", percent(report.pooled.war), "", ", ".join(pooled_words(report))))
    if theirs := report.published:
        below = "; ".join(filter(None, (theirs.warning, theirs.described)))
        cards.append(card("UAR / WAR published (%)", theirs.text, "", below, "theirs"))
    return "".join(cards)


def _columns(report: Report) -> list[str]:
    """Return the class names for the heads of the table: whole if they fit the width of the page, else short."""
    classes = report.first.classes
    return short_names(classes) if _many(report) else list(classes)


def _breadth(report: Report) -> str:
    """Return the CSS class for matrices of many classes: on a phone they scroll sideways and stay readable."""
    return "wide" if _many(report) else ""


def _many(report: Report) -> bool:
    """Whether there are too many classes for whole names in the table and for two pictures side by side."""
    return len(report.first.classes) > MAX_WIDE


def _legend(report: Report) -> str:
    pairs = [f"{short}: {name}" for short, name in zip(_columns(report), report.first.classes) if short != name]
    names = f" ({', '.join(pairs)})" if pairs else ""
    std = f" std: {STD_TEXT}; pooled: the sum of the folds' confusion matrices." if report.num_folds > 1 else ""
    return f"Recall of every class{names}, then UAR and WAR.{std}"


def _html_table(report: Report) -> str:
    classes = zip(_columns(report), report.first.classes)
    marked = [f'<abbr title="{escape(name)}">{escape(short)}</abbr>' for short, name in classes]
    head = "".join(f'<th scope="col">{name}</th>' for name in marked)
    body = "".join(_html_row(row) for row in table_rows(report))
    keys = '<th scope="col" class="key">UAR</th><th scope="col" class="key">WAR</th>'
    return f'<table><thead><tr><th scope="col"></th>{head}{keys}</tr></thead><tbody>{body}</tbody></table>'


def _intervals(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(uar)}</td><td>{escape(war)}</td></tr>'
        for name, uar, war in interval_rows(report)
    )
    head = '<thead><tr><th scope="col"></th><th scope="col">UAR</th><th scope="col">WAR</th></tr></thead>'
    table = f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    said = f'<p class="soft">{escape(f"{INTERVAL_TEXT}; {STRATA_TEXT}.")}</p>'
    return f"<details><summary>Intervals</summary>{table}{said}</details>"


def _html_row(row: TableRow) -> str:
    *recalls, uar, war = (escape(cell) for cell in row.cells)
    detail = f'<small class="soft">{escape(row.detail)}</small>' if row.detail else ""
    cells = "".join(f"<td>{cell}</td>" for cell in recalls) + f'<td class="key">{uar}</td><td class="key">{war}</td>'
    return f'<tr class="{row.kind}"><th scope="row">{escape(row.label)}{detail}</th>{cells}</tr>'


def _figure(picture: Picture, *, kind: str = "", caption: bool = True) -> str:
    below = f"<figcaption>{escape(picture.caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{picture.svg}{below}</figure>'


def _pooled(report: Report) -> str:
    several = len(report.folds) > 1
    name = (
        f"Sum over {report.coverage}" if several else part_row(report, report.part_of(report.first)).label.capitalize()
    )
    picture = confusion_picture(report.pooled, classes=report.first.classes, title=name)
    say = "Rows: the truth. Upper number and colour: per cent of the row; lower number: clips; empty: none."
    return f'<p class="soft">{say}</p>{_figure(picture, kind=_breadth(report))}'


def _matrices(report: Report) -> str:
    if len(report.folds) < 2:
        return ""
    pictures = [_fold_matrix(fold, label(report.part_of(fold)).capitalize()) for fold in report.folds]
    kind = "many large" if _many(report) else "many"
    figures = "".join(_figure(picture, kind=_breadth(report)) for picture in pictures)
    return f'<section><h2>Confusion by fold</h2><div class="{kind}">{figures}</div></section>'


def _fold_matrix(fold: FoldResult, title: str) -> Picture:
    return confusion_picture(fold.scores, classes=fold.classes, title=title, small=True)


def _curves(report: Report) -> str:
    pictures = curve_pictures(report)
    if not pictures:
        return '<section><h2>Curves</h2><p class="soft">No metrics.jsonl in the run folder.</p></section>'
    figures = "".join(_figure(picture, caption=False) for picture in pictures)
    say = "Long curves are averaged over equal runs of steps."
    return f'<section><h2>Curves</h2><p class="soft">{say}</p><div class="many">{figures}</div></section>'


def _details(report: Report) -> str:
    blocks = [("Checkpoints and partitions", _checkpoints(report))]
    differing = " (of the first fold; the others differ only in run, fold and seed)" if len(report.folds) > 1 else ""
    blocks.append((f"Configuration{differing}", f"<pre>{escape(report.config)}</pre>"))
    for names, text in report.environments.items():
        blocks.append((f"Environment: {names}", f"<pre>{escape(text)}</pre>"))
    return "".join(f"<details><summary>{escape(name)}</summary>{body}</details>" for name, body in blocks)


def _checkpoints(report: Report) -> str:
    head = ("fold", "seed", "step", "epoch", "clips", "seconds", "finished", "tested on", "trained on", "checkpoint")
    rows = [
        (
            f.fold,
            f.seed,
            f.step,
            f.epoch,
            f.clips,
            f"{f.seconds:.0f}",
            f.finished,
            ", ".join(f.test_partitions),
            ", ".join(f.train_partitions),
            f.checkpoint,
        )
        for f in report.folds
    ]
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
