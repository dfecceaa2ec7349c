"""Intervals, tests and calibration over the clips of a test split. Imports no torch.

Letters: N clips, K classes, R resamples. A stratum is the clips of one true class in one fold. The value of a clip is 1
if its prediction is right and 0 if it is wrong; the mean over seeds if several runs answered for it; the difference of
two runs' values where they are compared.

**Stratification rule.** A resample draws clips with replacement inside every stratum, as many as it has. So every
resample has the class sizes of the data set, and UAR never loses a rare class. WAR and UAR, of a fold, pooled or mean
over folds, are weighted sums of the means of the strata.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Stratum = tuple[int, int]
"""Fold and true class."""
Levels = tuple[Floats, NDArray[np.int64]]
"""The distinct values [L] of the clips of a stratum, ascending, and the number of clips with each [L]."""
Strata = Mapping[Stratum, Levels]
"""Every stratum that has clips."""
Weights = dict[Stratum, float]
"""The weight of every stratum's mean in a score."""
RESAMPLES = 2000
LEVEL = 0.95
"""Share of the resampled scores inside an interval, with equal tails: the percentile bootstrap."""
BINS = 15
"""Bins of the calibration error, as in Guo et al., ICML 2017, section 5."""
SEED = 20_231
"""Seed of the resamples: the same clips give the same interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score and the quantiles of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """The intervals of UAR and WAR, from 0 to 1; of differences from -1 to 1."""

    uar: Interval
    war: Interval


def strata_of(folds: Mapping[int, tuple[Sequence[int], Sequence[float]]]) -> dict[Stratum, Levels]:
    """Group values by fold and true class. folds: by number, labels [N] and values [N] of the fold's clips."""
    found: dict[Stratum, Levels] = {}
    for fold, (labels, values) in folds.items():
        classes, numbers = np.asarray(labels), np.asarray(values, np.float64)
        found |= {(fold, int(k)): _levels(numbers[classes == k]) for k in np.unique(classes)}
    return found


def _levels(values: Floats) -> Levels:
    levels, counts = np.unique(values, return_counts=True)
    return levels, counts.astype(np.int64)


def strata_of_counts(folds: Mapping[int, Sequence[Sequence[int]]]) -> dict[Stratum, Levels]:
    """Make the strata of confusion matrices by fold, rows the truth: clips have the value 1 if they were right, else 0.
    Raises OverflowError for counts beyond int64."""
    rows = {(fold, k): (row[k], sum(row)) for fold, matrix in folds.items() for k, row in enumerate(matrix)}
    pairs = {key: np.array([clips - right, right], np.int64) for key, (right, clips) in rows.items() if clips}
    return {key: (np.array([0.0, 1.0])[counts > 0], counts[counts > 0]) for key, counts in pairs.items()}


def _size(levels: Levels) -> int:
    return int(levels[1].sum())


def _mean(levels: Levels) -> float:
    return float(levels[0] @ levels[1]) / _size(levels)


def war_pooled(strata: Strata) -> Weights:
    """Weights of WAR over all clips: every clip weighs the same."""
    whole = sum(map(_size, strata.values()))
    return {key: _size(levels) / whole for key, levels in strata.items()}


def uar_pooled(strata: Strata) -> Weights:
    """Weights of UAR over all clips: every class weighs the same, and every clip of a class."""
    sizes: dict[int, int] = {}
    for (_, k), levels in strata.items():
        sizes[k] = sizes.get(k, 0) + _size(levels)
    return {(fold, k): _size(levels) / sizes[k] / len(sizes) for (fold, k), levels in strata.items()}


def of_folds(pooled: Callable[[Strata], Weights], strata: Strata) -> Weights:
    """Weights of the mean over folds of a score. pooled: `war_pooled` or `uar_pooled`. A fold's UAR leaves out classes
    without clips in that fold."""
    folds = sorted({fold for fold, _ in strata})
    found: Weights = {}
    for fold in folds:
        own = {key: levels for key, levels in strata.items() if key[0] == fold}
        found |= {key: weight / len(folds) for key, weight in pooled(own).items()}
    return found


def resampled(strata: Strata, weights: Sequence[Weights], *, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Resample scores, float64 [len(weights) R]. weights: of each score; all are computed from the same draws.

    Clips with equal values are interchangeable, so the number of draws of each value is drawn at once, from the
    multinomial distribution.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros((len(weights), resamples))
    for key in sorted(strata):
        values, counts = strata[key]
        size = _size(strata[key])
        means = rng.multinomial(size, counts / size, size=resamples) @ values / size
        for row, own in zip(found, weights):
            row += own[key] * means
    return found


def intervals(
    strata: Strata, *, folds: bool = False, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> Intervals:
    """Compute UAR and WAR over all clips (folds=False), or their means over folds, with bootstrap intervals.

    The intervals say how much the scores would vary with other test clips of the same classes. They say nothing about
    other seeds or training clips.
    """
    kinds = (uar_pooled, war_pooled)
    weights = [of_folds(kind, strata) if folds else kind(strata) for kind in kinds]
    draws = resampled(strata, weights, resamples=resamples, seed=seed)
    tails = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1)
    values = [sum(own[key] * _mean(strata[key]) for key in strata) for own in weights]
    uar, war = (Interval(value=v, low=float(tails[0, i]), high=float(tails[1, i])) for i, v in enumerate(values))
    return Intervals(uar=uar, war=war)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The exact test of McNemar between two runs on the same clips. first_only, second_only: clips that one run alone
    classified rightly. p: probability of a split at least as uneven if both runs were equally good; two-sided."""

    first_only: int
    second_only: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Test whether two runs have different WAR. first, second: whether each clip was right, in the same order."""
    from scipy.stats import binomtest  # imported here: it takes a second, and only comparisons need it

    one, two = np.asarray(first, bool), np.asarray(second, bool)
    only = int((one & ~two).sum()), int((two & ~one).sum())
    p = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return McNemar(first_only=only[0], second_only=only[1], p=p)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The clips whose highest probability lies in (low, high]. confidence: its mean; accuracy: share of right ones."""

    low: float
    high: float
    clips: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The expected calibration error, from 0 to 1: the mean over clips of |accuracy - confidence| of their bin. bins:
    those with clips, in order; all bins are equally wide."""

    ece: float
    bins: tuple[Bin, ...]


def calibration(confidence: Sequence[float], right: Sequence[bool], *, bins: int = BINS) -> Calibration:
    """Compute the calibration of predictions. confidence: probability of the predicted class [N]; right: [N]."""
    sure, correct = np.asarray(confidence, np.float64), np.asarray(right, bool)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in np.unique(place).tolist():
        inside = place == number
        found.append(
            Bin(
                low=number / bins,
                high=(number + 1) / bins,
                clips=int(inside.sum()),
                confidence=float(sure[inside].mean()),
                accuracy=float(correct[inside].mean()),
            )
        )
    ece = sum(each.clips * abs(each.accuracy - each.confidence) for each in found) / len(sure)
    return Calibration(ece=ece, bins=tuple(found))
