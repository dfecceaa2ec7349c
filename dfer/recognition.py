"""The types where everything meets: a batch, what is trained on it, and a recognizer's answer.

Letters: B clips (rows), T frames, C colours, H height, W width, K classes, L tokens, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

PADDING = -1
"""`index` of a row that only fills the batch up and never counts."""

Coupling = Literal["none", "step", "micro_batch"]
"""What ties the clips of a batch together in a method's loss; see `Learner.coupling`."""

M = TypeVar("M", bound="_Movable")


class Batch(Protocol):
    """All that engine and loop need of a batch. index: int64 [B], position in the split, PADDING = filler."""

    @property
    def index(self) -> Tensor: ...

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Movable:
    """A batch that moves all of its tensors, whatever they are called."""

    index: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`; asynchronous where the memory is pinned."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    @property
    def num_clips(self) -> int:
        """Distinct clips, without padding."""
        return len(torch.unique(self.index[self.index != PADDING]))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class ClipBatch(_Movable):
    """Clips of one micro-batch.

    frames: uint8 [B T C H W], RGB; a still has T = 1. index: int64 [B], position in the split, PADDING = filler; the
    views of a clip are rows with the same index, one behind the other. labels: int64 [B]; None where nobody gave any.
    targets: float [B K], class probabilities in place of labels (votes, mixed clips). text: int64 [B L], tokens of what
    is said about each clip.
    """

    frames: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    text: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureBatch(_Movable):
    """What frozen towers made of clips. features: by name, float [B ...]. labels: int64 [B] or None."""

    features: dict[str, Tensor]
    labels: Tensor | None = None


def labels_of(batch: ClipBatch | FeatureBatch) -> Tensor:
    """The labels of a batch that must have some, int64 [B]. Raises ValueError for a batch without labels."""
    if batch.labels is None:
        raise ValueError("expected a batch with labels")
    return batch.labels


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """A training clip that could not be read or decoded in an epoch, why, and the clip that was taken instead."""

    key: str
    epoch: int
    cause: str
    replaced_by: str


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """A model's answer. logits: float [B K]. variants: other logits [B K] by name that are scored beside them (local,
    global, fused). aux: what the loss needs besides, by name."""

    logits: Tensor
    variants: dict[str, Tensor] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands, for losses that change over time. epoch counts from 0; fraction runs from 0 to 1."""

    epoch: int
    step: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a learning rate. decay: whether weight decay applies to them at all."""

    params: list[nn.Parameter]
    decay: bool = True


class Learner(nn.Module, ABC):
    """What engine and loop train: a forward pass, a loss, and named groups of parameters.

    Every trainable parameter must get a gradient in every micro-batch of every epoch.

    coupling: what ties the clips of a batch together.
        none: the loss is a mean over clips; ranks and micro-batches may be cut in any way, also on resume.
        step: every clip of a step meets all others, as contrastive negatives do; a rank takes its whole part of a step
            as one micro-batch, and the number of ranks stays free.
        micro_batch: the clips of a micro-batch share something, such as batch statistics or mixing partners; another
            micro-batch or another number of ranks computes something else, so both are fixed for a run.
    """

    coupling: Coupling = "none"

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """The answer for a batch, whatever `loss` needs of it."""

    @abstractmethod
    def loss(self, out: Any, batch: Any, progress: Progress) -> dict[str, Tensor]:
        """Scalar terms whose sum is minimised. Reads only `out`, `batch` and `progress`, never a parameter."""

    @abstractmethod
    def param_groups(self) -> dict[str, Group]:
        """Trainable parameters by group name, each once; the optimizer config gives a rate for these names."""


class Recognizer(Learner):
    """A method: from frames to class logits, its loss, and what of it is trained.

    Every method is a final subclass that composes towers, prompts and temporal models; none inherits from another.
    """

    @property
    @abstractmethod
    def normalisation(self) -> str:
        """In words, what the method does to its frames before the first layer; it is part of a result."""

    @property
    def origin(self) -> str | None:
        """In words, where the initial weights come from; None for random ones."""
        return None

    def class_parameters(self) -> frozenset[str]:
        """Names of the parameters whose first dimension is the classes, in their order."""
        return frozenset()

    def encode(self, batch: ClipBatch) -> dict[str, Tensor]:
        """The features [B ...] of a batch by name, as its FeatureBatch holds them, of a method whose image tower is
        frozen. Raises ValueError for other methods."""
        raise ValueError(f"{type(self).__name__}: expected a method with a frozen image tower")

    def tower_weights(self) -> frozenset[str]:
        """Names of the frozen tower's weights, which a run that reads features does not hold; none for others."""
        return frozenset()

    @abstractmethod
    def forward(self, batch: Any) -> Recognition:
        """Class logits [B K] for a ClipBatch; a method whose image tower is frozen takes a FeatureBatch as well."""
