"""A projection head: a linear map from a student's features to a teacher's, fitted with contrastive negatives
(Exp-CLIP, Zhao et al., WACV 2025, section 3.2; InfoNCE, van den Oord et al., 2018).

Letters: B pairs of this rank, N pairs of all ranks, S student features, D teacher features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.models.config import ProjectionConfig
from dfer.recognition import PADDING, FeatureBatch, Group, Learner, Progress

STUDENT, TEACHER = "student", "teacher"


class ProjectionHead(Learner):
    """P(student) = W student, without bias; the parameter is named as in the released code, `mlp.weight` [D S].

    coupling `step`: each pair has the other pairs of all ranks as negatives.
    """

    coupling = "step"
    unit_teacher = False
    """Whether the teacher's features of every batch are unit vectors already."""

    def __init__(
        self, config: ProjectionConfig, *, student: int, teacher: int, gather: Callable[[Tensor], Tensor]
    ) -> None:
        """gather: collective call from this rank's rows [B ...] to all ranks' [N ...] in rank order, with gradient."""
        super().__init__()
        self.config, self._gather = config, gather
        self.mlp = nn.Linear(student, teacher, bias=False)
        self._right: Tensor | None = None

    def forward(self, batch: FeatureBatch) -> dict[str, Tensor]:
        """Compute unit vectors of this rank's pairs, and gather those and the indexes of all pairs. COLLECTIVE.

        Features may have any number format; the vectors are fp32.
        """
        student = F.normalize(self.mlp(batch.features[STUDENT].float()).float(), dim=-1)
        teacher = batch.features[TEACHER].float()
        teacher = teacher if self.unit_teacher else F.normalize(teacher, dim=-1)
        return {
            "student": student,
            "teacher": teacher,
            "all_students": self._gather(student),
            "all_teachers": self._gather(teacher),
            "all_index": self._gather(batch.index),
        }

    def loss(self, out: dict[str, Tensor], batch: FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the mean of the cross entropies student -> teacher and teacher -> student, averaged over this rank's
        pairs that are not padding. The engine weights the ranks' means, which gives the mean over all N pairs."""
        counts = batch.index != PADDING
        target = (out["all_index"][None] == batch.index[:, None]).int().argmax(dim=1)
        absent = (out["all_index"] == PADDING)[None]
        total = batch.index.new_zeros((), dtype=torch.float32)
        for number, scaled in enumerate(self._logits(out)):
            logits = scaled.masked_fill(absent, float("-inf"))
            if number == 0:
                right = (logits.detach().argmax(dim=1) == target) & counts
                self._count(torch.stack([right.sum(), counts.sum()]))
            each = F.cross_entropy(logits, target, reduction="none").masked_fill(~counts, 0.0)
            total = total + 0.5 * each.sum()
        return {"info_nce": total / counts.sum().clamp(min=1)}

    def _count(self, found: Tensor) -> None:
        self._right = found if self._right is None else self._right + found

    def take_right(self) -> Tensor:
        """Return, for the losses computed since the last call, how many of this rank's pairs had their own teacher
        feature as the nearest, and of how many: int64 [2]."""
        found, self._right = self._right, None
        return found if found is not None else torch.zeros(2, dtype=torch.int64, device=self.mlp.weight.device)

    def _logits(self, out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute scaled cosines [B N], student -> teacher and teacher -> student; from one product on one rank."""
        ours = out["student"] @ out["all_teachers"].T / self.config.temperature
        if len(out["all_students"]) == len(out["student"]):
            return ours, ours.T
        return ours, out["teacher"] @ out["all_students"].T / self.config.temperature

    def param_groups(self) -> dict[str, Group]:
        """Return one group, `head`."""
        return {"head": Group(params=list(self.mlp.parameters()))}
