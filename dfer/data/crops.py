"""Draw the geometry of a training clip, and give that of a test clip, for every input recipe (`dfer.data.recipes`).

All are functions of a frame's height and width: frames of a set, and rarely of a clip, differ in size.
"""

import math
from functools import cache, partial

import numpy as np

from dfer.data.geometry import Brightness, Crop, Flip, Resize, Seen, Step, Steps, Turn
from dfer.data.recipes import (
    AugmentConfig,
    ClipAugment,
    ClivpFerAugment,
    CnnAugment,
    DferClipAugment,
    DkClipAugment,
    short_side,
)
from dfer.data.sampling import AUGMENTATION, clip_rng

TRIES = 10
ASPECT = (3 / 4, 4 / 3)
BRIGHTNESS_STEPS = 128
"""Brightness factors are multiples of 1/128, which is finer than a level of most pixels."""
SCALES = (1, 0.875, 0.75, 0.66)
"""Sides of DK-CLIP's crops as shares of the short side."""
SNAP = 3
"""A side of DK-CLIP's crop that is less than this from the size becomes the size."""


def drawn(config: AugmentConfig, *, size: int, seed: int, epoch: int, index: int) -> Seen:
    """The geometry of one clip in one epoch. It depends only on (seed, epoch, clip) and the size of a frame."""

    @cache  # the frames of a clip are mostly of one size
    def seen(height: int, width: int) -> Steps:
        return draw(config, clip_rng(seed, epoch, index, purpose=AUGMENTATION), height=height, width=width, size=size)

    return seen


def draw(config: AugmentConfig, rng: np.random.Generator, *, height: int, width: int, size: int) -> Steps:
    """Draw the geometry of a clip whose frames have this height and width."""
    match config:
        case DferClipAugment():
            return _dfer_clip(config, rng, height, width, size)
        case DkClipAugment():
            return _dk_clip(config, rng, height, width, size)
        case CnnAugment():
            return _cnn(config, rng, height, width, size)
        case ClivpFerAugment():
            return _clivp_fer(config, rng, height, width, size)
        case ClipAugment():
            return _clip(config, rng, height, width, size)


def fixed(config: AugmentConfig, *, size: int, crops: int = 1) -> list[Seen]:
    """The geometry of a test clip, one for each of its crops."""
    return [partial(_fixed, config, size, crops, at) for at in range(crops)]


def _fixed(config: AugmentConfig, size: int, crops: int, at: int, height: int, width: int) -> Steps:
    match config:
        case DferClipAugment():
            return _without_nothing(height, width, [Resize(size, size)])
        case DkClipAugment() if crops == 3:
            return _third(height, width, size, at)
        case DkClipAugment():
            return _centre(height, width, size, Resize(*_shortened(height, width, short_side(size)), "opencv"))
        case CnnAugment():
            whole = Resize(config.side, config.side)
            return _tenth(height, width, size, whole, at) if crops == 10 else _centre(height, width, size, whole)
        case ClivpFerAugment():
            return _centre(height, width, size, Resize(*_truncated(height, width, size)))
        case ClipAugment():
            return _centre(height, width, size, Resize(*_truncated(height, width, size), "bicubic"))


def _dfer_clip(config: DferClipAugment, rng: np.random.Generator, height: int, width: int, size: int) -> Steps:
    """As published, brightness and rotation precede the crop, but they are only computed for the pixels that the crop
    keeps. The flip commutes with the resize and is done before it."""
    # All values are always drawn, so that switching one augmentation off does not change the draws of the others.
    brightness, angle, flip = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.random()
    part = _swapped_crop(rng, height, width, config.min_area) if config.crop else Crop(0, 0, height, width)
    factor = round((1 + config.brightness * brightness) * BRIGHTNESS_STEPS) / BRIGHTNESS_STEPS
    steps: list[Step] = [Turn(config.rotation * angle, part) if config.rotation else part]
    if factor != 1:
        steps.append(Brightness(factor))
    if flip < config.flip:
        steps.append(Flip())
    return _without_nothing(height, width, [*steps, Resize(size, size)])


def _swapped_crop(rng: np.random.Generator, height: int, width: int, min_area: float) -> Crop:
    for _ in range(TRIES):
        area, aspect = rng.uniform(min_area, 1) * height * width, rng.uniform(*ASPECT)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return _placed(rng, height, width, h, w)
    short = min(height, width)  # as published (resize the short edge, then crop): a random square of that length
    return _placed(rng, height, width, short, short)


def _placed(rng: np.random.Generator, height: int, width: int, h: int, w: int) -> Crop:
    return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)


