"""Geometry of one frame in a worker: rotation, crop, resize and flip of a decoded picture, uint8 [H W 3].

What is to be done is a tuple of small values, drawn or fixed beforehand, so that all frames of a clip get the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]
MAX_PIXELS = 2**24
"""Largest picture that is decoded or made, in pixels (48 MiB as RGB)."""
MAX_SIDE = 2**15 - 1
"""Longest side of a picture that is rotated, in pixels: OpenCV's limit."""
Pixels = NDArray[np.int16]
FIXED_BITS = 16
"""Fractional bits of Pillow's fixed-point numbers, with which it computes the pixels of a rotated picture."""


@dataclass(frozen=True)
class Brightness:
    """Multiply every level by a factor, truncated and clipped as Pillow's ImageEnhance.Brightness does."""

    factor: float


@dataclass(frozen=True)
class Crop:
    """Keep a part, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Turn:
    """Rotate about the centre, degrees counterclockwise, and keep a part: nearest pixel, black outside, as Pillow's
    Image.rotate does by default."""

    angle: float
    part: Crop


@dataclass(frozen=True)
class Resize:
    """Resize to height x width. `bilinear` and `bicubic` antialias as Pillow does; `opencv` is bilinear without."""

    height: int
    width: int
    how: Literal["bilinear", "bicubic", "opencv"] = "bilinear"


@dataclass(frozen=True)
class Flip:
    """Mirror left and right."""


Step = Brightness | Crop | Turn | Resize | Flip
Steps = tuple[Step, ...]
Seen = Callable[[int, int], Steps]
"""The steps for a stored frame of some height and width. No steps: the frame is taken as it is."""


def apply(steps: Steps, picture: Picture) -> Picture:
    """Apply steps in order. Returns a new picture or a part of the given one, which is not changed.

    Raises:
        ValueError: the picture is too large, or so narrow that it would become so.
    """
    for step in steps:
        picture = _applied(step, picture)
    return picture


def _applied(step: Step, picture: Picture) -> Picture:
    match step:
        case Brightness(factor):
            return cast(Picture, cv2.LUT(picture, _levels(factor)))
        case Crop(top, left, height, width):
            return picture[top : top + height, left : left + width]
        case Turn():
            return _turned(step, picture)
        case Flip():
            return cast(Picture, cv2.flip(picture, 1))
        case Resize():
            return _resized(step, picture)


def _resized(step: Resize, picture: Picture) -> Picture:
    if picture.shape[:2] == (step.height, step.width):
        return picture
    if step.height * step.width > MAX_PIXELS:
        shape = f"{picture.shape[1]} x {picture.shape[0]}"
        raise ValueError(f"{shape} pixels, so narrow that {step.width} x {step.height} would be needed")
    if step.how == "opencv":
        return cast(Picture, cv2.resize(picture, (step.width, step.height), interpolation=cv2.INTER_LINEAR))
    # With the strides of a batch whose channels are last, the kernel is twice as fast.
    frames = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
    out = resize(frames, height=step.height, width=step.width, mode=step.how)
    return cast(Picture, out[0].permute(1, 2, 0).numpy())


def resize(frames: Tensor, *, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """Resize uint8 [N C H W] on the CPU, antialiased: within one level of Pillow's filter of that name.

    The kernel works in fixed point, as Pillow does.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    out: Tensor = F.interpolate(frames, size=(height, width), mode=mode, antialias=True)
    return out


@lru_cache(maxsize=64)
def _levels(factor: float) -> Picture:
    """Every level times `factor`, uint8 [256]. Pillow computes in float32 and truncates."""
    made = np.arange(256, dtype=np.float32) * np.float32(factor)
    levels: Picture = np.minimum(made, 255).astype(np.uint8)
    return levels


def _turned(step: Turn, picture: Picture) -> Picture:
    if max(picture.shape) > MAX_SIDE:
        raise ValueError(f"a side of {max(picture.shape)} pixels, more than the {MAX_SIDE} that can be rotated")
    pixels = _source_pixels(step, picture.shape[0], picture.shape[1])
    return cast(Picture, cv2.remap(picture, pixels, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT))


@lru_cache(maxsize=2)
def _source_pixels(step: Turn, height: int, width: int) -> Pixels:
    """For each pixel of the part, compute column and row of its source pixel, int16 [H W 2].

    Like Pillow, it computes in fixed point with 16 fractional bits. Cached, since a clip's frames are turned alike.
    """
    center_y, center_x, part = height / 2, width / 2, step.part
    angle = -math.radians(step.angle % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    right, down = _fixed(cos), _fixed(sin)
    start_x = _fixed(center_x - cos * (center_x - 0.5) - sin * (center_y - 0.5))
    start_y = _fixed(center_y + sin * (center_x - 0.5) - cos * (center_y - 0.5))
    rows = np.arange(part.top, part.top + part.height)[:, None]
    columns = np.arange(part.left, part.left + part.width)[None]
    x, y = start_x + columns * right + rows * down, start_y - columns * down + rows * right
    return np.stack([x >> FIXED_BITS, y >> FIXED_BITS], axis=-1).astype(np.int16)


def _fixed(value: float) -> int:
    return math.floor(value * (1 << FIXED_BITS) + 0.5)
