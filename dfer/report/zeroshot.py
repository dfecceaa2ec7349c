"""The results of the zero-shot suite, one file a data set, and the table over all of them. Imports no torch.

    RUN/SET/results/zeroshot.json                     confusion counts of every model, prompt kind and fold
    RUN/SET/results/MODEL-KIND_predictions.csv        one row per test clip

UAR and WAR are means over folds, as in the release of Exp-CLIP. Published numbers stand beside ours and are never mixed
with them. Letters: K classes, N clips, M prompt kinds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.emotions import canonical_name
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import Published
from dfer.evaluation.scores import Scores, scores, total
from dfer.evaluation.statistics import Intervals, Levels, Stratum, intervals, strata_of_counts
from dfer.report import exp_clip
from dfer.storage import Folder

RESULT = "results/zeroshot.json"
MAX_BYTES = 64 * 2**20
Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model of the suite. weights: of the towers, in words. head: file name of the projection, empty for plain CLIP;
    head_sha256 its SHA-256. released: `B32`, `B16` or `L14` for a released head of Exp-CLIP on its CLIP; tower: the
    same for OpenAI's weights of that CLIP, with any head or none. size: pixels. features: name of the folder of
    the stored features. files: SHA-256 of the towers' files, by key (`arch`, `pretrained`). head_note: if the
    head was fitted on other weights of this CLIP, which."""

    name: str
    arch: str
    weights: str
    head: str = ""
    head_sha256: str = ""
    released: str = ""
    tower: str = ""
    normalisation: str
    temperature: float
    size: int
    features: str
    files: dict[str, str] = field(default_factory=dict)
    head_note: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered with a prompt kind. confusion: counts [K K] of each fold, rows the truth."""

    model: str
    kind: str
    confusion: dict[str, Matrix]


@dataclass(frozen=True, kw_only=True)
class Together:
    """How often a model was right over all prompt kinds. right: of each fold, [K M+1]: the clips of each class by the
    number of kinds with which they were classified rightly."""

    model: str
    right: dict[str, Matrix]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a head changes with a prompt kind. plain: the model of the same towers without a head. change: of each fold,
    [K 3]: the clips of each class that the head alone got wrong, that both got right or wrong, that it alone got
    right."""

    model: str
    plain: str
    kind: str
    change: dict[str, Matrix]


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """One data set. name: in the configuration; data: the same for readers, with what it holds; dataset, generated: as
    in a manifest; source: shards or pictures.
    folds: test clips of each. clips: different ones. left_out: test clips of other classes. frames: T. short: clips of
    at most T frames, to which `short_clips` applies. sha256: of the manifest, or of the pictures' names and sizes.
    asked: identifies the configuration. seconds: wall clock time by step. complete: always true."""

    version: int = 1
    complete: bool = True
    name: str
    data: str
    dataset: str
    generated: str = ""
    source: str
    classes: tuple[str, ...]
    protocol: str
    folds: dict[str, int]
    clips: int
    left_out: int
    frames: int
    short_clips: str
    short: int
    precision: str
    sha256: str
    asked: str
    finished: str
    seconds: dict[str, float]
    kinds: tuple[str, ...]
    models: tuple[ModelFacts, ...]
    answers: tuple[Answer, ...]
    together: tuple[Together, ...]
    gains: tuple[Gain, ...] = ()

    def __post_init__(self) -> None:
        size, folds = len(self.classes), {*self.folds}
        shapes = [(answer.confusion, size) for answer in self.answers]
        shapes += [(each.right, len(self.kinds) + 1) for each in self.together]
        shapes += [(each.change, 3) for each in self.gains]
        for found, width in shapes:
            whole = {*found} == folds and all(
                len(rows) == size and all(len(row) == width and min(row) >= 0 for row in rows)
                for rows in found.values()
            )
            sums = {fold: sum(map(sum, rows)) for fold, rows in found.items()}
            if not whole or sums != self.folds:
                raise ConfigProblem("answers: expected counts of the clips of every fold, got others. Evaluate again.")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """UAR and WAR, from 0 to 1: means over folds."""

    uar: float
    war: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table of a data set. kind: the prompt kind, or that it is the mean of all. published: numbers to
    show beside it. pooled: the sum of the folds' counts; None for a mean of kinds."""

    model: str
    kind: str
    mean: Pair
    intervals: Intervals
    published: Published | None
    pooled: Scores | None

    @property
    def label(self) -> str:
        return f"{self.model}, {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better a model is than its plain towers on the same clips, from -1 to 1: means over folds, with paired
    intervals."""

    model: str
    plain: str
    kind: str
    intervals: Intervals


@dataclass(frozen=True, kw_only=True)
class SetTable:
    """The lines of one data set, grouped by model. differences: of heads and plain towers. readme: rows of the README
    table of Exp-CLIP's release by model, of no single prompt kind. notes: such as why published rows are left out."""

    result: SetResult
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    readme: dict[str, Published]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The whole table. absent: data sets that are not there, and why. waiting: those that are there without a result of
    this configuration. remark: the user's words about the table."""

    sets: tuple[SetTable, ...]
    absent: dict[str, str]
    waiting: tuple[str, ...]
    remark: str = ""


def write_result(result: SetResult, home: Folder) -> None:
    """Write the result of a data set into its folder. Raises StorageError."""
    home.write(RESULT, (json.dumps(to_plain(result), indent=1) + "\n").encode())


