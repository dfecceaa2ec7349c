"""The result of one fold as a JSON file, with all facts that a table needs to avoid comparing unlike results.

    RUN/results/test.json              a single run
    RUN/fold_2/results/test.json       a fold of a cross-validation
    RUN/results/test_predictions.csv   one row per test clip
    RUN/results/test-step_00000123.json, test-step_00000123_predictions.csv   of an incomplete training
    RUN/results/other-NAME.json, other-NAME_predictions.csv   the same weights on other clips, or seen otherwise

Scores are from 0 to 1 in the files; tables print percent. Published numbers are in percent, as papers print them.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from dfer.choices import LEAKS_LABEL, Selection
from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.errors import CheckpointError, message
from dfer.evaluation.scores import RankMean, Scores, scores
from dfer.run.changes import Change
from dfer.run.layout import RESULT, predictions_name, result_name, result_values
from dfer.storage import Folder
from dfer.store.format import Overlap, data_name

if TYPE_CHECKING:
    from dfer.evaluation.evaluator import Predictions

MAX_COUNT = 2**31
"""Largest count of a confusion matrix: no data set is as large."""
ELSEWHERE = "To leave the run as it is, write elsewhere: {command} --out FOLDER"
"""Advice for a run folder that can be read but not written."""
UNTRAINED = "weights not trained here"
"""Name of the training data of weights that are evaluated without training, in TrainedOn."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Numbers from a paper, shown beside this project's results and never mixed with them.

    uar, war: percent, as printed; uar is None where the paper gives accuracy alone. source: paper and table. selection:
    how the paper selected its checkpoint, `none` where nothing was trained. leaks_label: whether its model was given
    the true label of the test clips. note: what else a reader must know beside the numbers, in short words. recall:
    percent by class name, empty if the paper prints none. dataset: name of the data set's shards on a row of a
    published table, whose numbers stand beside results on that set alone; empty for numbers of the user's own.
    """

    uar: float | None = None
    war: float
    source: str
    selection: Literal["last", "best_on_val", "best_on_test", "none", "unknown"] = "unknown"
    leaks_label: bool = False
    note: str = ""
    recall: dict[str, float] = field(default_factory=dict)
    dataset: str = ""

    def __post_init__(self) -> None:
        for name, value in (("uar", self.uar), ("war", self.war)):
            if value is not None and not 1 < value <= 100:
                raise ConfigProblem(f"{name}: expected percent, 1 to 100, got {value}. Write 59.61, not 0.5961.")
        for name, value in self.recall.items():
            if not 0 <= value <= 100:
                raise ConfigProblem(f"recall.{name}: expected percent, 0 to 100, got {value}. Correct it.")
        if not self.source.strip():
            raise ConfigProblem("source: expected paper and table, got nothing. Say where the numbers are printed.")

    @property
    def text(self) -> str:
        """`59.61 / 71.25`: UAR and WAR in percent, a dash for an UAR that is not given."""
        return f"{'–' if self.uar is None else f'{self.uar:.2f}'} / {self.war:.2f}"

    def recalls(self, classes: Sequence[str]) -> list[float | None]:
        """Return the recalls of these classes in percent, None for those that the paper does not print."""
        return [self.recall.get(name) for name in classes]

    @property
    def warning(self) -> str:
        """What must stand beside the numbers: LEAKS_LABEL, or nothing."""
        return LEAKS_LABEL if self.leaks_label else ""

    def unlike(self, result: "FoldResult") -> bool:
        """Whether the numbers stand for another selection than a result. Where neither trained, there is none."""
        return self.selection != result.selection and (self.selection != "none" or result.epochs > 0)

    @property
    def described(self) -> str:
        """Source, selection and note, for the line below the numbers."""
        return "; ".join(filter(None, (self.source, f"selection: {self.selection}", self.note)))


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How test clips were presented to the model, and how training augmented its clips.

    num_frames: frames per clip (T). size: pixels per side. normalisation, views, augment, presentation: in words, for
    the reader. targets: what training aimed at, empty for labels. weights: which weights are evaluated, empty for those
    of training. leaks_label: whether the model was given the true label of the test clips. shuffled: whether the frames
    of each test clip were put into a random order.
    """

    num_frames: int
    size: int
    normalisation: str
    augment: str
    views: str = "1 view"
    targets: str = ""
    weights: str = ""
    presentation: str = ""
    leaks_label: bool = False
    shuffled: bool = False

    @property
    def warning(self) -> str:
        """What must stand beside every number: LEAKS_LABEL, or nothing."""
        return LEAKS_LABEL if self.leaks_label else ""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The data of the training, where the test clips are of other shards or another protocol. generated: as in
    FoldResult. fold: of the training's protocol. manifest_sha256: of the training's shards."""

    dataset: str
    generated: str = ""
    protocol: str
    fold: int
    manifest_sha256: str

    @property
    def data(self) -> str:
        """Name of the data for readers."""
        return data_name(self.dataset, generated=self.generated)


@dataclass(frozen=True, kw_only=True)
class LastResult:
    """The last checkpoint on the same test clips, beside the one that the selection rule chose."""

    step: int
    epoch: int
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """One checkpoint on one test split.

    fold: 1..num_folds. num_folds: folds of the data set's protocol (DFEW and MAFW 5, FERV39k's single split 1).
    confusion: K rows of K counts, rows the truth. war, uar, recall: from 0 to 1, recall None for a class without test
    clips. step, epoch: of the checkpoint. epochs: configured for the training, 0 for weights not trained here;
    complete: whether all epochs were trained, else this is an intermediate evaluation. stopped: epochs that a complete
    training did because of its early stop, 0 if it did all. changed: configuration changes made on resume.
    manifest_sha256: of the shards' manifest. finished: UTC, ISO 8601. seconds: wall clock time of the evaluation.
    clips: number evaluated, the sum of the confusion matrix. generated: seed and generator if the faces are generated
    in the layout of `dataset`. excluded: clips of all partitions that the split files name and the shards lack. start:
    run, step, selection and SHA-256 of the weights that the run started from, empty if it did not start from a run of
    this project. votes: training clips that have votes, and all of them, where `protocol.targets` are votes and only
    some clips have any.
    variants: scores of the method's other outputs for the same clips, by name. rank_mean: UAR and recalls as ranks
    would have computed them on their shares, None if not asked for; they stand beside the scores and replace none.
    last: the last checkpoint, if the rule may choose another one. trained: the data of the training, if the test clips
    are of other data; train_partitions are of that. joined: further data sets whose training clips were added. split:
    name of the shards' protocol that defines the folds, empty in results from before this field. overlap: of training
    and test in all folds of it, None where the shards do not say. remark: that the weights may have been trained on
    test clips, empty if that is not suspected. processes, micro_batch: of the training, where clips of a micro-batch
    depend on each other, as with batch statistics or mixing; 0 where they do not, for weights not trained here, and in
    results from before these fields.
    """

    version: Literal[1] = 1
    dataset: str
    generated: str = ""
    excluded: int = 0
    method: str
    fold: int
    num_folds: int
    train_partitions: tuple[str, ...]
    test_partitions: tuple[str, ...]
    validation: str = ""
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    war: float
    uar: float
    recall: tuple[float | None, ...]
    count: tuple[int, ...]
    clips: int
    selection: Selection
    step: int
    epoch: int
    epochs: int
    complete: bool
    stopped: int = 0
    changed: tuple[Change, ...] = ()
    seed: int
    protocol: Protocol
    checkpoint: str
    manifest_sha256: str
    finished: str
    seconds: float
    start: str = ""
    votes: tuple[int, int] | None = None
    variants: dict[str, Scores] = field(default_factory=dict)
    rank_mean: RankMean | None = None
    last: LastResult | None = None
    trained: TrainedOn | None = None
    joined: tuple[str, ...] = ()
    split: str = ""
    overlap: Overlap | None = None
    remark: str = ""
    processes: int = 0
    micro_batch: int = 0

    def __post_init__(self) -> None:
        problem = self._shape_problem() or self._score_problem() or self._variant_problem() or self._rank_problem()
        if problem:
            raise ConfigProblem(f"{problem}. Evaluate this fold again.")

    @property
    def data(self) -> str:
        """Name of the data for readers; says so if the faces are generated."""
        return data_name(self.dataset, generated=self.generated)

    @property
    def layout(self) -> str:
        """How a step was cut, where that decides what a training computes; else empty."""
        if not self.micro_batch:
            return ""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{processes} with micro-batches of {self.micro_batch}"

    @property
    def line(self) -> str:
        """`WAR 71.25, UAR 59.61` in percent, and the protocol's warning if it has one."""
        warning = f", {self.protocol.warning}" if self.protocol.warning else ""
        return f"WAR {100 * self.war:.2f}, UAR {100 * self.uar:.2f}{warning}"

    @property
    def scores(self) -> Scores:
        """The scores, computed from the confusion matrix."""
        return scores(self.confusion)

    def _shape_problem(self) -> str:
        size = len(self.classes)
        if not 1 <= self.fold <= self.num_folds:
            return f"fold: expected 1..{self.num_folds}, got {self.fold}"
        if not size or len(self.confusion) != size or any(len(row) != size for row in self.confusion):
            return f"confusion: expected {size} x {size} counts for the classes, got another number of them"
        if any(cell < 0 for row in self.confusion for cell in row) or not any(map(any, self.confusion)):
            return "confusion: expected counts of at least one clip, none below 0, got others"
        if any(cell > MAX_COUNT for row in self.confusion for cell in row):
            return f"confusion: expected counts of at most {MAX_COUNT:,} clips, got more"
        both = sorted(set(self.train_partitions) & set(self.test_partitions))
        if both and self.trained is None:
            return f"test_partitions: expected none of the training partitions, got {', '.join(both)} in both"
        return ""

    def _score_problem(self) -> str:
        """Return a problem unless the stored scores, kept for readers of the JSON, agree with the confusion matrix."""
        true = self.scores
        if (self.clips, self.count) != (true.num_clips, true.count):
            return f"clips, count: expected the sums of the confusion matrix, got {self.clips} and {self.count}"
        if not _agree(self, true):
            return "war, uar, recall: expected what the confusion matrix gives, got something else"
        return ""

    def _variant_problem(self) -> str:
        """Every variant, and the last checkpoint, must have answered for the same clips."""
        size = len(self.classes)
        last = {"last": self.last.scores} if self.last else {}
        for name, found in ({f"variants.{name}": found for name, found in self.variants.items()} | last).items():
            matrix = found.confusion
            if (
                len(matrix) != size
                or any(len(row) != size for row in matrix)
                or any(c < 0 for row in matrix for c in row)
            ):
                return f"{name}.confusion: expected {size} x {size} counts for the classes, got others"
            if found.count != self.count or tuple(map(sum, matrix)) != self.count:
                return f"{name}: expected the {self.clips} clips of the result, got others"
            if not _agree(found, scores(matrix)):
                return f"{name}: expected the scores that its confusion matrix gives, got something else"
        return ""

    def _rank_problem(self) -> str:
        """The means over ranks must be of this result's classes."""
        found = self.rank_mean
        if found is None:
            return ""
        size = len(self.classes)
        if len(found.recall) != size or not all(0 <= share <= 1 for share in found.recall):
            return f"rank_mean.recall: expected {size} numbers from 0 to 1, got others"
        if not _same(found.uar, sum(found.recall) / size):
            return "rank_mean.uar: expected the mean of its recalls, got something else"
        return ""


