"""How well a projection head fits: retrieval among galleries of one size, whatever the batch, and the accuracy of the
training's own steps.

Letters: S student features, D teacher features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.data.features import FeatureSet
from dfer.data.splits import hold_out
from dfer.distributed import World, sum_over_ranks
from dfer.errors import UsageError, message
from dfer.jobs.fit import FitConfig
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.training.engine import StepReport
from dfer.training.log import RunLog

GALLERY = 512
"""Pairs among which a picture's teacher feature is sought: the batch of Exp-CLIP's release."""
MEASURED = 4 * GALLERY
"""Most pairs that are measured if none are held out."""
TRAINED = "trained_right"
"""Entry of a checkpoint's state: how often the steps of its epoch were right."""


def split(config: FitConfig, keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Divide the pairs into those that are fitted and those that are measured, as positions.

    The measured ones are whole galleries, or one that is smaller, of pairs in a random order that depends on the seed
    alone: neighbours in the order of their names are frames of one film, which nothing tells apart.

    Raises:
        UsageError: fewer pairs than a batch.
    """
    kept = held = np.arange(len(keys))
    if config.val_share:
        kept, held = hold_out(keys, [None] * len(keys), share=config.val_share, seed=config.seed)
    if len(kept) < config.batch:
        do = "Set a smaller batch, or add pictures."
        raise UsageError(message("batch", expected=f"at most the {len(kept)} pairs", got=str(config.batch), do=do))
    drawn = np.random.default_rng(config.seed).permutation(held)
    most = len(held) if config.val_share else min(MEASURED, len(held))
    whole = most // GALLERY * GALLERY or most
    return kept.tolist(), drawn[:whole].tolist()


def measured_on(config: FitConfig, pairs: int) -> str:
    """Say what the accuracy was measured on."""
    return f"{pairs:,} {'held-out' if config.val_share else 'fitted'} pairs, {min(pairs, GALLERY)} at a time"


@torch.no_grad()
def measured(weight: Tensor | None, pairs: FeatureSet, config: FitConfig, world: World) -> dict[str, float]:
    """Compute the mean loss, and the accuracy of finding a picture's teacher feature among those of its gallery.
    COLLECTIVE; the first rank computes.

    weight: [D S], on the first rank.
    """
    sums = torch.zeros(3, device=world.device, dtype=torch.float64)
    if world.is_first:
        assert weight is not None, "the first rank has the weights"
        head = weight.to(world.device).float()
        for at in range(0, len(pairs), GALLERY):
            rows = {name: value[at : at + GALLERY].to(world.device) for name, value in pairs.features.items()}
            ours = F.normalize(rows[STUDENT].float() @ head.T, dim=-1)
            logits = ours @ F.normalize(rows[TEACHER].float(), dim=-1).T / config.head.temperature
            target = torch.arange(len(logits), device=logits.device)
            loss = 0.5 * sum(F.cross_entropy(each, target, reduction="sum") for each in (logits, logits.T))
            hits = (logits.argmax(dim=1) == target).sum()
            sums += torch.stack([torch.as_tensor(loss), hits, torch.tensor(len(logits), device=hits.device)]).double()
    loss, hits, count = sum_over_ranks(sums).tolist()
    return {"loss": loss / count, "accuracy": hits / count}


class FitLog(RunLog):
    """Records also the accuracy picture -> teacher of every training step, among the pairs of the step as the release
    logs it, and counts an epoch's. state: entries of the checkpoints' state, of which it keeps TRAINED."""

    def __init__(self, *args: Any, learner: ProjectionHead, state: dict[str, Any], **more: Any) -> None:
        super().__init__(*args, **more)
        self._learner, self._state = learner, state

    def train(self, report: StepReport, *, step: int, epoch: int, wait_seconds: float, **more: float) -> None:
        """Record one step. COLLECTIVE."""
        right, pairs = sum_over_ranks(self._learner.take_right()).tolist()
        before = self._state.get(TRAINED) or {}
        if before.get("epoch") != epoch:
            before = {"right": 0, "pairs": 0}
        # A new mapping every time: a save in the background may hold the last one.
        self._state[TRAINED] = {"epoch": epoch, "right": before["right"] + right, "pairs": before["pairs"] + pairs}
        super().train(report, step=step, epoch=epoch, wait_seconds=wait_seconds, accuracy=right / max(pairs, 1), **more)


def counted(state: Mapping[str, Any]) -> dict[str, int] | None:
    """Read TRAINED from a checkpoint's state; None if it has none."""
    found = state.get(TRAINED)
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), int) for name in COUNTS):
        return None
    return {name: found[name] for name in COUNTS}


COUNTS = ("epoch", "right", "pairs")


def train_accuracy(state: Mapping[str, Any]) -> float | None:
    """Return the mean accuracy over the steps of the last epoch; None if none of them was counted."""
    found = counted(state)
    return found["right"] / found["pairs"] if found and found["pairs"] else None
