"""Augment training clips on their device (DFER-CLIP, Zhao & Patras, BMVC 2023, section 4.1).

Letters: B clips, T frames, C colours, H height, W width. All frames of a clip get the same draw. The draws depend only
on (seed, epoch, clip), not on rank, worker, or the other clips of the batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dfer.data.config import AugmentConfig
from dfer.data.decode import resize
from dfer.data.sampling import AUGMENTATION, clip_rng
from dfer.recognition import PADDING, ClipBatch

CROP_TRIES = 10
ASPECT = (3 / 4, 4 / 3)
CPU_PIECE = 2
"""Frames of 224 px that fit the second-level cache of a core together with their temporaries."""
BRIGHTNESS_STEPS = 128
"""Brightness factors are multiples of 1/128, which is finer than a level of most pixels."""
FIXED_BITS = 16
"""Fractional bits of Pillow's fixed-point numbers, with which it computes the pixels of a rotated picture."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The augmentation of one clip. top, left, height, width: crop in pixels; angle: degrees, counterclockwise."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    brightness: float = 1.0
    angle: float = 0.0


class Augment:
    """Augments the clips of a batch in place; a picklable callable."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, batch: ClipBatch, epoch: int) -> ClipBatch:
        """Overwrite the frames of a batch, uint8 [B T C H W], and return the batch; PADDING rows are not changed.

        It works in place, and on the CPU on a few frames at a time, because new memory and cache misses cost more than
        the arithmetic (each a tenth of the loader's time).
        """
        for clip, index in zip(batch.frames, batch.index.tolist(), strict=True):
            if index == PADDING:
                continue
            drawn = self.draw(epoch, index, clip)
            # The pixels of a rotation are computed once for all frames; this saves more time than the cache does.
            piece = CPU_PIECE if clip.device.type == "cpu" and not drawn.angle else len(clip)
            for at in range(0, len(clip), piece):
                clip[at : at + piece] = apply(clip[at : at + piece], drawn)
        return batch

    def draw(self, epoch: int, index: int, frames: Tensor) -> Draw:
        """Draw the augmentation of one clip in one epoch, for frames [T C H W]."""
        rng = clip_rng(self.seed, epoch, index, purpose=AUGMENTATION)
        return draw(self.config, rng, height=frames.shape[-2], width=frames.shape[-1])


def draw(config: AugmentConfig, rng: np.random.Generator, *, height: int, width: int) -> Draw:
    """Draw an augmentation for a clip of this size in pixels."""
    # All values are always drawn, so that switching one augmentation off does not change the draws of the others.
    brightness, angle, flip = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.random()
    top, left, crop_height, crop_width = (
        _crop(rng, height, width, config.min_area) if config.crop else (0, 0, height, width)
    )
    return Draw(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=bool(flip < config.flip),
        brightness=round((1 + config.brightness * brightness) * BRIGHTNESS_STEPS) / BRIGHTNESS_STEPS,
        angle=config.rotation * angle,
    )


def _crop(rng: np.random.Generator, height: int, width: int, min_area: float) -> tuple[int, int, int, int]:
    for _ in range(CROP_TRIES):
        area, aspect = rng.uniform(min_area, 1) * height * width, rng.uniform(*ASPECT)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return _place(rng, height - h, width - w, h, w)
    short = min(height, width)  # as published (resize the short edge, then crop): a random square of that length
    return _place(rng, height - short, width - short, short, short)


def _place(rng: np.random.Generator, free_y: int, free_x: int, height: int, width: int) -> tuple[int, int, int, int]:
    return int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1)), height, width


def apply(frames: Tensor, drawn: Draw) -> Tensor:
    """Apply one draw to all frames, uint8 [T C H W] to uint8 [T C S S] with S = H.

    As published, brightness and rotation precede the crop, but they are only computed for the pixels that the crop
    keeps. The flip commutes with the resize and is done before it, on the smaller crop.
    """
    size = frames.shape[-2]
    rows = slice(drawn.top, drawn.top + drawn.height)
    columns = slice(drawn.left, drawn.left + drawn.width)
    if drawn.angle:
        kept = _rotated(_brightened(frames, drawn.brightness), drawn)
    else:
        kept = _brightened(frames[..., rows, columns], drawn.brightness)
    return resize(kept.flip(-1) if drawn.flip else kept, size=size)


def _brightened(frames: Tensor, factor: float) -> Tensor:
    """Multiply every level by `factor`, truncated and clipped as Pillow's ImageEnhance.Brightness does.

    16-bit integers give the same result on every device, and are a third faster than floats. A product of up to 255 x 2
    x BRIGHTNESS_STEPS uses the sign bit, copies of which the right shift inserts at the left; the mask removes them.
    """
    steps = round(factor * BRIGHTNESS_STEPS)
    if steps == BRIGHTNESS_STEPS:
        return frames
    wide = frames.to(torch.int16).mul_(steps).bitwise_right_shift_(7)
    if steps > BRIGHTNESS_STEPS:
        wide.bitwise_and_(0x1FF).clamp_(max=255)
    return wide.to(torch.uint8)


def _rotated(frames: Tensor, drawn: Draw) -> Tensor:
    """Rotate the frames about their centre and return the crop: nearest pixel, black outside, as Pillow's Image.rotate
    does by default and as the authors' code does."""
    x, y = _source_pixels(frames, drawn)
    height, width = frames.shape[-2:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixels = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten()
    # Channels last: a pixel is copied as a whole, and the resize that follows is twice as fast.
    rows = rearrange(frames, "t c h w -> t (h w) c")
    turned = rows.index_select(1, pixels).mul_(inside.flatten()[:, None])
    return rearrange(turned, "t (h w) c -> t c h w", h=drawn.height)


def _source_pixels(frames: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
    """For each pixel of the rotated crop, compute column and row of its source pixel, each int64 [height width].

    Like Pillow, it computes in fixed point with 16 fractional bits, so the result is the same on every device.
    """
    center_y, center_x = frames.shape[-2] / 2, frames.shape[-1] / 2
    angle = -math.radians(drawn.angle % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    right, down = _fixed(cos), _fixed(sin)
    start_x = _fixed(center_x - cos * (center_x - 0.5) - sin * (center_y - 0.5))
    start_y = _fixed(center_y + sin * (center_x - 0.5) - cos * (center_y - 0.5))
    rows = torch.arange(drawn.top, drawn.top + drawn.height, device=frames.device)[:, None]
    columns = torch.arange(drawn.left, drawn.left + drawn.width, device=frames.device)[None]
    x, y = start_x + columns * right + rows * down, start_y - columns * down + rows * right
    return x >> FIXED_BITS, y >> FIXED_BITS


def _fixed(value: float) -> int:
    return math.floor(value * (1 << FIXED_BITS) + 0.5)
