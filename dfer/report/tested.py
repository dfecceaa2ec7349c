"""Results of one run's folds and seeds on one test set: intervals, calibration, what each clip came out as.

A run has one such set of results of its own, and further ones: of the last checkpoint where the selection rule chose
another one, and of the same weights on other clips or seen otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dfer.evaluation.answers import Answers, read_answers
from dfer.evaluation.results import FoldResult
from dfer.evaluation.scores import Scores, total
from dfer.evaluation.statistics import (
    Calibration,
    Intervals,
    Strata,
    calibration,
    intervals,
    strata_of,
    strata_of_counts,
)
from dfer.storage import Folder

Kind = Literal["run", "last", "other"]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What the clips of one fold came out as. keys: of the N clips; labels: int64 [N]; values: the share of the runs
    that were right, float64 [N]; first: whether the first of the runs was right, bool [N]."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]
    first: NDArray[np.bool_]


@dataclass(frozen=True)
class Tested:
    """Results on one test set, by name of the part. name: what distinguishes them from the run's own, or nothing.
    files: of the results, by name of the part, empty if there are no predictions beside them. homes: folders of the
    parts.

    Runs that were tested on the same clips, such as several seeds, form a group, which counts every clip once.
    """

    kind: Kind
    name: str
    files: Mapping[str, str]
    results: Mapping[str, FoldResult]
    homes: Mapping[str, Folder]

    @property
    def first(self) -> FoldResult:
        """Any of the results."""
        return next(iter(self.results.values()))

    @property
    def pooled(self) -> Scores:
        """The scores of the sum of all counts."""
        return total([each.scores for each in self.results.values()])

    @property
    def groups(self) -> dict[int, list[str]]:
        """Names of the parts by the fold that they were tested on."""
        found: dict[int, list[str]] = {}
        for part, result in self.results.items():
            found.setdefault(result.fold, []).append(part)
        return dict(sorted(found.items()))

    @property
    def even(self) -> bool:
        """Whether every fold was tested by equally many runs, so that means over results are means over folds."""
        return len({*map(len, self.groups.values())}) == 1

    @cached_property
    def answers(self) -> dict[str, Answers] | None:
        """The predictions by part; None if some are missing. Raises CheckpointError if a file is damaged."""
        if not self.files:
            return None
        found = {
            part: read_answers(self.homes[part], result, beside=self.files[part])
            for part, result in self.results.items()
        }
        there = {part: answers for part, answers in found.items() if answers is not None}
        return there if len(there) == len(found) else None

    @cached_property
    def outcomes(self) -> dict[int, Outcomes] | None:
        """What the clips came out as, by fold; None without predictions, or if the runs of a fold saw other clips."""
        answers = self.answers
        if answers is None:
            return None
        found = {}
        for fold, parts in self.groups.items():
            merged = _merged([answers[part] for part in parts])
            if merged is None:
                return None
            found[fold] = merged
        return found

    @cached_property
    def strata(self) -> Strata | None:
        """The values of the clips by fold and class; None if they are not known."""
        if all(len(parts) == 1 for parts in self.groups.values()):
            return strata_of_counts({result.fold: result.confusion for result in self.results.values()})
        known = self.outcomes
        if known is None or not self.even:
            return None
        return strata_of({fold: (each.labels.tolist(), each.values.tolist()) for fold, each in known.items()})

    def intervals(self, *, folds: bool) -> Intervals | None:
        """Intervals of the pooled scores, or of their means over folds; None if the outcomes are not known."""
        return None if self.strata is None else intervals(self.strata, folds=folds)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Calibration over all predictions; None without predictions."""
        if self.answers is None:
            return None
        every = list(self.answers.values())
        sure, right = (np.concatenate(each) for each in zip(*((one.confidence, one.right) for one in every)))
        return calibration(sure.tolist(), right.tolist())


def _merged(answers: Sequence[Answers]) -> Outcomes | None:
    """Average over runs on the same clips; None if these are not the same."""
    first = answers[0]
    rights = []
    for each in answers:
        place = {key: row for row, key in enumerate(each.keys)}
        if place.keys() != {*first.keys}:
            return None
        order = np.array([place[key] for key in first.keys], np.int64)
        if not np.array_equal(each.labels[order], first.labels):
            return None
        rights.append(each.right[order])
    values = np.mean(np.array(rights, np.float64), axis=0)
    return Outcomes(keys=first.keys, labels=first.labels, values=values, first=rights[0])


@dataclass(frozen=True, kw_only=True)
class ReportIntervals:
    """Intervals of every part by name, of the mean over folds and seeds, and of the pooled scores. The last two are
    None where they are not known: some seeds lack folds, or several seeds have no predictions of the same clips."""

    parts: Mapping[str, Intervals]
    mean: Intervals | None
    pooled: Intervals | None


def intervals_of(tested: Tested) -> ReportIntervals:
    """Compute the intervals of a report. Raises CheckpointError if predictions that are needed are damaged."""
    parts = {part: intervals(strata_of_counts({1: found.confusion})) for part, found in tested.results.items()}
    return ReportIntervals(parts=parts, mean=tested.intervals(folds=True), pooled=tested.intervals(folds=False))
