"""Draw the pictures of a comparison: recalls per class, scores with intervals, reliability."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dfer.evaluation.scores import percent
from dfer.evaluation.statistics import Calibration
from dfer.report.compare import Entry, Table
from dfer.report.plots import INK, PALETTE, STYLE, Picture, picture_label, picture_of

MARKS = "osD^vP*X<>"
ROOM = (0.05, 0.0, 0.94, 1.0)
"""Left, bottom, width and height of the drawing: the page's letters may be wider than those measured here."""


def pictures(table: Table) -> list[list[Picture]]:
    """Draw the pictures of a table, in two columns; none without results."""
    if not table.entries:
        return []
    left = [score_picture(table.data, table.entries)]
    calibrated = [(each.label, each.calibration) for each in table.entries if each.calibration]
    left += [reliability_picture(table.data, calibrated)] if calibrated else []
    return [left, [recall_picture(table.data, table.classes, table.entries)]]


class Scored(Protocol):
    """A row of a picture of scores. mean, intervals, published: objects with `uar` and `war`, or None."""

    @property
    def label(self) -> str: ...
    @property
    def mean(self) -> Any: ...
    @property
    def intervals(self) -> Any: ...
    @property
    def published(self) -> Any: ...


def score_picture(data: str, entries: Sequence[Scored]) -> Picture:
    """Draw UAR and WAR of every row as a dot with its interval; published numbers as a hollow diamond."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.85 + 0.34 * len(entries)), layout=ConstrainedLayoutEngine(rect=ROOM))
        axes = figure.subplots(1, 2, sharey=True)
        for panel, name in zip(axes, ("uar", "war")):
            for row, entry in enumerate(entries):
                _score(panel, row, entry, name)
            panel.set(title=f"{name.upper()} (%)", ylim=(len(entries) - 0.5, -0.5))
            panel.margins(x=0.14)
            panel.grid(axis="x", color="#888888", alpha=0.25, lw=0.6)
            panel.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(entries)), [picture_label(entry.label) for entry in entries])
        theirs = " Hollow diamonds: published." if any(entry.published for entry in entries) else ""
        caption = f"UAR and WAR on {data} with 95 % bootstrap intervals over the test clips.{theirs}"
        return picture_of(figure, caption=caption)


def _score(panel: Any, row: int, entry: Scored, name: str) -> None:
    value, limits = getattr(entry.mean, name), getattr(entry.intervals, name, None)
    if value is None:
        return
    colour = PALETTE[row % len(PALETTE)]
    if limits is not None:
        panel.plot([100 * limits.low, 100 * limits.high], [row, row], color=colour, lw=2.2, alpha=0.65)
    panel.plot(100 * value, row, "o", ms=6, color=colour, mew=0)
    panel.annotate(percent(value), (100 * value, row), (0, 6), textcoords="offset points", ha="center", size=7)
    theirs = getattr(entry.published, name, None)
    if theirs is not None:
        panel.plot(theirs, row, "D", ms=5, mfc="none", mec=INK, mew=0.9)


def recall_picture(data: str, classes: Sequence[str], entries: Sequence[Entry]) -> Picture:
    """Draw the recall of every class: one mark a row, side by side within the class; published
    recalls as hollow diamonds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + len(classes) * (0.2 + 0.11 * len(entries))), layout="constrained")
        axes = figure.add_subplot()
        for row, entry in enumerate(entries):
            offset = (row - (len(entries) - 1) / 2) * 0.7 / max(1, len(entries))
            there = [(100 * share, k + offset) for k, share in enumerate(entry.mean.recall) if share is not None]
            mark, colour = MARKS[row % len(MARKS)], PALETTE[row % len(PALETTE)]
            axes.plot(*zip(*there), mark, color=colour, ms=5, mew=0, label=picture_label(entry.label))
        for k in range(1, len(classes)):
            axes.axhline(k - 0.5, color="#888888", alpha=0.25, lw=0.6)
            recalls = entry.published.recalls(classes) if entry.published else []
            quoted = [(share, k + offset) for k, share in enumerate(recalls) if share is not None]
            if quoted:
                axes.plot(*zip(*quoted), "D", ms=4.5, mfc="none", mec=colour, mew=0.9)
        axes.set_yticks(range(len(classes)), [picture_label(name) for name in classes])
        axes.set(xlim=(-1, 101), ylim=(len(classes) - 0.5, -0.5), xlabel="recall (%)")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handletextpad=0.2, borderpad=0)
        hollow = any(each.published and each.published.recall for each in entries)
        legend = " Hollow diamonds: published." if hollow else ""
        return picture_of(figure, caption=f"Recall per class on {data}, mean over folds and seeds.{legend}")


def reliability_picture(data: str, found: Sequence[tuple[str, Calibration]]) -> Picture:
    """Draw accuracy over confidence by bins of confidence; on the dashed line a model is calibrated."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.9 + 0.16 * len(found)), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=INK, lw=0.8, ls="--", alpha=0.6)
        for row, (label, calibration) in enumerate(found):
            points = [(100 * each.confidence, 100 * each.accuracy, each.clips) for each in calibration.bins]
            sure, right, clips = (np.array(column) for column in zip(*points))
            colour = PALETTE[row % len(PALETTE)]
            name = f"{picture_label(label)}: ECE {percent(calibration.ece)} %"
            axes.plot(sure, right, color=colour, lw=1.2, label=name)
            axes.scatter(sure, right, s=6 + 60 * clips / clips.sum(), color=colour, alpha=0.85, lw=0)
        axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence (%)", ylabel="accuracy (%)", aspect="equal")
        figure.legend(loc="outside upper left", frameon=False, borderpad=0)
        caption = (
            f"Reliability on {data}: 15 bins of the predicted class's probability; the size of a dot is its clips."
        )
        return picture_of(figure, caption=caption)
