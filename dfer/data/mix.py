"""Training targets as class probabilities, and the mixing of the clips of a micro-batch, on their device.

Targets are the votes of annotators or else the labels, then smoothed, then mixed as the clips are. The draws depend
only on (seed, epoch, clips of the micro-batch). The arithmetic is that of DK-CLIP's release (commit 1c437cc,
datasets/blending.py), whose FMix is that of the mask's authors (Harris et al., 2020).

Letters: B clips, T frames, C colours, H height, W width, K classes.
"""

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dfer.data.mix_config import MixConfig
from dfer.recognition import PADDING, ClipBatch, FeatureBatch, labels_of

MIXING = 6
"""Purpose of the random draws, as those in `dfer.data.sampling`."""
Floats = NDArray[np.float64]
B = TypeVar("B", ClipBatch, FeatureBatch)


class Mix:
    """Gives training batches their targets and mixes their clips."""

    def __init__(self, config: MixConfig, *, seed: int, num_classes: int, votes: Tensor | None = None) -> None:
        """votes: float [N K], class probabilities of all N training clips; None = labels."""
        self.config, self.seed = config, seed
        self._num_classes, self._votes = num_classes, votes

    def __call__(self, batch: B, epoch: int) -> B:
        """Return the batch with targets [B K], where the configuration differs from plain labels. Clips are mixed in
        place; PADDING rows are neither changed nor partners."""
        if self._votes is None and not self.config.label_smoothing and not self.config.mixes:
            return batch
        targets = self._targets(batch)
        if isinstance(batch, ClipBatch) and self.config.mixes:
            targets = self._mixed(batch, targets, epoch)
        return replace(batch, targets=targets)

    def _targets(self, batch: ClipBatch | FeatureBatch) -> Tensor:
        if self._votes is None:
            chosen = F.one_hot(labels_of(batch), self._num_classes).float()
        else:
            self._votes = self._votes.to(batch.index.device)
            chosen = self._votes[batch.index.clamp(min=0)]  # padding gets the first clip's, which no loss reads
        share = self.config.label_smoothing
        return chosen * (1 - share) + share / self._num_classes if share else chosen

    def _mixed(self, batch: ClipBatch, targets: Tensor, epoch: int) -> Tensor:
        """Mix the frames in place, and return the mixed targets."""
        index = batch.index.tolist()
        rows = [row for row, clip in enumerate(index) if clip != PADDING]
        rng = mix_rng(self.seed, epoch, [index[row] for row in rows])
        kind, config = rng.random(), self.config
        if kind >= config.fmix + config.mixup or len(rows) < 2:
            return targets
        partner = torch.arange(len(targets), device=targets.device)
        partner[rows] = torch.tensor(rng.permutation(rows), device=targets.device)
        if kind < config.fmix:
            share = rng.beta(config.fmix_alpha, config.fmix_alpha)
            mask = draw_mask(rng, *batch.frames.shape[-2:], share=share, decay=config.fmix_decay)
            _cut_in(batch.frames, partner, torch.from_numpy(mask).to(batch.frames.device))
        else:
            share = rng.beta(config.mixup_alpha, config.mixup_alpha)
            _blend(batch.frames, partner, share)
        return torch.where((batch.index != PADDING)[:, None], share * targets + (1 - share) * targets[partner], targets)


def mix_rng(seed: int, epoch: int, clips: list[int]) -> np.random.Generator:
    """Return the random stream of a micro-batch with these clips."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(MIXING, epoch, *clips))))


def _blend(frames: Tensor, partner: Tensor, share: float) -> None:
    """Overwrite frames uint8 [B T C H W] by share x themselves + (1 - share) x their partners, rounded to a level.

    A row that is its own partner, as padding is, keeps its levels. One clip is computed at a time: floats of all clips
    would take four times the memory of the frames.
    """
    before = frames.clone()
    for row, other in enumerate(partner.tolist()):
        if row != other:
            mixed = before[row].float().mul_(share).add_(before[other], alpha=1 - share)
            frames[row] = mixed.round_().to(torch.uint8)


def _cut_in(frames: Tensor, partner: Tensor, mask: Tensor) -> None:
    """Keep frames uint8 [B T C H W] where `mask`, bool [H W], is true, and take those of the partners elsewhere."""
    frames.copy_(torch.where(mask, frames, frames[partner]))


def draw_mask(rng: np.random.Generator, height: int, width: int, *, share: float, decay: float) -> NDArray[np.bool_]:
    """Draw an FMix mask, bool [H W]; true for a `share` of its pixels, rounded up or down at random."""
    noise = rng.standard_normal((2, len(_column_frequencies(width)), 2))
    return mask_of(low_frequency_image(noise, height, width, decay=decay), share=share, up=bool(rng.random() > 0.5))


def low_frequency_image(noise: Floats, height: int, width: int, *, decay: float) -> Floats:
    """Transform normal noise [2 F 2], F as in `_column_frequencies`, into a picture [H W] of values from 0 to 1.

    The authors' code takes the first two rows of its spectrum as real and imaginary part, where the last axis was
    meant. So a picture has F frequencies along its height and only two along its width. This does the same.
    """
    across = _column_frequencies(width)
    rows = np.fft.fftfreq(height)[:2, None]
    lowest = 1.0 / max(width, height)
    scale = 1.0 / np.maximum(np.sqrt(across**2 + rows**2), lowest) ** decay
    real, imaginary = scale[..., None] * noise
    image = np.fft.irfftn(real + 1j * imaginary, (height, width), axes=(0, 1))
    image -= image.min()
    return np.asarray(image / image.max())


def _column_frequencies(width: int) -> Floats:
    """Return the frequencies that the authors' code draws noise for, float [F]: one more than needed for odd widths."""
    return np.asarray(np.fft.fftfreq(width)[: width // 2 + 1 + width % 2])


def mask_of(image: Floats, *, share: float, up: bool) -> NDArray[np.bool_]:
    """Mark the largest values of a picture [H W]: a `share` of its pixels, rounded up or down."""
    count = int(np.ceil(share * image.size) if up else np.floor(share * image.size))
    mask = np.zeros(image.size, np.bool_)
    mask[np.argsort(image, axis=None)[::-1][:count]] = True
    return mask.reshape(image.shape)
