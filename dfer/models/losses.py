"""Losses that several methods share.

Letters: B clips, K classes.
"""

from torch import Tensor
from torch.nn import functional as F

from dfer.recognition import PADDING, ClipBatch, FeatureBatch, labels_of

IGNORED = -100


def cross_entropy(logits: Tensor, batch: ClipBatch | FeatureBatch) -> Tensor:
    """Mean cross entropy of logits [B K] and the batch's labels over the rows that are no padding; 0 without any."""
    labels = labels_of(batch).masked_fill(batch.index == PADDING, IGNORED)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
