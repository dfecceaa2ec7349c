"""Sample the frames of a clip as in the code of DFER-CLIP (Zhao & Patras, BMVC 2023, section 4.1), DK-CLIP (Li et al.,
ACM MM 2024) or Exp-CLIP; a clip's random streams."""

import numpy as np
from numpy.typing import NDArray

from dfer.data.config import Sampling

Ids = NDArray[np.int64]

FRAMES, AUGMENTATION, REPLACEMENT, COLOUR = 3, 4, 5, 6
"""Purposes of a clip's random draws. Each purpose has its own stream, so that its draws do not shift another's."""
SHUFFLE = 16
"""Purpose of the random order of frames in `dfer evaluate --shuffle-frames`."""


def clip_rng(seed: int, epoch: int, index: int, *, purpose: int = FRAMES) -> np.random.Generator:
    """Return the random stream of one clip in one epoch. It does not depend on rank, worker or batch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=(purpose, epoch, index))))


def train_frames(num_frames: int, length: int, rng: np.random.Generator, rule: Sampling = "dfer_clip") -> Ids:
    """Draw one frame uniformly from each of `length` equal segments: positions, int64 [length], ascending.

    Of a clip with fewer frames, what `rule` says of short clips, without a draw; they may repeat and go back to 0.
    """
    segment = num_frames // length
    if segment > 0:
        return np.arange(length) * segment + rng.integers(segment, size=length)
    if rule == "dk_clip":
        return _rounded(num_frames, length)
    return _short(num_frames, length, rule)


def test_frames(num_frames: int, length: int, rule: Sampling = "dfer_clip", *, at: float = 0.5) -> Ids:
    """Return one frame of each of `length` equal segments: positions, int64 [length], ascending.

    at: place within the segment, 0 to 1; the middle as published. `dk_clip` takes any clip so; the others a clip with
    more than `length` frames, and of a shorter one what `_short` says.
    """
    if num_frames <= length and rule != "dk_clip":
        return _short(num_frames, length, rule)
    segment = num_frames / length  # a float, truncated once below, as published: other rounding selects other frames
    return (segment * at + segment * np.arange(length)).astype(np.int64)


def shuffled(length: int, seed: int, index: int) -> Ids:
    """Return a random order of the frames of a clip, int64 [length]; the same in every evaluation."""
    return clip_rng(seed, 0, index, purpose=SHUFFLE).permutation(length)


def _short(num_frames: int, length: int, rule: Sampling) -> Ids:
    """DFER-CLIP: all frames, the last repeated. Exp-CLIP: the first frame `length` times."""
    if rule == "exp_clip":
        return np.zeros(length, np.int64)
    return np.minimum(np.arange(length), num_frames - 1)


def _rounded(num_frames: int, length: int) -> Ids:
    """DK-CLIP (its code, SampleFrames): i n / T, half to even; a position past the end counts from the start again."""
    return np.around(np.arange(length) * (num_frames / length)).astype(np.int64) % num_frames
