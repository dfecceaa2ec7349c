"""The three types where everything meets: a batch of clips, a model's answer, and the model's interface.

Letters: B clips, T frames, C colours, H height, W width, K classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

PADDING = -1
"""`ClipBatch.index` of a row that only fills the batch up and never counts."""


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Clips of one micro-batch.

    frames: uint8 [B T C H W], RGB. labels: int64 [B]. index: int64 [B], position in the split, PADDING = filler.
    """

    frames: Tensor
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device) -> "ClipBatch":
        """The same batch on `device`; asynchronous where the memory is pinned."""
        move = {name: getattr(self, name).to(device, non_blocking=True) for name in ("frames", "labels", "index")}
        return replace(self, **move)

    @property
    def num_clips(self) -> int:
        """Rows that count, without padding."""
        return int((self.index != PADDING).sum())


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """A training clip that could not be read or decoded in an epoch, why, and the clip that was taken instead."""

    key: str
    epoch: int
    cause: str
    replaced_by: str


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """A model's answer. logits: float [B K]; aux: what the loss needs beside them, by name."""

    logits: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands, for losses that change over time. epoch counts from 0; fraction runs from 0 to 1."""

    epoch: int
    step: int
    fraction: float


class Recognizer(nn.Module, ABC):
    """A method: from frames to class logits, its loss, and what of it is trained.

    Every method is a final subclass that composes towers, prompts and temporal models; none inherits from another.

    normalisation: in words, what the method does to its 0..1 frames; it is part of a result.
    """

    normalisation: ClassVar[str] = "none (frames scaled to 0..1)"

    @abstractmethod
    def forward(self, batch: ClipBatch) -> Recognition:
        """Class logits [B K] for uint8 frames [B T C H W]; normalisation of the input belongs to the method."""

    @abstractmethod
    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Scalar terms whose sum is minimised. Reads only `out`, `batch` and `progress`, never a parameter."""

    def class_parameters(self) -> frozenset[str]:
        """Names of the parameters whose first dimension is the classes, in their order."""
        return frozenset()

    @abstractmethod
    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group name, each once; the optimizer config gives a rate for these names."""
