"""Draw the pictures of a report as inline SVG: confusion matrices, recalls, curves.

Text and axes take the colour of the surrounding page (light, dark or print). Lines have the colours of the Okabe-Ito
palette, which colour-blind readers can distinguish, and are labelled at their ends. The state of pyplot is not used.
"""

import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from dfer.evaluation.results import FoldResult
from dfer.evaluation.scores import Scores, percent
from dfer.report.crossval import Curve, Report, Row, label
from dfer.report.tables import short_names

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
INK = "#010203"
"""Placeholder for the page's text colour while drawing; replaced by `currentColor` in the SVG."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dfer",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
}
MAX_POINTS = 300
"""Most points of a line; longer lines are averaged over equally many neighbouring points."""
MAX_LABEL = 20
"""Most letters of a name in a picture."""
LABEL_GAP = 0.075
"""Smallest distance of two line names, as a fraction of the axes' height."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An inline SVG and its description in words."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """The metrics that share one axes. Lines are named by the pattern's group, or by their fold if it has none.

    least: smallest number of metrics for which the panel is drawn.
    """

    title: str
    pattern: str
    scale: float = 1.0
    log: bool = False
    floor: float | None = None
    least: int = 1


PANELS = (
    _Panel(title="Training loss", pattern=r"train/loss"),
    _Panel(title="Terms of the loss", pattern=r"train/terms/(.+)", least=2),
    _Panel(title="Learning rate, by parameter group", pattern=r"train/lr/(.+)", log=True),
    _Panel(title="UAR on validation clips while training (%)", pattern=r"eval/validation/uar", scale=100),
    _Panel(title="WAR on validation clips while training (%)", pattern=r"eval/validation/war", scale=100),
    _Panel(title="UAR on test clips while training (%)", pattern=r"eval/test/uar", scale=100),
    _Panel(title="WAR on test clips while training (%)", pattern=r"eval/test/war", scale=100),
    _Panel(title="UAR while training (%)", pattern=r"eval/uar", scale=100),
    _Panel(title="WAR while training (%)", pattern=r"eval/war", scale=100),
    _Panel(title="Training clips per second", pattern=r"train/clips_per_s", floor=0),
    _Panel(title="Share of time waiting for data (%)", pattern=r"train/data_wait", scale=100, floor=0),
)


def confusion_picture(found: Scores, *, classes: Sequence[str], title: str, small: bool = False) -> Picture:
    """Draw a confusion matrix. Colour and upper number: per cent of the row (the true class); lower number: clips."""
    size = len(classes)
    with rc_context(STYLE):
        side = (0.95 if small else 1.5) + 0.4 * size
        figure = Figure(figsize=(side, side - (0.1 if small else 0.2)), layout="constrained")
        axes = figure.add_subplot()
        shares = np.array([[c / max(1, n) for c in row] for row, n in zip(found.confusion, found.count)])
        axes.pcolormesh(shares, cmap=colormaps["Blues"], vmin=0, vmax=1, edgecolors="#88888855", linewidth=0.4)
        for i, row in enumerate(found.confusion):
            for j, cell in enumerate(row):
                _cell(axes, i, j, share=float(shares[i, j]), clips=cell, large=size <= 8)
        names = [_label(name) for name in (short_names(classes) if small else classes)]
        axes.set_xticks(
            np.arange(size) + 0.5,
            names,
            rotation=0 if small else 35,
            ha="center" if small else "right",
            rotation_mode="anchor",
        )
        axes.set_yticks(np.arange(size) + 0.5, [f"{name}  {n:,}" for name, n in zip(names, found.count)])
        axes.tick_params(length=0, labelsize=7.5 if size <= 8 else 7)
        axes.set(xlabel="predicted", ylabel="truth, with test clips", aspect="equal", title=title)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        caption = f"{title}. UAR {percent(found.uar)}, WAR {percent(found.war)}, {found.num_clips:,} clips."
        return Picture(svg=_svg(figure, label=f"Confusion matrix. {caption}"), caption=caption)


def _cell(axes: Any, i: int, j: int, *, share: float, clips: int, large: bool) -> None:
    if not clips:
        return
    colour = "#ffffff" if share > 0.55 else "#14202b"
    text = f"{100 * share:.1f}" if large else f"{100 * share:.0f}"
    axes.text(j + 0.5, i + 0.42, text, ha="center", va="center", size=7.6 if large else 7, color=colour)
    axes.text(j + 0.5, i + 0.76, f"{clips}", ha="center", va="center", size=5.4 if large else 4.9, color=colour)


def recall_picture(folds: Mapping[str, FoldResult], *, mean: Row) -> Picture:
    """Draw the recall of every class: a dot per part and, if there are several parts, a tick and a number for the mean.
    folds: by the name of the part."""
    classes = next(iter(folds.values())).classes
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.9 + 0.3 * len(classes)), layout="constrained")
        axes = figure.add_subplot()
        for part, fold in folds.items():
            there = [(100 * share, k) for k, share in enumerate(fold.recall) if share is not None]
            dots: dict[str, Any] = {
                "ms": 5,
                "color": _colour(fold.fold - 1),
                "alpha": 0.85,
                "mew": 0,
                "label": label(part),
            }
            axes.plot(*zip(*there), "o", **dots)
        for k, name in enumerate(classes):
            if (average := mean.recall[k]) is not None and len(folds) > 1:
                axes.plot([100 * average] * 2, [k - 0.32, k + 0.32], color=INK, lw=1.6)
            axes.text(103, k, percent(mean.recall[k]), va="center", ha="left", gid=f"mean-{name}")
        axes.set_yticks(range(len(classes)), [_label(name) for name in classes])
        axes.set(xlim=(-1, 101), ylim=(len(classes) - 0.5, -0.5), xlabel="recall (%)")
        axes.grid(axis="x", color="#888888", alpha=0.25, lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if len(folds) > 1:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=5,
                frameon=False,
                handletextpad=0,
                borderpad=0,
                columnspacing=1,
            )
        several = "one dot per fold; the tick and the number at the right are the mean"
        caption = f"Recall per class{': ' + several if len(folds) > 1 else ''}."
        return Picture(svg=_svg(figure, label=caption), caption=caption)


def curve_pictures(report: Report) -> list[Picture]:
    """Draw a picture for every panel that has recorded metrics."""
    found = [(panel, _lines(panel, report.curves)) for panel in PANELS]
    return [_curve_picture(panel, lines, single=report.num_folds == 1) for panel, lines in found if lines]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One curve; lines with the same name share a colour and a label."""

    name: str
    colour: str
    points: Curve


