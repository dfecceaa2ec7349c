"""The types that data, models, training and evaluation share: batches, Learner, Recognizer and a recognizer's answer.

Letters: B clips (rows), T frames, C colours, H height, W width, K classes, L tokens, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

PADDING = -1
"""`index` of a padding row, which fills up the batch and is never counted."""

Coupling = Literal["none", "step", "micro_batch"]
"""How a method's loss depends on the clips of a batch together; see `Learner.coupling`."""

M = TypeVar("M", bound="_Movable")


class Batch(Protocol):
    """The interface of a batch for engine and loop. index: int64 [B], position in the split; PADDING marks filler."""

    @property
    def index(self) -> Tensor: ...

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Movable:
    """A batch whose `to` moves every tensor among its fields."""

    index: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`; asynchronous where the memory is pinned."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    @property
    def num_clips(self) -> int:
        """Number of distinct clips, without padding."""
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

    frames: uint8 [B T C H W], RGB; a still has T = 1. index: int64 [B], position in the split; PADDING marks filler;
    the views of a clip are consecutive rows with the same index. labels: int64 [B]; None for unlabelled clips.
    targets: float [B K], class probabilities that replace labels (votes, mixed clips). text: int64 [B L], tokens of
    each clip's text.
    """

    frames: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    text: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureBatch(_Movable):
    """Outputs of frozen towers for clips. features: by name, float [B ...]. labels: int64 [B] or None. targets: as in
    ClipBatch."""

    features: dict[str, Tensor]
    labels: Tensor | None = None
    targets: Tensor | None = None


def labels_of(batch: ClipBatch | FeatureBatch) -> Tensor:
    """Return the labels of a batch, int64 [B]. Raises ValueError for a batch without labels."""
    if batch.labels is None:
        raise ValueError("expected a batch with labels")
    return batch.labels


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """Record of a clip that could not be read or decoded in an epoch: cause, and the clip that replaced it in training;
    empty where none did."""

    key: str
    epoch: int
    cause: str
    replaced_by: str


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """A model's answer. logits: float [B K]. variants: further logits [B K] by name that are scored too (local, global,
    fused). aux: further tensors for the loss, by name."""

    logits: Tensor
    variants: dict[str, Tensor] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Position in training, for losses that change over time. epoch counts from 0; fraction runs from 0 to 1."""

    epoch: int
    step: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that share a learning rate. decay: whether weight decay applies to them. spared: parameters, also of
    other groups, that an optimizer with `no_decay` spares as it spares vectors, such as positions."""

    params: list[nn.Parameter]
    decay: bool = True
    spared: tuple[nn.Parameter, ...] = ()


class Learner(nn.Module, ABC):
    """The model that engine and loop train: a forward pass, a loss, and named groups of parameters.

    Every trainable parameter must get a gradient in every micro-batch of every epoch.

    coupling: how the loss depends on the clips of a batch together.
        none: the loss is a mean over clips; the division into ranks and micro-batches is free, also on resume.
        step: each clip of a step is compared with all others, as with contrastive negatives; a rank processes its
            whole part of a step as one micro-batch, and the number of ranks stays free.
        micro_batch: the clips of a micro-batch share something, such as batch statistics or mixing partners; another
            micro-batch size or number of ranks changes the result, so both are fixed for a run.
    """

    coupling: Coupling = "none"

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """Compute the answer for a batch, in the form that `loss` expects."""

    @abstractmethod
    def loss(self, out: Any, batch: Any, progress: Progress) -> dict[str, Tensor]:
        """Compute scalar terms whose sum is minimised. Reads only `out`, `batch` and `progress`, never a parameter."""

    @abstractmethod
    def param_groups(self) -> dict[str, Group]:
        """Return the trainable parameters by group name, each once; the optimizer config sets a rate for each name."""


class Recognizer(Learner):
    """A method: maps frames to class logits, and defines its loss and its trainable parameters.

    Every method is a final subclass that composes towers, prompts and temporal models; none inherits from another.
    """

    @property
    @abstractmethod
    def normalisation(self) -> str:
        """How the method normalises frames before the first layer, in words; part of a result."""

    @property
    def origin(self) -> str | None:
        """Where the initial weights come from, in words; None for random ones."""
        return None

    @property
    def presentation(self) -> str:
        """What else the method does with a test clip that a reader must know, such as its caption, in words; part of a
        result."""
        return ""

    @property
    def leaks_label(self) -> bool:
        """Whether the answer depends on the clip's true label. Every result is then marked, and prediction refused."""
        return False

    def class_parameters(self) -> frozenset[str]:
        """Names of the parameters whose first dimension is the class, in class order."""
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
        """Compute logits [B K] for a ClipBatch; a method with a frozen image tower also accepts a FeatureBatch."""