def read_result(home: Folder) -> SetResult | None:
    """Read the result of a data set; None if there is none. Raises CheckpointError for a damaged one."""
    data = home.read(RESULT, most=MAX_BYTES)
    if data is None:
        return None
    try:
        return from_plain(SetResult, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem) as error:
        got, do = f"something else ({str(error)[:300]})", "Delete it, and run the suite again."
        raise CheckpointError(message(home.where(RESULT), expected="a result of the suite", got=got, do=do)) from error


def suite_of(
    results: Sequence[SetResult], *, absent: Mapping[str, str], waiting: Sequence[str], remark: str = ""
) -> Suite:
    """Make the table of some results."""
    return Suite(sets=tuple(map(_table, results)), absent=dict(absent), waiting=tuple(waiting), remark=remark)


def _table(result: SetResult) -> SetTable:
    lines, readme = [], {}
    why = _departure(result)
    for model in result.models:
        lines += [_line(result, model, answer, why) for answer in result.answers if answer.model == model.name]
        if len(result.kinds) > 1:
            lines += [_mean_line(result, model, each, why) for each in result.together if each.model == model.name]
        row = None if why or (model.head and not model.released) else _readme(result, model)
        if row is not None:
            readme[model.name] = row
    quoted = [model.name for model in result.models if model.released or (model.tower and not model.head)]
    notes = [f"Published rows are left out: {why}."] if why and quoted else []
    notes += [f"{model.name}: {model.head_note}." for model in result.models if model.head_note]
    if result.left_out:
        notes.append(f"{result.left_out:,} test clips of other classes, or without one, are left out.")
    return SetTable(
        result=result,
        lines=tuple(lines),
        differences=tuple(map(_difference, result.gains)),
        readme=readme,
        notes=tuple(notes),
    )


def _difference(gain: Gain) -> Difference:
    found = intervals(_strata(gain.change, np.array([-1.0, 0.0, 1.0])), folds=True)
    return Difference(model=gain.model, plain=gain.plain, kind=gain.kind, intervals=found)


def _readme(result: SetResult, model: ModelFacts) -> Published | None:
    method = "Exp-CLIP" if model.released else "CLIP"
    return exp_clip.readme_row(method, model.tower, result.name)


def _departure(result: SetResult) -> str:
    """Say in what the evaluation is not that of the release; empty if it is, and for sets that the release has not."""
    name = result.name
    if name not in exp_clip.SETS:
        return ""
    if result.generated:
        return "the faces are generated"
    if result.source == "shards" and result.dataset != exp_clip.DATASETS.get(name, name):
        return f"the shards are of {result.dataset}"
    if others := _other_classes(result.classes, exp_clip.CLASSES[name]):
        return others
    if result.protocol not in ("published", "pictures") or len(result.folds) != exp_clip.FOLDS.get(name, 1):
        return f"folds {', '.join(result.folds)} of the protocol `{result.protocol}`"
    if result.frames not in (1, exp_clip.FRAMES):
        return f"{result.frames} frames a clip, not {exp_clip.FRAMES}"
    if result.short and result.short_clips != "repeat_first":
        return f"short_clips={result.short_clips}, the release repeats the first frame"
    return ""


def _other_classes(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Say which classes are not those of the release; empty if all are, in any order. theirs: canonical names."""
    named = [*map(canonical_name, ours)]
    if {*named} == {*theirs}:
        return ""
    more, fewer = ([name for name in a if name not in b] for a, b in ((named, theirs), (theirs, named)))
    odd = [f"with {', '.join(more)}"] if more else []
    odd += [f"without {', '.join(fewer)}"] if fewer else []
    return f"{len(named)} classes {' and '.join(odd)}, which are not the {len(theirs)} of the release"


def _line(result: SetResult, model: ModelFacts, answer: Answer, why: str) -> Line:
    folds = {int(fold): counts for fold, counts in answer.confusion.items()}
    each = [scores(counts) for counts in folds.values()]
    published = None if why else exp_clip.log_row(model.released, answer.kind, result.name)
    return Line(
        model=model.name,
        kind=answer.kind,
        mean=_mean([(one.uar, one.war) for one in each]),
        intervals=intervals(strata_of_counts(folds), folds=True),
        published=published,
        pooled=total(each),
    )


def _mean_line(result: SetResult, model: ModelFacts, each: Together, why: str) -> Line:
    """Make the line of the mean over prompt kinds. Its interval is over clips, each with its share of right kinds."""
    found = intervals(_strata(each.right, np.arange(len(result.kinds) + 1) / len(result.kinds)), folds=True)
    published = None if why else exp_clip.log_mean(model.released, result.kinds, result.name)
    return Line(
        model=model.name,
        kind=f"mean of {len(result.kinds)} kinds",
        mean=Pair(uar=found.uar.value, war=found.war.value),
        intervals=found,
        published=published,
        pooled=None,
    )


def _strata(counts: Mapping[str, Matrix], values: NDArray[np.float64]) -> dict[Stratum, Levels]:
    """Make strata of counts [K V] of each fold: clips of each class by their value, float64 [V]."""
    found: dict[Stratum, Levels] = {}
    for fold, rows in counts.items():
        for k, row in enumerate(rows):
            clips = np.array(row, np.int64)
            if clips.sum():
                found[int(fold), k] = (values[clips > 0], clips[clips > 0])
    return found


def _mean(pairs: Sequence[tuple[float, float]]) -> Pair:
    uar, war = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return Pair(uar=uar, war=war)
