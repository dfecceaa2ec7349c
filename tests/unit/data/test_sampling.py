"""Frame sampling of DFER-CLIP: hand-computed cases, and the published rule restated another way."""

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.data import sampling
from dfer.data.sampling import clip_rng

lengths = st.integers(1, 40)
frames = st.integers(1, 1000)


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [0] * 16),
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7]),
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9]),
        (16, list(range(16))),
        (17, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]),
        (33, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31]),
        (847, [26, 79, 132, 185, 238, 291, 344, 397, 449, 502, 555, 608, 661, 714, 767, 820]),
    ],
)
def test_test_frames_by_hand(num_frames, expected):
    assert sampling.test_frames(num_frames, 16).tolist() == expected


@given(frames, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_test_frames_are_the_middles_of_equal_parts(n, length):
    """In exact fractions; lengths that are powers of two have no rounding in floats either."""
    got = sampling.test_frames(n, length).tolist()
    if n > length:
        assert got == [floor(Fraction(n * (2 * i + 1), 2 * length)) for i in range(length)]
    else:
        assert got == ([*range(n)] + [n - 1] * length)[:length]


@given(frames, lengths)
def test_test_frames_follow_the_published_float_rule(n, length):
    published = [int(n / length / 2 + n / length * i) for i in range(length)] if n > length else None
    got = sampling.test_frames(n, length).tolist()
    assert got == published or n <= length
    assert got == sorted(got)
    assert got[0] >= 0 and got[-1] < n
    assert len(got) == length


@given(frames, lengths, st.integers(0, 2**62))
def test_train_frames_take_one_frame_of_each_segment(n, length, seed):
    got = sampling.train_frames(n, length, clip_rng(seed, 0, 0)).tolist()
    assert len(got) == length
    if n < length:
        assert got == [min(i, n - 1) for i in range(length)]
    else:
        segments = [range(i * (n // length), (i + 1) * (n // length)) for i in range(length)]
        assert all(frame in segment for frame, segment in zip(got, segments, strict=True))


@pytest.mark.parametrize("num_frames", [8, 10, 16, 31])
def test_train_frames_of_short_clips_have_nothing_to_draw(num_frames):
    expected = [min(i, num_frames - 1) for i in range(16)]
    for index in range(20):
        assert sampling.train_frames(num_frames, 16, clip_rng(1, 0, index)).tolist() == expected


def test_train_frames_are_uniform_in_each_segment():
    """33 frames, 16 segments of two: the last frame is never taken, each other one in half of the draws."""
    counts = np.zeros(33)
    for index in range(2000):
        counts[sampling.train_frames(33, 16, clip_rng(1, 0, index))] += 1
    assert counts[32] == 0
    assert np.all(abs(counts[:32] - 1000) < 5 * np.sqrt(500))


def test_draws_depend_on_seed_epoch_clip_and_purpose_alone():
    def first(*key, **purpose):
        return clip_rng(*key, **purpose).integers(2**60)

    assert first(1, 2, 3) == first(1, 2, 3)
    others = [first(2, 2, 3), first(1, 3, 3), first(1, 2, 4), first(1, 3, 2), first(1, 2, 3, purpose=4)]
    assert len({int(first(1, 2, 3)), *map(int, others)}) == 6


@given(st.integers(1, 1000), st.integers(0, 100), st.integers(0, 10_000))
def test_streams_of_different_clips_are_not_shifted_copies(seed, epoch, index):
    a = clip_rng(seed, epoch, index).integers(2**60, size=8).tolist()
    b = clip_rng(seed, epoch, index + 1).integers(2**60, size=8).tolist()
    assert not set(a) & set(b)


@given(frames, lengths, st.integers(0, 1000))
def test_dk_clip_draws_as_dfer_clip_does_from_long_clips(n, length, seed):
    n += length
    theirs, ours = (
        sampling.train_frames(n, length, clip_rng(seed, 0, 0), rule).tolist() for rule in ("dk_clip", "dfer_clip")
    )
    assert theirs == ours


@pytest.mark.parametrize(
    ("num_frames", "train", "test"),
    [
        (1, [0] * 16, [0] * 16),
        # i n / 16 half to even: 0 .5 1 1.5 2 ...; 7.5 becomes 8, which is frame 0 again
        (8, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        (12, [0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 10, 11], [0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11]),
    ],
)
def test_dk_clip_repeats_the_frames_of_short_clips_in_order(num_frames, train, test):
    assert sampling.train_frames(num_frames, 16, clip_rng(1, 0, 0), "dk_clip").tolist() == train
    assert sampling.test_frames(num_frames, 16, "dk_clip").tolist() == test


@given(frames, lengths)
def test_exp_clip_repeats_the_first_frame_of_clips_that_are_not_longer(n, length):
    got = sampling.test_frames(n, length, "exp_clip").tolist()
    assert got == ([0] * length if n <= length else sampling.test_frames(n, length).tolist())
    short = sampling.train_frames(n, length, clip_rng(1, 0, 0), "exp_clip").tolist()
    assert n >= length or short == [0] * length


@given(frames, lengths, st.sampled_from(["dfer_clip", "dk_clip", "exp_clip"]), st.integers(1, 6))
def test_every_place_in_the_segments_is_in_the_clip_and_later_places_are_not_before(n, length, rule, clips):
    places = [sampling.test_frames(n, length, rule, at=(view + 0.5) / clips) for view in range(clips)]
    assert all(len(each) == length and each.min() >= 0 and each.max() < n for each in places)
    assert all((later >= earlier).all() for earlier, later in pairwise(places))


@pytest.mark.parametrize("rule", ["dfer_clip", "dk_clip", "exp_clip"])
def test_of_a_still_there_is_one_frame(rule):
    assert sampling.test_frames(1, 1, rule).tolist() == [0]
    assert sampling.train_frames(1, 1, clip_rng(1, 0, 0), rule).tolist() == [0]
