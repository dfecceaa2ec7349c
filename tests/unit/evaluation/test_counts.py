"""Counts and scores against plain loops over lists, and what must not change them."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.errors import DataError
from dfer.evaluation.counts import confusion
from dfer.evaluation.scores import percent, rank_mean, scores, total
from dfer.recognition import PADDING

CLASSES = 4
ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(-3, 3), min_size=CLASSES, max_size=CLASSES),  # whole numbers, so ties happen
        st.integers(0, CLASSES - 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


def counted(rows):
    """The function under test on (logits, label, is padding) rows; padding carries a label that is out of range."""
    labels = [PADDING if padding else label for _, label, padding in rows]
    index = [PADDING if padding else i for i, (_, _, padding) in enumerate(rows)]
    logits = torch.tensor([row[0] for row in rows], dtype=torch.float32)
    return confusion(logits, labels=torch.tensor(labels), index=torch.tensor(index), num_classes=CLASSES)


@given(ROWS)
def test_confusion_equals_a_loop_over_the_rows(rows):
    expected = [[0] * CLASSES for _ in range(CLASSES)]
    for logits, label, padding in rows:
        if not padding:
            expected[label][logits.index(max(logits))] += 1
    found = counted(rows)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_neither_order_nor_batches_nor_padding_change_the_counts(rows, random, size):
    whole = counted(rows)
    shuffled = random.sample(rows, len(rows))
    padded = [*shuffled, ([9] * CLASSES, 1, True), ([0] * CLASSES, 3, True)]
    parts = [counted(padded[i : i + size]) for i in range(0, len(padded), size)]
    assert torch.equal(sum(parts), whole)


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
def test_scores_equal_exact_fractions(matrix):
    clips = sum(map(sum, matrix))
    if not clips:
        with pytest.raises(DataError):
            scores(matrix)
        return
    found = scores(matrix)
    shares = [Fraction(matrix[k][k], sum(matrix[k])) for k in range(3) if sum(matrix[k])]
    assert found.war == pytest.approx(float(Fraction(sum(matrix[k][k] for k in range(3)), clips)))
    assert found.uar == pytest.approx(float(sum(shares) / len(shares)))
    assert found.num_clips == clips
    assert 0 <= found.uar <= 1 and 0 <= found.war <= 1


def test_a_class_without_clips_has_no_recall_and_uar_leaves_it_out():
    found = scores([[3, 1, 0], [0, 0, 0], [0, 1, 1]])
    assert found.recall == (0.75, None, 0.5)
    assert found.uar == 0.625
    assert found.empty_classes == (1,)
    assert percent(found.recall[1]) == "–"


def test_dk_clips_published_fold_is_reproduced_from_its_recalls():
    """DK-CLIP, DFEW fold 1: UAR 63.29 is the mean of the seven printed recalls."""
    recalls = (9427, 7677, 7841, 7808, 6907, 938, 3709)
    matrix = [[0] * 7 for _ in recalls]
    for k, hits in enumerate(recalls):
        matrix[k][k], matrix[k][(k + 1) % 7] = hits, 10_000 - hits
    assert percent(scores(matrix).uar) == "63.30"  # the paper cuts 63.2957 off
    assert abs(100 * scores(matrix).uar - 63.29) < 0.01


def test_no_clip_at_all_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"expected at least one clip, got none\. Check the partitions") as caught:
        scores([[0, 0], [0, 0]])
    assert caught.value.exit_code == 3


def test_pooled_scores_weigh_clips_not_folds():
    large, small = scores([[90, 10], [0, 100]]), scores([[0, 2], [2, 0]])
    pooled = total([large, small])
    assert pooled.confusion == ((90, 12), (2, 100))
    assert pooled.war == pytest.approx(190 / 204)


def test_shares_print_as_percent_with_two_decimals():
    assert [percent(x) for x in (0.59614, 1.0, 0.0, None)] == ["59.61", "100.00", "0.00", "–"]


# --- means over ranks


def dealt(even: list[tuple[int, int]], odd: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Labels and answers of (label, answer) pairs at even and odd positions; class 0, always right, fills up."""
    size = max(len(even), len(odd))
    halves = [pairs + [(0, 0)] * (size - len(pairs)) for pairs in (even, odd)]
    clips = [pair for both in zip(*halves) for pair in both]
    return [label for label, _ in clips], [answer for _, answer in clips]


def test_disgust_in_dfew_s_first_fold_as_dk_clip_publishes_it() -> None:
    """3 of 16 clips on one rank and 0 of 13 on the other: published as 9.38; over the test split it is 10.34.
    Class 0 is on the second rank alone."""
    labels, answers = dealt([(1, 1)] * 3 + [(1, 0)] * 13, [(1, 0)] * 13)
    found = rank_mean(labels, answers, ranks=2, num_classes=2)
    assert percent(found.recall[1]) == "9.38" and found.uar == pytest.approx((1 / 2 + 3 / 32) / 2)
    counts = [[sum(pair == (i, j) for pair in zip(labels, answers)) for j in range(2)] for i in range(2)]
    assert percent(scores(counts).recall[1]) == "10.34"


def test_a_class_that_a_rank_does_not_have_counts_0_there() -> None:
    labels, answers = dealt([(1, 1), (1, 1)], [])
    found = rank_mean(labels, answers, ranks=2, num_classes=3)
    assert found.recall == (0.5, 0.5, 0.0)  # rank 0 has class 1 alone, rank 1 class 0 alone, none has class 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_one_rank_has_the_recalls_of_the_whole_split(clips: list[tuple[int, int]]) -> None:
    labels, answers = zip(*clips)
    found = rank_mean(labels, answers, ranks=1, num_classes=4)
    counts = [[sum(pair == (i, j) for pair in clips) for j in range(4)] for i in range(4)]
    assert found.recall == tuple(share or 0.0 for share in scores(counts).recall)
