"""Small models and batches that the tests of this folder share."""

from typing import Any

import numpy as np
import torch

from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.recognition import ClipBatch, Progress

START = Progress(epoch=0, step=0, fraction=0.0)


def tiny(*, arch: str = "tiny-vit-64", depth: int = 1, **changes: Any) -> DferClipConfig:
    """A DFER-CLIP that builds in a moment: 64 px, random weights."""
    temporal = TemporalConfig(depth=depth, heads=2, head_dim=16, mlp_dim=48)
    return DferClipConfig(**{"towers": TowersConfig(arch=arch), "temporal": temporal, **changes})


def batch(clips: int = 2, frames: int = 4, *, size: int = 64, seed: int = 0) -> ClipBatch:
    """Random clips."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (clips, frames, 3, size, size), dtype=np.uint8)
    labels = torch.from_numpy(rng.integers(0, 7, clips))
    return ClipBatch(frames=torch.from_numpy(pictures), labels=labels, index=torch.arange(clips))