def _dk_clip(config: DkClipAugment, rng: np.random.Generator, height: int, width: int, size: int) -> Steps:
    pair, corner, flip = rng.integers(len(_pairs())), rng.integers(5), rng.random()
    first = Resize(*_shortened(height, width, short_side(size)), "opencv")
    if config.crop:
        part = _multi_scale(first.height, first.width, size, _pairs()[pair], int(corner))
    else:
        part = _middle(first, size)
    mirrored = [Flip()] if flip < config.flip else []
    return _without_nothing(height, width, [first, part, Resize(size, size, "opencv"), *mirrored])


def _pairs() -> list[tuple[int, int]]:
    """Numbers of the scales of height and width that a multi-scale crop may have: at most one apart, so ten pairs."""
    numbers = range(len(SCALES))
    return [(i, j) for i in numbers for j in numbers if abs(i - j) <= 1]


def _multi_scale(height: int, width: int, size: int, pair: tuple[int, int], corner: int) -> Crop:
    """The crop in one of the four corners or the centre; a corner may be up to three pixels from the edge."""
    sides = [int(min(height, width) * SCALES[number]) for number in pair]
    h, w = (size if abs(side - size) < SNAP else side for side in sides)
    down, right = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))[corner]
    return Crop(down * ((height - h) // 4), right * ((width - w) // 4), h, w)


def _cnn(config: CnnAugment, rng: np.random.Generator, height: int, width: int, size: int) -> Steps:
    whole, flip = Resize(config.side, config.side), rng.random()
    part = _placed(rng, config.side, config.side, size, size) if config.crop else _middle(whole, size)
    mirrored = [Flip()] if flip < config.flip else []
    return _without_nothing(height, width, [whole, part, *mirrored])


def _clivp_fer(config: ClivpFerAugment, rng: np.random.Generator, height: int, width: int, size: int) -> Steps:
    flip, angle = rng.random(), config.rotation * rng.uniform(-1, 1)
    first = Resize(*_truncated(height, width, size))
    part = _middle(first, size)
    mirrored = [Flip()] if flip < config.flip else []
    return _without_nothing(height, width, [first, *mirrored, Turn(angle, part) if config.rotation else part])


def _clip(config: ClipAugment, rng: np.random.Generator, height: int, width: int, size: int) -> Steps:
    flip = rng.random()
    if not config.crop:
        steps: Steps = _centre(height, width, size, Resize(*_truncated(height, width, size), "bicubic"))
    else:
        part = _log_crop(rng, height, width, config.min_area)
        steps = _without_nothing(height, width, [part, Resize(size, size, "bicubic")])
    return (*steps, Flip()) if flip < config.flip else steps


def _log_crop(rng: np.random.Generator, height: int, width: int, min_area: float) -> Crop:
    """As torchvision's RandomResizedCrop: the logarithm of the aspect is uniform; in place of ten failed tries the
    largest part in the centre whose aspect is within the bounds."""
    low, high = ASPECT
    for _ in range(TRIES):
        area = rng.uniform(min_area, 1) * height * width
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _placed(rng, height, width, h, w)
    h, w = min(height, round(width / low)), min(width, round(height * high))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


# --- test frames


def _centre(height: int, width: int, size: int, first: Resize) -> Steps:
    return _without_nothing(height, width, [first, _middle(first, size)])


def _middle(whole: Resize, size: int) -> Crop:
    """The centre of a resized frame. Of an odd rest, torchvision rounds the half to even, mmcv down."""
    free = whole.height - size, whole.width - size
    top, left = (rest // 2 if whole.how == "opencv" else round(rest / 2) for rest in free)
    return Crop(top, left, size, size)


def _third(height: int, width: int, size: int, at: int) -> Steps:
    """One of three squares along the long side: start, end, middle."""
    first = Resize(*_shortened(height, width, size), "opencv")
    step = (0, 2, 1)[at]
    part = Crop(step * ((first.height - size) // 2), step * ((first.width - size) // 2), size, size)
    return _without_nothing(height, width, [first, part])


def _tenth(height: int, width: int, size: int, first: Resize, at: int) -> Steps:
    """One of ten crops: the four corners and the centre, and the same of the mirrored frame."""
    free, middle = first.height - size, _middle(first, size)
    corners = [Crop(top, left, size, size) for top in (0, free) for left in (0, free)]
    part = [*corners, middle][at % 5]
    mirrored: list[Step] = [Flip()] if at >= 5 else []
    return _without_nothing(height, width, [first, *mirrored, part])


def _shortened(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with a short side of `side`; the long one is rounded, as mmcv does."""
    scale = side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _truncated(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with a short side of `side`; the long one is truncated, as torchvision does."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _without_nothing(height: int, width: int, steps: list[Step]) -> Steps:
    """Leave out the steps that change nothing."""
    kept: list[Step] = []
    for step in steps:
        match step:
            case Resize(h, w) | Crop(_, _, h, w) if (h, w) == (height, width):
                continue
            case Resize(h, w) | Crop(_, _, h, w) | Turn(_, Crop(_, _, h, w)):
                height, width = h, w
        kept.append(step)
    return tuple(kept)
