"""The loss that methods share, held to plain arithmetic."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.models.losses import cross_entropy
from dfer.recognition import PADDING, ClipBatch, FeatureBatch

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 1.0], [9.0, -9.0, 0.0]])
LABELS = torch.tensor([0, 2, 1])
TARGETS = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])


def batch(index: list[int], targets: Tensor | None) -> ClipBatch:
    frames = torch.zeros(3, 1, 3, 2, 2, dtype=torch.uint8)
    return ClipBatch(frames=frames, labels=LABELS, index=torch.tensor(index), targets=targets)


def test_targets_replace_labels() -> None:
    """Minus the sum of p log q, row by row in double precision."""
    logs = LOGITS.double() - LOGITS.double().exp().sum(1, keepdim=True).log()
    expected = -(TARGETS.double() * logs).sum(1)
    assert cross_entropy(LOGITS, batch([4, 5, 6], TARGETS)).item() == pytest.approx(expected.mean().item(), abs=1e-6)


def test_certain_targets_are_labels() -> None:
    certain = F.one_hot(LABELS, 3).float()
    for index in ([4, 5, 6], [4, PADDING, 6]):
        assert torch.allclose(cross_entropy(LOGITS, batch(index, certain)), cross_entropy(LOGITS, batch(index, None)))


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["labels", "targets"])
def test_padding_contributes_nothing(targets: Tensor | None) -> None:
    logits = LOGITS.clone().requires_grad_()
    found = cross_entropy(logits, batch([4, 5, PADDING], targets))
    rest = cross_entropy(LOGITS[:2], part(targets))
    assert torch.allclose(found, rest)
    found.backward()
    assert logits.grad is not None and not logits.grad[2].any() and logits.grad[:2].any()
    assert cross_entropy(LOGITS, batch([PADDING] * 3, targets)).item() == 0


def part(targets: Tensor | None) -> FeatureBatch:
    """The first two rows, as features."""
    kept = targets[:2] if targets is not None else None
    return FeatureBatch(features={}, labels=LABELS[:2], index=torch.tensor([4, 5]), targets=kept)


def test_low_precision_logits_are_compared_in_fp32() -> None:
    low = cross_entropy(LOGITS.bfloat16(), batch([4, 5, 6], TARGETS))
    assert low.dtype == torch.float32 and low.item() == pytest.approx(
        cross_entropy(LOGITS.bfloat16().float(), batch([4, 5, 6], TARGETS)).item(), abs=1e-6
    )
