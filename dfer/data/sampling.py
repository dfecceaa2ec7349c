"""Which frames of a clip are read, and a clip's random draws (DFER-CLIP, Zhao & Patras, BMVC 2023, section 4.1)."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

FRAMES, AUGMENTATION, REPLACEMENT = 3, 4, 5
"""What a clip's draws are for; one purpose never shifts the draws of another."""


def clip_rng(seed: int, epoch: int, index: int, *, purpose: int = FRAMES) -> np.random.Generator:
    """The random stream of one clip in one epoch; depends on nothing else, so not on rank, worker or batch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=(purpose, epoch, index))))


def train_frames(num_frames: int, length: int, rng: np.random.Generator) -> Ids:
    """One uniformly drawn frame from each of `length` equal segments, int64 [length], ascending.

    A clip with fewer frames than that gives all of them, the last one repeated.
    """
    segment = num_frames // length
    if segment == 0:
        return _all_then_last(num_frames, length)
    return np.arange(length) * segment + rng.integers(segment, size=length)


def test_frames(num_frames: int, length: int) -> Ids:
    """The middle frame of each of `length` equal segments, int64 [length], ascending.

    A clip of at most `length` frames gives all of them, the last one repeated.
    """
    if num_frames <= length:
        return _all_then_last(num_frames, length)
    segment = num_frames / length  # float, and truncated once, as published: other roundings pick other frames
    return (segment / 2 + segment * np.arange(length)).astype(np.int64)


def _all_then_last(num_frames: int, length: int) -> Ids:
    return np.minimum(np.arange(length), num_frames - 1)
