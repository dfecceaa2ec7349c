"""Generated faces: the pictures themselves."""

import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from dfer.emotions import BASIC7
from shards.synthetic.face import ClipPainter, Image
from shards.synthetic.identity import HAIRS, draw_identity, draw_scene
from shards.synthetic.motion import Motion, clip_motion
from shards.synthetic.sheet import clip_pictures, contact_sheet, write_sheet

ROOT = Path(__file__).parents[2]


def painter(motion: Motion, *, size: int = 96, identity: int = 0) -> ClipPainter:
    who = draw_identity(np.random.default_rng([1, identity]))
    scene = replace(draw_scene(size, rng=np.random.default_rng([2, identity])), noise=0.0)
    return ClipPainter(motion, who=who, scene=scene, size=size)


def short_motion(emotion: str, *, seed: int = 0, frames: int = 8) -> Motion:
    return clip_motion(emotion, frames=frames, rng=np.random.default_rng([3, seed]))


@pytest.mark.parametrize("size", [32, 97, 224])
def test_frames_are_rgb_of_the_asked_size(size: int) -> None:
    frames = list(painter(short_motion("fear"), size=size).frames(rng=np.random.default_rng(0)))
    assert len(frames) == 8
    assert all(f.shape == (size, size, 3) and f.dtype == np.uint8 for f in frames)
    assert all(20 < f.mean() < 235 and f.std() > 10 for f in frames)


@pytest.mark.parametrize("emotion", BASIC7)
def test_a_face_detector_trained_on_photographs_finds_the_face(emotion: str) -> None:
    """OpenCV's Haar cascade as judge: at least three of four faces at the apex, where the head is."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    found = 0
    for identity in range(12):
        picture = clip_pictures(emotion, identity=identity, seed=1, size=160)[6]
        grey = cv2.copyMakeBorder(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 30, 30, 30, 30, cv2.BORDER_REPLICATE)
        boxes = cascade.detectMultiScale(grey, 1.1, 3, minSize=(70, 70))
        found += any(abs(x + w / 2 - 110) < 25 and abs(y + h / 2 - 115) < 35 for x, y, w, h in boxes)
    assert found >= 9


def test_a_frame_depends_on_its_own_moment_alone() -> None:
    """Reversed movement gives the same pictures in reversed order, so a picture holds no trace of time's direction."""
    motion = short_motion("surprise")
    backward = Motion(
        units=motion.units[::-1], gaze=motion.gaze[::-1], rotation=motion.rotation[::-1], shift=motion.shift[::-1]
    )
    a, b = painter(motion), painter(backward)
    assert all(np.array_equal(a.draw(i), b.draw(7 - i)) for i in range(8))


def test_pictures_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    def first(seed: int) -> Image:
        return next(painter(short_motion("anger", seed=seed)).frames(rng=np.random.default_rng(seed)))

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def test_noise_is_the_scenes() -> None:
    calm = painter(short_motion("neutral"))
    noisy = painter(short_motion("neutral"))
    noisy.scene = replace(noisy.scene, noise=5.0)
    a, b = (next(p.frames(rng=np.random.default_rng(0))).astype(float) for p in (calm, noisy))
    inside = (a > 30) & (a < 225)
    assert 3.5 < (b - a)[inside].std() < 6.0


def test_people_vary() -> None:
    people = [draw_identity(np.random.default_rng([5, i])) for i in range(300)]
    assert {p.style for p in people} == {"bald", "short", "parted", "fringe", "long", "curly"}
    assert 0.13 < np.mean([p.glasses for p in people]) < 0.27
    brightness = [sum(p.skin) / 3 for p in people]
    assert min(brightness) < 90 and max(brightness) > 200
    assert len({p.hair for p in people}) > len(HAIRS)


def test_glasses_show() -> None:
    motion = short_motion("neutral")
    plain = painter(motion)
    plain.who = replace(plain.who, glasses=False)
    worn = painter(motion)
    worn.who = replace(worn.who, glasses=True)
    changed = np.abs(plain.draw(0).astype(int) - worn.draw(0)).max(2) > 20
    rows = np.flatnonzero(changed.any(1))
    assert 0.01 < changed.mean() < 0.2
    assert 96 * 0.25 < rows.mean() < 96 * 0.6  # at the height of the eyes


def test_a_hundred_frames_a_second_a_core() -> None:
    """Drawing and encoding at 224 px, in processor time so that a busy machine does not matter; best of three."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    rates = []
    for seed in range(3):
        began = time.process_time()
        frames = painter(short_motion("happiness", seed=seed, frames=24), size=224, identity=seed)
        for frame in frames.frames(rng=np.random.default_rng(0)):
            simplejpeg.encode_jpeg(frame, quality=90, colorspace="RGB", colorsubsampling="420")
        rates.append(24 / (time.process_time() - began))
    cv2.setNumThreads(threads)
    assert max(rates) >= 100


@pytest.mark.slow("draws the whole sheet")
def test_the_sheet_in_the_documentation_is_what_the_code_draws(tmp_path: Path) -> None:
    write_sheet(tmp_path / "docs" / "sheet.png", sheet=contact_sheet())
    shipped = ROOT / "docs" / "images" / "synthetic_faces.png"
    assert shipped.stat().st_size <= 300_000
    now, then = (cv2.imread(str(p)).astype(int) for p in (tmp_path / "docs" / "sheet.png", shipped))
    assert now.shape == then.shape == (7 * 84, 11 * 84, 3)
    assert np.abs(now - then).mean() < 1.0  # processors round differently


def test_sheet_of_other_classes() -> None:
    sheet = contact_sheet(emotions=("contempt", "anxiety"), people=1, times=(0.1, 0.5), size=48)
    assert sheet.shape == (2 * 48, 3 * 48, 3)
    assert (sheet[:48, :48] < 128).any(), "the class is written in the first cell"
