"""Losses that several methods share.

Letters: B clips, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.recognition import PADDING, ClipBatch, FeatureBatch, labels_of

IGNORED = -100


def cross_entropy(logits: Tensor, batch: ClipBatch | FeatureBatch) -> Tensor:
    """Compute the mean cross entropy of logits [B K] over the rows that are not padding; 0 if all are padding.

    If the batch has targets, class probabilities float [B K], they replace the labels.
    """
    if batch.targets is not None:
        return _soft_cross_entropy(logits, batch.targets, batch.index != PADDING)
    labels = labels_of(batch).masked_fill(batch.index == PADDING, IGNORED)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _soft_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Compute the mean of minus the sum of targets x log-probabilities, in fp32. counts: bool [B], rows to average."""
    rows = -(targets * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
    return torch.where(counts, rows, 0).sum() / counts.sum().clamp(min=1)
