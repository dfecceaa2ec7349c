"""Change the colours of training clips on their device: DK-CLIP's jitter (Li et al., ACM MM 2024, its code).

Letters: N frames, T frames of a clip, C colours, H height, W width. Levels are uint8 between the operations, computed
as Pillow does. The draws depend only on (seed, epoch, clip). Geometry, and what precedes it, is done by the reader.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfer.data.recipes import AugmentConfig, DkClipAugment
from dfer.data.sampling import COLOUR, clip_rng
from dfer.recognition import PADDING, ClipBatch

Numbers = NDArray[np.float64]
JITTER = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
"""Bounds of the uniform factors; of the hue, the shift as a share of the circle."""
CPU_PIECE = 4
"""Frames that are computed at a time on the CPU, since larger temporaries leave the cache."""
RED, GREEN, BLUE = 19595, 38470, 7471
"""Weights of the colours in a grey level, in units of 1/65536 (ITU-R 601), as Pillow has them."""


@dataclass(frozen=True)
class Draw:
    """The colours of one clip. factors: of brightness, contrast, saturation and hue, float64 [T 4]; order: numbers of
    these in the order of their use, int64 [T 4]; both None if the clip is not jittered. grey: it loses its colours."""

    factors: Numbers | None
    order: NDArray[np.int64] | None
    grey: bool


class Augment:
    """Augments the colours of the clips of a batch in place; a picklable callable."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, batch: ClipBatch, epoch: int) -> ClipBatch:
        """Overwrite the frames of a batch, uint8 [B T C H W], and return the batch; PADDING rows are not changed."""
        if not isinstance(self.config, DkClipAugment):
            return batch
        times = batch.frames.shape[1]
        for clip, index in zip(batch.frames, batch.index.tolist(), strict=True):
            if index != PADDING:
                rng = clip_rng(self.seed, epoch, index, purpose=COLOUR)
                recolour(clip, draw(self.config, rng, times))
        return batch


def draw(config: DkClipAugment, rng: np.random.Generator, length: int) -> Draw:
    """Draw the colours of a clip of `length` frames."""
    # All values are always drawn, so that switching one off does not change the draws of the others.
    jittered, grey = rng.random() < config.jitter, rng.random() < config.grey
    factors = np.stack([rng.uniform(*bounds, size=length) for bounds in JITTER.values()], axis=1)
    order = rng.permuted(np.tile(np.arange(len(JITTER)), (length, 1)), axis=1)
    return Draw(factors if jittered else None, order if jittered else None, bool(grey))


def recolour(clip: Tensor, drawn: Draw) -> None:
    """Apply one draw to a clip in place, uint8 [T C H W]."""
    piece = CPU_PIECE if clip.device.type == "cpu" else len(clip)
    for at in range(0, len(clip), piece):
        frames = clip[at : at + piece]
        if drawn.factors is not None and drawn.order is not None:
            _jitter(frames, drawn.factors[at : at + piece], drawn.order[at : at + piece])
        if drawn.grey:
            frames.copy_(_grey(frames).expand_as(frames))


def _jitter(frames: Tensor, factors: Numbers, order: NDArray[np.int64]) -> None:
    """Apply the four operations to each of some frames [N C H W] in its own order."""
    values = torch.from_numpy(factors.astype(np.float32)).to(frames.device)
    for used in order.T:
        for number, operation in enumerate(OPERATIONS):
            rows = torch.from_numpy(np.flatnonzero(used == number)).to(frames.device)
            if len(rows):
                frames[rows] = operation(frames[rows], values[rows, number].view(-1, 1, 1, 1))


def brightened(frames: Tensor, factor: Tensor) -> Tensor:
    """Blend frames [N C H W] with black by a factor [N 1 1 1]."""
    return _blended(torch.zeros_like(frames[:1]), frames, factor)


def contrasted(frames: Tensor, factor: Tensor) -> Tensor:
    """Blend frames [N C H W] with the mean grey level of each."""
    mean = _grey(frames).double().mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blended(mean, frames, factor)


def saturated(frames: Tensor, factor: Tensor) -> Tensor:
    """Blend frames [N C H W] with their grey levels."""
    return _blended(_grey(frames), frames, factor)


def hued(frames: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of frames [N C H W] by a share of the circle, which is truncated to multiples of 1/255."""
    hue, saturation, value = _hsv(frames)
    turned = (hue + (shift[:, 0] * 255).trunc()).remainder(256)
    return _rgb(turned, saturation, value)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightened, contrasted, saturated, hued)
"""In the order of JITTER."""


def _blended(low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """low + factor (high - low) in levels, truncated and clipped."""
    low = low.float()
    return low.add(high.float().sub_(low).mul_(factor)).clamp_(0, 255).to(torch.uint8)


def _grey(frames: Tensor) -> Tensor:
    """The grey level of frames, uint8 [N C H W] to [N 1 H W]."""
    red, green, blue = frames.to(torch.int32).unbind(1)
    level = red.mul_(RED).add_(green.mul_(GREEN)).add_(blue.mul_(BLUE)).add_(1 << 15)
    return level.bitwise_right_shift_(16).to(torch.uint8)[:, None]


def _hsv(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value in whole levels 0 to 255, each float32 [N H W]."""
    red, green, blue = frames.float().unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    spread = high - torch.minimum(torch.minimum(red, green), blue)
    # Pillow's C code computes some sums and products in double precision, which decides what is truncated.
    away = [((high - colour) / spread).double() for colour in (red, green, blue)]
    hue = torch.where(green == high, 2 + away[0] - away[2], 4 + away[1] - away[0])
    hue = torch.where(red == high, away[2] - away[1], hue)
    level = hue.float().double().div_(6).add_(1).remainder_(1).float().double().mul_(255).trunc_().float()
    saturation = (spread / high).double().mul_(255).trunc_().float()
    grey = spread == 0
    return level.masked_fill_(grey, 0), saturation.masked_fill_(grey, 0), high


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Levels of hue, saturation and value [N H W] to colours, uint8 [N 3 H W]."""
    at = hue.double() * 6 / 255
    sector = at.floor()
    rest, share, full = (at - sector).float().double(), (saturation / 255).double(), value.double()
    levels = [full * (1 - share), full * (1 - share * rest), full * (1 - share * (1 - rest))]
    p, q, t = (level.add_(0.5).floor_().float() for level in levels)
    kind = sector.remainder(6).long()[:, None]
    by_sector = ((value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q))
    channels = [torch.stack(options, 1).gather(1, kind)[:, 0] for options in by_sector]
    return torch.stack(channels, 1).clamp_(0, 255).to(torch.uint8)
