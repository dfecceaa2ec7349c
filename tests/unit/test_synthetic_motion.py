"""Generated faces: what moves, when, and what only time can tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.emotions import MAFW11
from shards.synthetic.action_units import ACTION_UNITS, CANONICAL, TEMPORAL_PAIRS, apex
from shards.synthetic.geometry import face_plane
from shards.synthetic.identity import draw_identity
from shards.synthetic.motion import Motion, clip_motion

CLIPS = 300
FRAMES = 24


def motions(emotion: str, *, start: int) -> list[Motion]:
    return [clip_motion(emotion, frames=FRAMES, rng=np.random.default_rng([7, start + i])) for i in range(CLIPS)]


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    grid = np.sort(np.concatenate([a, b]))
    cdf = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    return float(np.abs(cdf[0] - cdf[1]).max())


# Below this two samples of CLIPS each are taken for one distribution: c(alpha) sqrt(2/n) at alpha = 1e-4.
KS_LIMIT = 2.225 * (2 / CLIPS) ** 0.5


@pytest.mark.parametrize("pair", TEMPORAL_PAIRS, ids="/".join)
def test_no_order_free_statistic_tells_a_pair_apart(pair: tuple[str, str]) -> None:
    """Mean, maximum and median over time of every unit are distributed alike in independent samples of both classes."""
    first, second = (np.stack([m.units for m in motions(e, start=CLIPS * k)]) for k, e in enumerate(pair))
    for statistic in (np.mean, np.max, np.median):
        a, b = statistic(first, axis=1), statistic(second, axis=1)
        for unit in range(len(ACTION_UNITS)):
            assert ks_distance(a[:, unit], b[:, unit]) < KS_LIMIT, (statistic.__name__, ACTION_UNITS[unit])


@pytest.mark.parametrize("pair", TEMPORAL_PAIRS, ids="/".join)
@pytest.mark.parametrize("sampled", [FRAMES, 16, 8])
def test_order_separates_a_pair(pair: tuple[str, str], sampled: int) -> None:
    """First half minus second half of the total intensity has a sign for each class, also in 8 sampled frames."""
    picks = ((np.arange(sampled) + 0.5) / sampled * FRAMES).astype(int)
    right = 0
    for k, (emotion, sign) in enumerate(zip(pair, (1, -1), strict=True)):
        for motion in motions(emotion, start=CLIPS * k):
            total = motion.units[picks].sum(1)
            right += sign * (total[: sampled // 2].mean() - total[sampled // 2 :].mean()) > 0
    assert right / (2 * CLIPS) > 0.95


@pytest.mark.parametrize("emotion", [name for pair in TEMPORAL_PAIRS for name in pair])
def test_nothing_but_the_expression_tells_the_direction_of_time(emotion: str) -> None:
    """Blinks, gaze and head motion of independent clips and of reversed clips have the same slopes."""
    forward, backward = motions(emotion, start=0), motions(emotion, start=CLIPS)
    blink = ACTION_UNITS.index("43")

    def slopes(motion: Motion, step: int) -> np.ndarray:
        tracks = np.concatenate([motion.units[:, [blink]], motion.gaze, motion.rotation, motion.shift], axis=1)[::step]
        return tracks[: FRAMES // 2].mean(0) - tracks[FRAMES // 2 :].mean(0)

    a, b = (np.stack([slopes(m, s) for m in ms]) for ms, s in ((forward, 1), (backward, -1)))
    assert all(ks_distance(a[:, i], b[:, i]) < KS_LIMIT for i in range(a.shape[1]))


def test_the_statistic_can_tell_a_difference() -> None:
    """The oracle of the tests above does see a class that differs in its frames."""
    a, b = (np.stack([m.units.mean(0) for m in motions(e, start=0)]) for e in ("surprise", "anger"))
    assert ks_distance(a[:, ACTION_UNITS.index("26")], b[:, ACTION_UNITS.index("26")]) > 3 * KS_LIMIT


@given(st.sampled_from(MAFW11), st.integers(8, 47), st.integers(0, 2**32 - 1))
def test_motion_has_its_shape_and_range(emotion: str, frames: int, seed: int) -> None:
    motion = clip_motion(emotion, frames=frames, rng=np.random.default_rng(seed))
    assert motion.units.shape == (frames, len(ACTION_UNITS))
    assert motion.units.min() >= 0 and motion.units.max() <= 1
    assert np.abs(motion.gaze).max() <= 1
    assert np.abs(np.degrees(motion.rotation)).max() < 25
    again = clip_motion(emotion, frames=frames, rng=np.random.default_rng(seed))
    assert np.array_equal(motion.units, again.units) and np.array_equal(motion.rotation, again.rotation)


@pytest.mark.parametrize("emotion", [e for e in MAFW11 if e not in ("neutral", *sum(TEMPORAL_PAIRS, ()))])
def test_an_expression_rises_holds_and_falls(emotion: str) -> None:
    """Onset, apex, offset: the main unit is near its apex in the middle and low at both ends."""
    main = ACTION_UNITS.index(max(CANONICAL[emotion], key=CANONICAL[emotion].__getitem__))
    other = ACTION_UNITS.index(ACTION_UNITS[main].replace("R", "L"))
    for seed in range(40):
        units = clip_motion(emotion, frames=32, rng=np.random.default_rng(seed)).units
        track = np.maximum(units[:, main], units[:, other])
        assert track[14:18].min() > 0.9 * track.max()
        assert track.max() > 0.3
        assert max(track[0], track[-1]) < 0.5 * track.max()


def test_classes_outside_the_pairs_differ_at_the_apex() -> None:
    """Nearest mean apex names the class of unseen apexes nearly always, pairs counted as one class."""
    group = {name: "/".join(pair) for pair in TEMPORAL_PAIRS for name in pair}
    draws = {e: np.stack([apex(e, rng=np.random.default_rng([i, 1])) for i in range(60)]) for e in MAFW11}
    folded = {e: np.maximum(d, d[:, [mirror(i) for i in range(len(ACTION_UNITS))]]) for e, d in draws.items()}
    centres = {e: d[:30].mean(0) for e, d in folded.items()}
    names = list(centres)
    right = []
    for emotion, vectors in folded.items():
        for vector in vectors[30:]:
            nearest = names[int(np.argmin([np.sum((vector - centres[name]) ** 2) for name in names]))]
            right.append(group.get(nearest, nearest) == group.get(emotion, emotion))
    assert np.mean(right) > 0.95


def mirror(unit: int) -> int:
    name = ACTION_UNITS[unit]
    return ACTION_UNITS.index(name.translate(str.maketrans("LR", "RL")))


def still(**units: float) -> Motion:
    """One frame, facing the camera, with the given units contracted (`au12L=1.0`)."""
    row = np.zeros((1, len(ACTION_UNITS)))
    for name, value in units.items():
        row[0, ACTION_UNITS.index(name.removeprefix("au"))] = value
    return Motion(units=row, gaze=np.zeros((1, 2)), rotation=np.zeros((1, 3)), shift=np.zeros((1, 2)))


def landmarks(**units: float) -> dict[str, float]:
    """Distances that FACS describes, in the face plane; y grows downwards."""
    plane = face_plane(still(**units), who=draw_identity(np.random.default_rng(3)))
    mouth, eye = plane.mouth, plane.eyes["R"]
    brow = eye.brow[0].reshape(2, 13, 2)
    return {
        "corner_x": float(mouth.inner_upper[0, -1, 0]),
        "corner_y": float(mouth.inner_upper[0, -1, 1]),
        "left_corner_y": float(mouth.inner_upper[0, 0, 1]),
        "lip_centre_y": float(mouth.inner_upper[0, 12, 1]),
        "upper_lip_y": float(mouth.outer_upper[0, 12, 1]),
        "gap": float((mouth.inner_lower - mouth.inner_upper)[0, 12, 1]),
        "lip_height": float((mouth.inner_upper - mouth.outer_upper)[0, 8, 1]),
        "eye_opening": float((eye.lower - eye.upper)[0, 8, 1]),
        "lower_lid_y": float(eye.lower[0, 8, 1]),
        "inner_brow_y": float(brow[0, 0, 1]),
        "outer_brow_y": float(brow[0, 9, 1]),
        "inner_brow_x": float(brow[0, 0, 0]),
        "chin_y": float(plane.outline[0, :, 1].max()),
    }


@pytest.mark.parametrize(
    ("unit", "measure", "direction"),
    [
        ("1", "inner_brow_y", -1),
        ("2", "outer_brow_y", -1),
        ("4", "inner_brow_y", +1),
        ("4", "inner_brow_x", -1),
        ("5", "eye_opening", +1),
        ("6", "lower_lid_y", -1),
        ("7", "eye_opening", -1),
        ("10", "upper_lip_y", -1),
        ("12R", "corner_y", -1),
        ("12R", "corner_x", +1),
        ("12L", "left_corner_y", -1),
        ("15", "corner_y", +1),
        ("17", "lip_centre_y", -1),
        ("20", "corner_x", +1),
        ("23", "corner_x", -1),
        ("24", "lip_height", -1),
        ("25", "gap", +1),
        ("26", "gap", +1),
        ("26", "chin_y", +1),
        ("43", "eye_opening", -1),
    ],
)
def test_a_unit_moves_what_facs_says(unit: str, measure: str, direction: int) -> None:
    """Directions from the FACS manual's descriptions of appearance changes."""
    change = landmarks(**{f"au{unit}": 1.0})[measure] - landmarks()[measure]
    assert direction * change > 0.01


def test_units_of_one_side_leave_the_other() -> None:
    assert landmarks(au12R=1.0)["left_corner_y"] == pytest.approx(landmarks()["left_corner_y"], abs=1e-6)


def test_closed_eyes_are_closed() -> None:
    assert landmarks(au43=1.0)["eye_opening"] == pytest.approx(0.0, abs=1e-6)
