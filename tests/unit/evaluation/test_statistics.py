"""Intervals, McNemar's test and calibration against hand-computed cases, exact distributions and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from dfer.evaluation.scores import scores
from dfer.evaluation.statistics import (
    calibration,
    intervals,
    mcnemar,
    of_folds,
    resampled,
    strata_of,
    strata_of_counts,
    uar_pooled,
    war_pooled,
)

MATRICES = {1: [[8, 2, 0], [1, 3, 0], [0, 0, 0]], 2: [[5, 5, 0], [0, 1, 1], [2, 0, 6]]}
"""Two folds; the first has no clips of the third class."""


def test_the_values_are_the_scores_of_the_counts() -> None:
    strata = strata_of_counts(MATRICES)
    one, two = (scores(MATRICES[fold]) for fold in (1, 2))
    total = scores(np.add(MATRICES[1], MATRICES[2]).tolist())
    pooled, mean = intervals(strata), intervals(strata, folds=True)
    assert (pooled.uar.value, pooled.war.value) == pytest.approx((total.uar, total.war))
    assert (mean.uar.value, mean.war.value) == pytest.approx(((one.uar + two.uar) / 2, (one.war + two.war) / 2))
    # By hand: recalls of the pooled counts 13/20, 4/6, 6/8; of the folds (8/10 + 3/4)/2 and (5/10 + 1/2 + 6/8)/3.
    assert pooled.uar.value == pytest.approx((13 / 20 + 4 / 6 + 6 / 8) / 3)
    assert mean.uar.value == pytest.approx((0.775 + 1.75 / 3) / 2)


def test_weights_by_hand() -> None:
    strata = strata_of_counts(MATRICES)
    assert war_pooled(strata)[1, 0] == pytest.approx(10 / 34)
    assert uar_pooled(strata)[1, 0] == pytest.approx(10 / 20 / 3)
    assert of_folds(uar_pooled, strata)[1, 0] == pytest.approx(1 / 2 / 2)
    for weights in (war_pooled(strata), uar_pooled(strata), of_folds(war_pooled, strata)):
        assert sum(weights.values()) == pytest.approx(1)


def test_labels_and_values_give_the_strata_of_their_counts() -> None:
    labels = [0] * 10 + [1] * 4
    right = [True] * 8 + [False] * 2 + [False] + [True] * 3
    found, expected = strata_of({1: (labels, right)}), strata_of_counts({1: MATRICES[1]})
    assert found.keys() == expected.keys()
    for key, (values, counts) in found.items():
        assert (values.tolist(), counts.tolist()) == tuple(each.tolist() for each in expected[key])


@pytest.mark.parametrize(("right", "clips"), [(70, 100), (3, 29), (940, 1000)])
def test_one_class_gives_the_quantiles_of_the_binomial_distribution(right: int, clips: int) -> None:
    found = intervals(strata_of_counts({1: [[right, clips - right], [0, 0]]}), resamples=100_000).war
    exact = stats.binom(clips, right / clips).ppf([0.025, 0.975]) / clips
    assert [found.low, found.high] == pytest.approx(exact.tolist(), abs=1.01 / clips)


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    values = np.random.default_rng(3).choice([0.0, 0.5, 1.0], size=200, p=[0.2, 0.3, 0.5])
    ours = intervals(strata_of({1: ([0] * 200, values.tolist())}), resamples=20_000).war
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_uar_of_unequal_classes_spreads_as_when_clips_are_drawn_one_by_one() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [300, 60, 12])
    right = rng.random(len(labels)) < np.array([0.9, 0.6, 0.3])[labels]
    strata = strata_of({1: (labels.tolist(), right.tolist())})
    ours = resampled(strata, [uar_pooled(strata), war_pooled(strata)], resamples=20_000)
    drawn = np.empty((2, 20_000))
    for r in range(20_000):
        means = [right[labels == k][rng.integers(0, n, n)].mean() for k, n in enumerate((300, 60, 12))]
        drawn[:, r] = np.mean(means), np.dot(means, (300, 60, 12)) / 372
    assert ours.mean(1) == pytest.approx(drawn.mean(1), abs=0.002)
    assert ours.std(1) == pytest.approx(drawn.std(1), rel=0.03)
    assert np.corrcoef(ours)[0, 1] == pytest.approx(np.corrcoef(drawn)[0, 1], abs=0.03)


def test_the_same_clips_give_the_same_interval_and_others_another() -> None:
    strata = strata_of_counts(MATRICES)
    assert intervals(strata) == intervals(dict(reversed(strata.items())))
    assert intervals(strata) != intervals(strata, seed=1)


def test_a_class_that_is_always_right_has_no_spread() -> None:
    found = intervals(strata_of_counts({1: [[9, 0], [0, 4]]}))
    assert (found.uar.low, found.uar.high, found.war.low, found.war.high) == (1, 1, 1, 1)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    """Two runs that differ in 10 of 1,000 clips: the difference is known far better than either score."""
    first = np.array([1.0] * 700 + [0.0] * 300)
    second = first.copy()
    second[700:710] = 1
    labels = ([0, 1] * 500)[:1000]
    both = intervals(strata_of({1: (labels, (second - first).tolist())})).war
    alone = intervals(strata_of({1: (labels, first.tolist())})).war
    assert both.value == pytest.approx(0.01)
    exact = stats.binom(1000, 0.01).ppf([0.025, 0.975]) / 1000
    assert (both.low, both.high) == pytest.approx(exact.tolist(), abs=0.0015)
    assert alone.high - alone.low > 4 * (both.high - both.low)


def test_mcnemar_by_hand_and_by_scipy() -> None:
    # 2 clips only the first run has right, 8 only the second: 2 * (1 + 10 + 45) / 2**10.
    first = [True] * 2 + [False] * 8 + [True] * 5 + [False] * 4
    second = [False] * 2 + [True] * 8 + [True] * 5 + [False] * 4
    found = mcnemar(first, second)
    assert (found.first_only, found.second_only) == (2, 8)
    assert found.p == pytest.approx(2 * sum(math.comb(10, i) for i in range(3)) / 2**10)
    assert found.p == pytest.approx(2 * stats.binom.cdf(2, 10, 0.5))
    assert mcnemar(second, first).p == pytest.approx(found.p)


def test_mcnemar_of_runs_that_agree_is_one() -> None:
    assert mcnemar([True, False], [True, False]).p == 1.0
    assert mcnemar([True, False], [False, True]).p == 1.0


def test_calibration_by_hand() -> None:
    # Five bins: 0.2 is the upper end of the first; (0.4, 0.6] has two clips, one right; (0.8, 1] two, both right.
    found = calibration([0.2, 0.5, 0.6, 0.9, 1.0], [True, True, False, True, True], bins=5)
    assert [(each.low, each.high, each.clips) for each in found.bins] == [
        (0.0, 0.2, 1),
        (pytest.approx(0.4), pytest.approx(0.6), 2),
        (pytest.approx(0.8), 1.0, 2),
    ]
    assert found.ece == pytest.approx((1 * 0.8 + 2 * abs(0.5 - 0.55) + 2 * abs(1 - 0.95)) / 5)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_excess() -> None:
    rng = np.random.default_rng(2)
    sure = rng.uniform(0.2, 1.0, 200_000)
    right = rng.random(len(sure)) < sure
    assert calibration(sure.tolist(), right.tolist()).ece < 0.01
    assert calibration([0.95] * 1000, ([True] * 70 + [False] * 30) * 10).ece == pytest.approx(0.25)
