"""Sample the frames of a clip; its random streams (DFER-CLIP, Zhao & Patras, BMVC 2023, section 4.1)."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

FRAMES, AUGMENTATION, REPLACEMENT = 3, 4, 5
"""Purposes of a clip's random draws. Each purpose has its own stream, so that its draws do not shift another's."""
SHUFFLE = 16
"""Purpose of the random order of frames in `dfer evaluate --shuffle-frames`."""


def clip_rng(seed: int, epoch: int, index: int, *, purpose: int = FRAMES) -> np.random.Generator:
    """Return the random stream of one clip in one epoch. It does not depend on rank, worker or batch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=(purpose, epoch, index))))


def train_frames(num_frames: int, length: int, rng: np.random.Generator) -> Ids:
    """Draw one frame uniformly from each of `length` equal segments: positions, int64 [length], ascending.

    Of a clip with fewer frames, take all of them and repeat the last one.
    """
    segment = num_frames // length
    if segment == 0:
        return _all_then_last(num_frames, length)
    return np.arange(length) * segment + rng.integers(segment, size=length)


def test_frames(num_frames: int, length: int) -> Ids:
    """Return the middle frame of each of `length` equal segments: positions, int64 [length], ascending.

    Of a clip with at most `length` frames, take all of them and repeat the last one.
    """
    if num_frames <= length:
        return _all_then_last(num_frames, length)
    segment = num_frames / length  # a float, truncated once below, as published: other rounding selects other frames
    return (segment / 2 + segment * np.arange(length)).astype(np.int64)


def shuffled(length: int, seed: int, index: int) -> Ids:
    """Return a random order of the frames of a clip, int64 [length]; the same in every evaluation."""
    return clip_rng(seed, 0, index, purpose=SHUFFLE).permutation(length)


def _all_then_last(num_frames: int, length: int) -> Ids:
    return np.minimum(np.arange(length), num_frames - 1)