def _agree(given: FoldResult | Scores, true: Scores) -> bool:
    """Whether the scores are those of the matrix."""
    ours, theirs = (given.war, given.uar, *given.recall), (true.war, true.uar, *true.recall)
    return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs))


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, abs_tol=1e-9)


def fold_result(found: Scores, **facts: Any) -> FoldResult:
    """Build a result from scores and the remaining fields of FoldResult."""
    return FoldResult(
        confusion=found.confusion,
        war=found.war,
        uar=found.uar,
        recall=found.recall,
        count=found.count,
        clips=found.num_clips,
        **facts,
    )


def save_result(result: FoldResult, folder: Folder, *, name: str = "") -> None:
    """Write a result atomically into `folder` (of the run or the fold), as `name`, or as `file_of(result)`."""
    folder.write(name or file_of(result), (json.dumps(to_plain(result), indent=1) + "\n").encode())


def file_of(result: FoldResult) -> str:
    """Return the file name of a result, relative to its run or fold. Only a complete training's result ends the run."""
    return result_name(result.step, complete=result.complete)


def read_result(folder: Folder, name: str = RESULT) -> FoldResult:
    """Read and check a run's or fold's result. Raises CheckpointError that names the file, the field and the remedy."""
    path, plain = folder.where(name), result_values(folder, name)
    if plain is None:
        do = "Finish the run first: dfer train CONFIG."
        raise CheckpointError(message(path, expected="a result file", got="no such file", do=do))
    try:
        return from_plain(FoldResult, plain)
    except ConfigProblem as problem:
        raise CheckpointError(f"{path}: not a result of this version: {problem}") from problem


def save_predictions(
    answers: "Predictions", folder: Folder, *, keys: Sequence[str], classes: Sequence[str], beside: str = RESULT
) -> None:
    """Write the predictions that belong to a result file: key, label, predicted, a probability per class; in the order
    of the split."""
    folder.write(predictions_name(beside), predictions_csv(answers, keys=keys, classes=classes).encode())


def predictions_csv(answers: "Predictions", *, keys: Sequence[str], classes: Sequence[str]) -> str:
    """Format the predictions file: classes by name, probabilities with six decimals."""
    out = StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["key", "label", "predicted", *classes])
    columns = (keys, answers.labels.tolist(), answers.predicted.tolist(), answers.probabilities.tolist())
    for key, label, predicted, shares in zip(*columns, strict=True):
        table.writerow([key, classes[label], classes[predicted], *(f"{share:.6f}" for share in shares)])
    return out.getvalue()
