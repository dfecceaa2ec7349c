"""Count predictions in an int64 confusion matrix, from which WAR, UAR and per-class recall are computed.

Letters: B clips of a batch, K classes. Rows of a matrix are the truth, columns the prediction.
WAR is accuracy; UAR is the mean of the per-class recalls (DFER-CLIP, Zhao & Patras, BMVC 2023, section 4.1).
"""

import torch
from torch import Tensor

from dfer.recognition import PADDING


def confusion(logits: Tensor, *, labels: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Count the confusions int64 [K K] of logits float [B K], labels int64 [B] and index int64 [B].

    Rows whose index is PADDING are not counted, whatever their label. Of equal logits the lowest class number wins.
    Labels of the other rows must be in 0..K-1. Does not copy to the host.
    """
    counts = index != PADDING
    cells = torch.where(counts, labels * num_classes + logits.argmax(dim=-1), 0)
    flat = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=logits.device)
    return flat.index_add_(0, cells, counts.long()).view(num_classes, num_classes)
