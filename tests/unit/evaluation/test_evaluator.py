"""Evaluation in one process: every clip once, or no score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.errors import DataError, NonFiniteLossError
from dfer.evaluation.evaluator import evaluate
from dfer.recognition import PADDING, ClipBatch, Recognition

CPU = torch.device("cpu")
CLASSES = 3


def batch(index, labels):
    """Frames carry the clip's position, so that the model's answer follows the clip, not the row."""
    index = torch.tensor(index)
    frames = index.clamp(min=0).to(torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 2, 2)
    return ClipBatch(frames=frames, labels=torch.tensor(labels), index=index)


def forward(clips):
    """Logits from the frames alone; clip i is answered with class i % 3."""
    position = clips.frames[:, 0, 0, 0, 0].long()
    logits = torch.nn.functional.one_hot(position % CLASSES, CLASSES).float() + position[:, None] / 1000
    return Recognition(logits=logits)


def run(batches, expected, *, model=forward, **options):
    return evaluate(model, batches, num_classes=CLASSES, expected=expected, device=CPU, **options)


@given(st.integers(1, 30), st.integers(1, 7), st.randoms(use_true_random=False))
def test_scores_and_predictions_do_not_depend_on_batches(num_clips, size, random):
    labels = [random.randrange(CLASSES) for _ in range(num_clips)]
    order = random.sample(range(num_clips), num_clips) + [PADDING] * (-num_clips % size)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    found = run(
        [batch(ids, [labels[i] if i >= 0 else -1 for i in ids]) for ids in batches], num_clips, predictions=True
    )
    assert found.predictions.labels.tolist() == labels
    assert found.predictions.predicted.tolist() == [i % CLASSES for i in range(num_clips)]
    assert found.scores.war == pytest.approx(sum(i % CLASSES == y for i, y in enumerate(labels)) / num_clips)
    assert found.scores.num_clips == num_clips
    assert torch.allclose(found.predictions.probabilities.sum(dim=1), torch.ones(num_clips, dtype=torch.float64))


def test_predictions_are_left_out_unless_asked_for_and_no_gradient_is_kept():
    weight = torch.ones(CLASSES, requires_grad=True)
    seen = []

    def model(clips):
        seen.append(weight * forward(clips).logits)
        return Recognition(logits=seen[-1])

    assert run([batch([0, 1], [0, 1])], 2, model=model).predictions is None
    assert not seen[0].requires_grad


def test_a_missing_clip_is_named_with_both_totals():
    with pytest.raises(
        DataError, match=r"expected 4 clips, each once, got 3 clips: 1 missing \(c\)\. No score"
    ) as caught:
        run([batch([0, 1, 3], [0, 1, 0])], 4, keys=["a", "b", "c", "d"])
    assert caught.value.exit_code == 3


def test_a_repeated_clip_is_named_even_when_the_total_is_right():
    with pytest.raises(DataError, match="got 3 clips: 1 missing \\(2\\), 1 repeated \\(0\\)"):
        run([batch([0, 1], [0, 1]), batch([0], [0])], 3)


@pytest.mark.parametrize(("index", "label"), [(5, 0), (-2, 0), (1, 3), (1, -1)])
def test_rows_outside_the_split_or_its_classes_are_refused(index, label):
    text = f"expected index 0..1 and label 0..2, got index {index} with label {label}"
    with pytest.raises(DataError, match=text):
        run([batch([0, index], [0, label])], 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_give_no_score(value):
    def model(clips):
        logits = forward(clips).logits
        logits[clips.index == 1, 2] = value
        return Recognition(logits=logits)

    with pytest.raises(NonFiniteLossError, match="got 1 of 2 clips with NaN or infinity \\(b\\)") as caught:
        run([batch([0, 1], [0, 1])], 2, model=model, keys=["a", "b"])
    assert caught.value.exit_code == 4


def test_padding_may_hold_anything():
    def model(clips):
        return Recognition(logits=forward(clips).logits.masked_fill((clips.index == PADDING)[:, None], math.nan))

    found = run([batch([0, PADDING], [0, 77])], 1, model=model, predictions=True)
    assert found.scores.confusion == ((1, 0, 0), (0, 0, 0), (0, 0, 0))
    assert found.predictions.logits.isfinite().all()


def test_logits_of_another_width_are_refused():
    with pytest.raises(DataError, match=r"expected logits \[2 3\], got \[2, 5\]"):
        run([batch([0, 1], [0, 1])], 2, model=lambda clips: Recognition(logits=torch.zeros(2, 5)))


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="expected at least one clip, got 0"):
        run([], 0)


def test_equal_logits_in_bf16_count_for_the_lowest_class_in_counts_and_predictions():
    def model(clips):
        return Recognition(logits=torch.tensor([[25.0, 25.01, 3.0]], dtype=torch.bfloat16))

    found = run([batch([0], [1])], 1, model=model, predictions=True)
    assert found.predictions.predicted.tolist() == [0]
    assert found.scores.confusion[1] == (1, 0, 0)
