"""A recognizer of three layers, and batches for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.recognition import ClipBatch, Group, Progress, Recognition, Recognizer, labels_of

CLASSES, SHAPE = 5, (2, 3, 4, 4)


class TinyRecognizer(Recognizer):
    """A frozen layer, a trunk with a weight above ZeRO 3's persistence threshold, a head with a bare parameter."""

    def __init__(self, *, wide: int = 400, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(48, 16).requires_grad_(False)
        self.trunk = nn.Sequential(nn.Linear(16, wide), nn.Tanh(), nn.Linear(wide, 300), nn.LayerNorm(300))
        self.head = nn.Linear(300, CLASSES)
        self.temperature = nn.Parameter(torch.ones(1))
        self.register_buffer("offset", torch.full((CLASSES,), 0.25))

    @property
    def normalisation(self) -> str:
        return "scaled to 0..1"

    def forward(self, batch: ClipBatch) -> Recognition:
        x = batch.frames.float().div(255).mean(1).flatten(1)
        logits = self.head(self.trunk(self.frozen(x))) * self.temperature + self.offset
        return Recognition(logits=logits, aux={"spread": logits.std(1)})

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        # A clip of pure white stands for a sample the loss breaks on.
        broken = batch.frames.flatten(1).float().mean(1) == 255
        # A black one has a finite loss and an infinite gradient.
        black = batch.frames.flatten(1).float().mean(1) == 0
        spread = torch.where(black, 0 * out.aux["spread"], out.aux["spread"].square()).sqrt()
        spread = torch.where(broken, torch.inf, spread)
        return {"ce": F.cross_entropy(out.logits, labels_of(batch)), "spread": 0.1 * spread.mean()}

    def param_groups(self) -> dict[str, Group]:
        return {
            "trunk": Group(params=list(self.trunk.parameters())),
            "head": Group(params=[*self.head.parameters(), self.temperature]),
        }


def clips(count: int, *, seed: int = 0, first: int = 0) -> ClipBatch:
    """`count` clips of noise with labels; index counts from `first`."""
    draw = torch.Generator().manual_seed(seed)
    return ClipBatch(
        frames=torch.randint(0, 255, (count, *SHAPE), generator=draw, dtype=torch.uint8),
        labels=torch.randint(0, CLASSES, (count,), generator=draw),
        index=torch.arange(first, first + count),
    )


def part(batch: ClipBatch, start: int, stop: int) -> ClipBatch:
    """Rows start : stop."""
    return ClipBatch(
        frames=batch.frames[start:stop], labels=labels_of(batch)[start:stop], index=batch.index[start:stop]
    )


def share(batch: ClipBatch, *, rank: int, world_size: int, micro_batch: int) -> list[ClipBatch]:
    """A rank's contiguous share of a global batch, cut into micro-batches."""
    size = len(batch.index) // world_size
    end = (rank + 1) * size
    return [part(batch, at, min(at + micro_batch, end)) for at in range(rank * size, end, micro_batch)]
