"""Every method in a tiny form: what the tests over all methods build, and batches for it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from dfer.distributed import World, gather_rows
from dfer.emotions import BASIC7, Emotions
from dfer.models.build import build
from dfer.models.config import (
    CoCoOpConfig,
    ContrastiveConfig,
    CoOpConfig,
    DferClipConfig,
    FineTuneConfig,
    LinearProbeConfig,
    ModelConfig,
)
from dfer.models.config_clivp_fer import ClivpFerConfig, CnnConfig
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.towers import END_TOKEN, START_TOKEN
from dfer.recognition import ClipBatch, Coupling, Recognizer

BATCH, FRAMES, SIZE = 8, 4, 64
EMOTIONS = Emotions(names=BASIC7)
TOWERS = TowersConfig(arch="tiny-conv-64")
VIT = TowersConfig(arch="tiny-vit-64")


@dataclass(frozen=True, kw_only=True)
class Method:
    """config: its smallest form. frames, size: what it takes. random: its forward pass draws (dropout). lr: of every
    group. kind: which of them runs in the short form of the tests."""

    config: Callable[[], ModelConfig]
    frames: int = FRAMES
    size: int = SIZE
    random: bool = False
    lr: float = 1e-2
    kind: str = ""

    def build(self) -> Recognizer:
        """The method with its initial weights, the same on every call."""
        return build(self.config(), EMOTIONS, num_frames=self.frames, seed=1, gather=gather_rows)

    def batch(self, step: int) -> ClipBatch:
        """A global batch of noise, labels and texts for one step."""
        draw = torch.Generator().manual_seed(step)
        shape = (BATCH, self.frames, 3, self.size, self.size)
        words = torch.randint(1, 1000, (BATCH, 3), generator=torch.Generator().manual_seed(step))
        ends = torch.tensor([START_TOKEN, END_TOKEN]).expand(BATCH, 2)
        return ClipBatch(
            text=torch.cat([ends[:, :1], words, ends[:, 1:]], dim=1),
            frames=torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
            labels=torch.randint(0, len(EMOTIONS), (BATCH,), generator=draw),
            index=torch.arange(BATCH),
        )

    @cached_property
    def coupling(self) -> Coupling:
        """The learner's own."""
        return self.build().coupling

    def micro_batch(self, ranks: int) -> int:
        """Clips of a forward pass: half of a rank's share, or all of it where clips are compared with each other."""
        share = BATCH // ranks
        return share if self.coupling == "step" else share // 2


METHODS = {
    "dfer_clip": Method(config=lambda: DferClipConfig(towers=TOWERS, num_contexts=2, temporal=TemporalConfig(depth=1))),
    "linear_probe": Method(config=lambda: LinearProbeConfig(towers=TOWERS), kind="frozen tower"),
    "fine_tune": Method(config=lambda: FineTuneConfig(towers=TOWERS, temporal=TemporalConfig(depth=1))),
    "coop": Method(config=lambda: CoOpConfig(towers=TOWERS, num_contexts=2)),
    "cocoop": Method(config=lambda: CoCoOpConfig(towers=TOWERS, num_contexts=2)),
    "contrastive": Method(
        config=lambda: ContrastiveConfig(towers=TOWERS, temporal=TemporalConfig(depth=1)),
        kind="negatives of all ranks",
    ),
    "dk_clip": Method(config=lambda: DkClipConfig(towers=VIT, snippet=2), kind="two encoders"),
    "clivp_fer": Method(config=lambda: ClivpFerConfig(towers=TOWERS, caption="all"), random=True),
    "vgg19": Method(config=lambda: CnnConfig(net="vgg19", width=4), frames=1, size=32, random=True),
    "resnet18": Method(config=lambda: CnnConfig(width=4), frames=1, size=32, random=True, kind="batch statistics"),
}


def share(batch: ClipBatch, *, world: World, micro_batch: int) -> list[ClipBatch]:
    """A rank's contiguous share of a global batch, divided into micro-batches."""
    size = len(batch.index) // world.size
    starts = range(world.rank * size, (world.rank + 1) * size, micro_batch)
    return [_rows(batch, slice(at, at + micro_batch)) for at in starts]


def _rows(batch: ClipBatch, rows: slice) -> ClipBatch:
    assert batch.labels is not None
    text = None if batch.text is None else batch.text[rows]
    return ClipBatch(frames=batch.frames[rows], labels=batch.labels[rows], index=batch.index[rows], text=text)