def _lines(panel: _Panel, curves: Mapping[str, Mapping[str, Curve]]) -> list[_Line]:
    """Make the lines of a panel; colours distinguish seeds if there are several, else folds."""
    matches = [(match, folds) for key, folds in curves.items() if (match := re.fullmatch(panel.pattern, key))]
    if len(matches) < panel.least:
        return []
    lines = []
    for number, (match, folds) in enumerate(matches):
        for part, points in folds.items():
            first = part.partition("/")[0]
            colour = int(first.partition("_")[2]) - 1
            name, colour = (match[1], number) if match.groups() else (label(first), colour)
            shown = [(step, value * panel.scale) for step, value in points if value > 0 or not panel.log]
            if shown:
                lines.append(_Line(name=name, colour=_colour(colour), points=thinned(shown)))
    return lines


def thinned(points: Curve, *, limit: int = MAX_POINTS) -> Curve:
    """Reduce a curve to at most `limit` points, each the mean of equally many neighbours; keep shorter curves."""
    if len(points) <= limit:
        return points
    runs = np.array_split(np.asarray(points, dtype=np.float64), limit)
    return [(float(x), float(y)) for x, y in (run.mean(axis=0) for run in runs)]


def _curve_picture(panel: _Panel, lines: Sequence[_Line], *, single: bool) -> Picture:
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            steps, values = zip(*line.points)
            axes.plot(steps, values, color=line.colour, marker="o" if len(steps) <= 12 else None, ms=3, alpha=0.9)
        if panel.log:
            axes.set_yscale("log")
        if panel.floor is not None:
            axes.set_ylim(bottom=panel.floor, top=max(1e-9, 1.12 * max(y for line in lines for _, y in line.points)))
        axes.set(xlabel="step", title=panel.title)
        axes.grid(axis="y", color="#888888", alpha=0.25, lw=0.6)
        if not single or len({line.name for line in lines}) > 1:
            _name_lines(axes, lines)
        return Picture(svg=_svg(figure, label=panel.title), caption=panel.title)


def _name_lines(axes: Any, lines: Sequence[_Line]) -> None:
    """Write the names at the right ends of the lines, moved apart if they would overlap."""
    last = {line.name: (line.points[-1][1], line.colour) for line in lines}
    axes.autoscale_view()  # computes the axes' limits, which are used below
    to_share = axes.transScale + axes.transLimits
    heights = {name: float(to_share.transform((0.0, y))[1]) for name, (y, _) in last.items()}
    for name, height in apart(heights).items():
        axes.annotate(_label(name), (1.015, height), xycoords="axes fraction", color=last[name][1], va="center", size=8)


def apart(heights: Mapping[str, float], *, gap: float = LABEL_GAP) -> dict[str, float]:
    """Move heights until they are at least `gap` apart: in the same order, and as close as possible to the given ones
    and to 0..1."""
    placed: dict[str, float] = {}
    floor = 0.0
    for name in sorted(heights, key=lambda n: heights[n]):
        placed[name] = max(floor, heights[name])
        floor = placed[name] + gap
    ceiling = 1.0
    for name in reversed(placed):
        placed[name] = min(ceiling, placed[name])
        ceiling = placed[name] - gap
    return placed


def picture_of(figure: Any, *, caption: str) -> Picture:
    """Convert a figure to a picture that its caption describes."""
    return Picture(svg=_svg(figure, label=caption), caption=caption)


def picture_label(name: str) -> str:
    """Format a longer name for a picture, such as that of a row: its end is kept."""
    short = name if len(name) <= 2 * MAX_LABEL else f"…{name[1 - 2 * MAX_LABEL :]}"
    return short.replace("$", r"\$")


def _label(name: str) -> str:
    """Format a name for a picture: shortened, and escaped so that it is not typeset as a formula."""
    short = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
    return short.replace("$", r"\$")


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _svg(figure: Any, *, label: str) -> str:
    """Convert the figure to an <svg> element for a page with several: unique ids, the page's colours, no namespaces."""
    out = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    mine = f"p{hashlib.sha256(label.encode()).hexdigest()[:10]}"
    text = re.sub(r'\bid="', f'id="{mine}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{mine}-", text)
    text = text.replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
