"""A page of the most confident wrong answers of a run: pictures of each clip, its key, true and predicted class."""

from base64 import b64encode
from dataclasses import dataclass
from html import escape

from dfer.evaluation.scores import percent
from dfer.report.compare_page import page_of
from dfer.report.crossval import label

NAMES = ("first", "middle", "last")


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A clip that was classified wrongly. part: `fold_3`, empty for a single run. probability: of the predicted class;
    of_truth: of the true one. pictures: JPEGs of its first, middle and last frame."""

    part: str
    key: str
    truth: str
    predicted: str
    probability: float
    of_truth: float
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ErrorPage:
    """The most confident mistakes of a run, most confident first. clips, wrong: of all tested folds. warning: of the
    protocol, such as LEAKS LABEL, or nothing."""

    run: str
    method: str
    data: str
    clips: int
    wrong: int
    mistakes: tuple[Mistake, ...]
    warning: str = ""

    @property
    def counted(self) -> str:
        """How many clips are wrong, and the warning."""
        said = f"{self.wrong:,} of {self.clips:,} test clips are wrong"
        return f"{said}, {self.warning}" if self.warning else said


STYLE = (
    "<style>.errors { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); "
    "gap: 1.25rem; } .errors figure { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; } "
    ".errors img { width: 32%; max-width: 112px; } .errors b { color: var(--ink); } "
    ".errors figcaption { overflow-wrap: anywhere; }</style>"
)


def error_page(found: ErrorPage) -> str:
    """Make the self-contained HTML page. Everything from the run folder is escaped."""
    title = ", ".join(filter(None, (f"Most confident errors: {found.method} on {found.data}", found.warning)))
    said = (
        f"{found.run}: {found.counted}; these are the {len(found.mistakes):,} "
        "with the highest probability of the wrong class. Pictures: first, middle and last frame."
    )
    figures = "".join(map(_figure, found.mistakes)) or '<p class="soft">There are none.</p>'
    head = f'<header><h1>{escape(title)}</h1><p class="soft">{escape(said)}</p></header>'
    return page_of(title, f'{STYLE}{head}<section><div class="errors">{figures}</div></section>')


def _figure(mistake: Mistake) -> str:
    pictures = "".join(
        f'<img alt="{name} frame" src="data:image/jpeg;base64,{b64encode(data).decode()}"> '
        for name, data in zip(NAMES, mistake.pictures)
    )
    part = f", {escape(label(mistake.part))}" if mistake.part else ""
    said = (
        f"<b>{escape(mistake.predicted)}</b> {percent(mistake.probability)} %; truth: <b>{escape(mistake.truth)}</b> "
        f"{percent(mistake.of_truth)} %<br>{escape(mistake.key)}{part}"
    )
    return f"<figure>{pictures}<figcaption>{said}</figcaption></figure>"


def error_lines(found: ErrorPage) -> str:
    """Format the mistakes for the terminal."""
    lines = [
        f"{each.key}{f' ({label(each.part)})' if each.part else ''}: {each.predicted} {each.probability:.2f}, truth "
        f"{each.truth} {each.of_truth:.2f}"
        for each in found.mistakes
    ]
    return "\n".join([found.counted, *lines])
