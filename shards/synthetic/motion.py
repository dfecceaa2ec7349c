"""Generate action units, gaze and head pose over the frames of a clip: onset, apex, offset.

Three of the seven classes (happiness, sadness, neutral) are visible in apex frames. The other four form two pairs,
surprise/fear and anger/disgust, whose frames are drawn from the same distribution: the same blends of the two
canonical patterns, under the same set of intensities. Only the order differs. Surprise and anger start within the
first tenth to fifth of the clip and then fade until its end; fear and disgust run the same curve backwards. Their
curve for generator g is exactly the reversed curve of the partner for the same g, so every statistic that ignores
the order of frames (a mean of frame features, a histogram, a maximum) is distributed equally for both, and no model
can do better than chance within a pair without looking at order.

For that to hold, nothing else may reveal the direction of time. Blinks are symmetric pulses, gaze jumps between
independent targets, head motion is a sum of sinusoids of random phase: each is distributed like its own reversal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.synthetic.action_units import COLUMN, TEMPORAL_PAIRS, Array, apex

BACKWARDS = frozenset(second for _, second in TEMPORAL_PAIRS)
PAIRED = frozenset(name for pair in TEMPORAL_PAIRS for name in pair)
# Head rotation in radians and gaze at the apex of the expression: (pitch, roll, gaze x, gaze y).
POSTURE: dict[str, tuple[float, float, float, float]] = {
    "sadness": (0.05, 0.0, 0.0, 0.35),
    "contempt": (-0.05, 0.03, 0.3, 0.0),
    "helplessness": (-0.04, 0.14, 0.0, -0.8),
    "disappointment": (0.12, 0.05, 0.4, 0.9),
}


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The movement of one clip of T frames.

    units: (T, K) intensities in [0, 1] in the order of `ACTION_UNITS`.
    gaze: (T, 2) iris offset, -1 to 1, right and down.
    rotation: (T, 3) yaw, pitch, roll in radians.
    shift: (T, 2) translation of the head in half image widths.
    """

    units: Array
    gaze: Array
    rotation: Array
    shift: Array


def frame_times(frames: int) -> Array:
    """Return the midpoints of `frames` equal steps of [0, 1]; reversing the clip maps t to 1 - t exactly."""
    return ((np.arange(frames) + 0.5) / frames).astype(np.float32)


def smoothstep(x: Array) -> Array:
    """The cubic 3x^2 - 2x^3 on [0, 1], constant outside."""
    x = np.clip(x, 0.0, 1.0)
    out: Array = x * x * (3.0 - 2.0 * x)
    return out


def fade_curve(times: Array, *, rng: np.random.Generator) -> Array:
    """Abrupt onset in the first tenth to fifth of the clip, then a slow fade to its end; shape (T,), in [0, 1]."""
    start, peak = rng.uniform(0.0, 0.06), rng.uniform(0.10, 0.18)
    power = rng.uniform(0.8, 1.2)
    rise = smoothstep((times - start) / (peak - start))
    fall = np.clip((1.0 - times) / (1.0 - peak), 0.0, 1.0) ** power
    out: Array = np.minimum(rise, fall)
    return out


def hold_curve(times: Array, *, rng: np.random.Generator) -> Array:
    """Onset, held apex and offset, the two flanks drawn from one distribution; shape (T,), in [0, 1]."""
    (lead, rise), (tail, fall) = rng.uniform([0.0, 0.12], [0.10, 0.30], (2, 2))
    up, down = smoothstep((times - lead) / rise), smoothstep((1.0 - tail - times) / fall)
    return np.minimum(up, down)


def expression_curve(emotion: str, *, times: Array, rng: np.random.Generator) -> Array:
    """The envelope of the expression over time, shape (T,); reversed for the second of a temporal pair."""
    curve = fade_curve(times, rng=rng) if emotion in PAIRED else hold_curve(times, rng=rng)
    return curve[::-1] if emotion in BACKWARDS else curve


def blinks(times: Array, *, rng: np.random.Generator, rate: float = 0.8) -> Array:
    """Draw eyelid closure (T,): on average `rate` blinks per clip, each a symmetric pulse of about 8 % of the clip."""
    out = np.zeros_like(times)
    for centre in rng.uniform(0.0, 1.0, rng.poisson(rate)):
        out = np.maximum(out, np.clip(1.4 - np.abs(times - centre) / 0.03, 0.0, 1.0))
    return out.astype(np.float32)


def saccades(times: Array, *, rng: np.random.Generator, targets: int) -> Array:
    """Draw gaze (T, 2) that rests on `targets` independent points and jumps between them."""
    edges = np.sort(rng.uniform(0.0, 1.0, targets - 1))
    points = rng.normal(0.0, 0.25, (targets, 2)) * (1.0, 0.6)
    out: Array = points[np.searchsorted(edges, times)].astype(np.float32)
    return out


def sway(times: Array, *, rng: np.random.Generator, size: float) -> Array:
    """Draw a slow movement (T,) of amplitude about `size`: two sinusoids of random frequency and phase."""
    frequency, phase = rng.uniform(0.3, 2.0, 2), rng.uniform(0.0, 2.0 * np.pi, 2)
    waves = np.sin(2.0 * np.pi * times[:, None] * frequency + phase)
    out: Array = size * waves.sum(1) / 2.0
    return out


def clip_motion(emotion: str, *, frames: int, rng: np.random.Generator) -> Motion:
    """Draw the movement of a clip of `emotion` with `frames` frames; depends on `rng` only.

    With equal generators, the two classes of a temporal pair get the same resting pose, blinks and sway, and each
    other's action units in reversed order.
    """
    times = frame_times(frames)
    peak = apex(emotion, rng=rng)
    envelope = expression_curve(emotion, times=times, rng=rng)
    rest = rng.uniform(0.0, 0.06, len(peak)) * (rng.random(len(peak)) < 0.3)
    units = np.clip(rest + peak * envelope[:, None], 0.0, 1.0)
    if emotion == "anxiety":  # the mouth moves to and fro: a sinusoid of random phase has no direction in time
        units[:, COLUMN["20"]] *= 0.75 + 0.25 * np.sin(2 * np.pi * (3.0 * times + rng.random()))
    units[:, COLUMN["43"]] = np.maximum(units[:, COLUMN["43"]], blinks(times, rng=rng))
    gaze = saccades(times, rng=rng, targets=int(rng.integers(1, 4)))
    if emotion == "anxiety":
        gaze = gaze + saccades(times, rng=rng, targets=8) * (2.2, 0.5)
    pitch, roll, look_x, look_y = POSTURE.get(emotion, (0.0, 0.0, 0.0, 0.0))
    side = rng.choice((-1.0, 1.0))
    gaze = gaze + envelope[:, None] * (side * look_x, look_y)
    rotation = rng.uniform(-1.0, 1.0, 3) * (0.12, 0.09, 0.08) + np.stack(
        [sway(times, rng=rng, size=0.05) for _ in range(3)], axis=1
    )
    rotation = rotation + envelope[:, None] * (0.0, pitch, side * roll)
    shift = rng.uniform(-0.04, 0.04, 2) + np.stack([sway(times, rng=rng, size=0.015) for _ in range(2)], axis=1)
    return Motion(
        units=units.astype(np.float32),
        gaze=np.clip(gaze, -1.0, 1.0).astype(np.float32),
        rotation=rotation.astype(np.float32),
        shift=shift.astype(np.float32),
    )
