"""The order of numbered files: certain, or refused with two of them named."""

import random
import time

import pytest

from dfer.media.order import NoOrder, time_order

IN_ORDER = {
    "a counter": "1 2 9 10 11 100",
    "a padded counter": "00001 00002 00010",
    "DFEW": "00017_00001 00017_00002 00017_00010",
    "MAFW": "00025_1 00025_2 00025_10",
    "milliseconds": "0.0 33.36666666666667 66.73333333333333 500.50050050050055 1001.001",
    "seconds of one width": "0.9676 1.0010 1.0344 10.0100",
    "seconds as they are printed": "0.0 0.04 0.08 0.12 0.16 0.2 0.24",
    "seconds without a point": "0 0.04 0.1 1 1.04",
    "long fractions": "0.1 0.13333333333333333 0.16666666666666666 0.2",
    "seconds behind a text": "clip_7_0.96 clip_7_1.00 clip_7_1.04",
    "a counter and seconds": "frame_9_0.36 frame_10_0.40 frame_11_0.44",
    "one of two numbers": "frame_10_2 frame_10_3 frame_10_10",
    "the first of two numbers": "2_face_1 10_face_1 11_face_1",
    "a number inside": "x2_crop x10_crop",
    "nanoseconds": "1600000000900000000 1600000001000000000 1600000001100000000",
    "a dash": "img-1 img-2 img-10",
    "a minus": "-2 -1 0 1 10",
    "a minus behind a text": "t_-1.5 t_-0.5 t_0.5",
    "versions": "1.2.9 1.2.10",
    "letters of both cases": "Frame1 frame2 FRAME10",
    "one frame": "7",
}


@pytest.mark.parametrize("case", IN_ORDER)
def test_an_order_that_is_certain(case: str) -> None:
    names = [f"{stem}.{('jpg', 'PNG')[at % 2]}" for at, stem in enumerate(IN_ORDER[case].split())]
    for seed in range(5):
        assert time_order(random.Random(seed).sample(names, len(names))) == names


NOT_CERTAIN = {
    "a value or a counter": (["1.9", "1.10"], "frames 1.10.jpg and 1.9.jpg can be put in order in two ways"),
    "the same with others": (["1.8", "1.9", "1.10", "2.0"], "can be put in order in two ways"),
    "two counters": (["frame_10_2", "frame_11_1"], "frames frame_10_2.jpg and frame_11_1.jpg can be put in order"),
    "faces of a frame": (["f1_0", "f1_1", "f2_0", "f2_1"], "frames f1_1.jpg and f2_0.jpg can be put in order"),
    "a middle that disagrees": (["1_9_1", "2_1_2"], "can be put in order in two ways"),
    "a dash or a minus": (["-1", "-2"], "frames -1.jpg and -2.jpg can be put in order in two ways"),
    "a copy": (["00001", "00001 (2)"], "frames 00001 (2).jpg and 00001.jpg are named in unlike ways"),
    "two films": (["a_1", "b_2"], "frames a_1.jpg and b_2.jpg are named in unlike ways"),
    "an exponent": (["1e-05", "0.1"], "frames 0.1.jpg and 1e-05.jpg are named in unlike ways"),
    "padding": (["1", "01"], "frames 01.jpg and 1.jpg have the same number"),
    "padding beside others": (["1", "2", "01"], "frames 01.jpg and 1.jpg have the same number"),
    "one value twice": (["0.5", "0.50"], "frames 0.5.jpg and 0.50.jpg have the same number"),
    "no number": (["1", "cover"], "frame cover.jpg has no number in its name"),
    "digits of other scripts": (["\u0661", "\u0662"], "has no number in its name"),
}


@pytest.mark.parametrize("case", NOT_CERTAIN)
def test_an_order_that_is_not_certain_is_refused(case: str) -> None:
    stems, says = NOT_CERTAIN[case]
    for order in (stems, stems[::-1]):
        with pytest.raises(NoOrder) as caught:
            time_order([f"{stem}.jpg" for stem in order])
        assert says in str(caught.value)


def test_frames_that_differ_in_their_suffix_alone() -> None:
    with pytest.raises(NoOrder, match=r"frames 1\.JPG and 1\.jpg have the same number"):
        time_order(["1.jpg", "1.JPG", "2.jpg"])


def test_hostile_names_come_to_an_end_soon() -> None:
    start = time.monotonic()
    for stem in ("1." * 120 + "1", "-1" * 120, "9" * 250, "." * 250 + "1", "1_" * 120):
        time_order([f"{stem}{at}.jpg" for at in range(300)])
    assert time.monotonic() - start < 5
