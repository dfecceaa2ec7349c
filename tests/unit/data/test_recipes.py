"""Every input recipe against what its release makes of pictures: recorded by `tests/reference/record_recipes.py`, or,
where the release only calls torchvision, against torchvision itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from dfer.data import crops
from dfer.data.augment import Draw, recolour
from dfer.data.geometry import Brightness, Crop, Flip, Resize, Step, Turn, apply
from dfer.data.recipes import ClipAugment, ClivpFerAugment, CnnAugment, DferClipAugment, DkClipAugment
from dfer.data.sampling import test_frames as published_test_frames
from dfer.data.sampling import train_frames
from tests.reference.pictures import picture

HERE = Path(__file__).parents[2] / "reference"
RECORDED = np.load(HERE / "recipes.npz")
DRAWS = json.loads((HERE / "recipes.json").read_text())["draws"]
SIZE = 56
SHAPES = ((64, 64), (80, 60), (50, 72))
shapes = pytest.mark.parametrize("number", range(len(SHAPES)))
twice = pytest.mark.parametrize("number", range(2 * len(SHAPES)))


def difference(got: NDArray[np.uint8], name: str) -> int:
    """The largest difference in levels from a recorded array."""
    expected = RECORDED[name]
    assert got.shape == expected.shape
    return int(np.abs(got.astype(int) - expected).max())


def stored(number: int, seed: int) -> NDArray[np.uint8]:
    return picture(*SHAPES[number % len(SHAPES)], seed)


@twice
def test_dfer_clip_s_training_is_the_release_s_within_one_level(number: int) -> None:
    drawn, frame = DRAWS[f"dfer_clip/{number}"], stored(number, number)
    left, top, right, bottom = (int(x) for x in drawn["crop"])
    part = Crop(top, left, bottom - top, right - left)
    steps: list[Step] = [Turn(drawn["rotate"][0], part)] if "rotate" in drawn else [part]
    steps += [Brightness(drawn["brightness"])] if "brightness" in drawn else []
    steps += [Flip()] if "transpose" in drawn else []
    assert difference(apply((*steps, Resize(SIZE, SIZE)), frame), f"dfer_clip/{number}") <= 1


@shapes
def test_dfer_clip_s_test_is_the_release_s_within_one_level(number: int) -> None:
    (seen,) = crops.fixed(DferClipAugment(), size=SIZE)
    assert difference(apply(seen(*SHAPES[number]), stored(number, number)), f"dfer_clip/test/{number}") <= 1


@twice
def test_dk_clip_s_training_is_the_release_s_to_the_level(number: int) -> None:
    """The crop is one of ours as well: of the fifty there are, one is the release's."""
    drawn, (height, width) = DRAWS[f"dk_clip/{number}"], SHAPES[number % len(SHAPES)]
    left, top, right, bottom = drawn["crop"]
    part, config = Crop(top, left, bottom - top, right - left), DkClipAugment(flip=float(drawn["flip"]))
    for seed in range(2000):
        steps = crops.draw(config, np.random.default_rng(seed), height=height, width=width, size=SIZE)
        if part in steps or (part == Crop(0, 0, 64, 64) and not any(isinstance(step, Crop) for step in steps)):
            break
    assert difference(apply(steps, stored(number, 20 + number)), f"dk_clip/{number}") == 0


@shapes
def test_dk_clip_s_test_is_the_release_s_to_the_level(number: int) -> None:
    frame = stored(number, 20 + number)
    (seen,) = crops.fixed(DkClipAugment(), size=SIZE)
    assert difference(apply(seen(*SHAPES[number]), frame), f"dk_clip/test/{number}") == 0
    three = [apply(each(*SHAPES[number]), frame) for each in crops.fixed(DkClipAugment(), size=SIZE, crops=3)]
    assert difference(np.stack(three), f"dk_clip/three/{number}") == 0


def test_dk_clip_s_colours_are_the_release_s_to_the_level() -> None:
    drawn, frames = DRAWS["dk_clip/jitter"], [picture(32, 32, 40 + number) for number in range(2)]
    order = np.array([frame["order"] for frame in drawn])
    factors = np.array([frame["factors"] for frame in drawn])
    for name, draw in (("jitter", Draw(factors, order, grey=False)), ("grey", Draw(None, None, grey=True))):
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        recolour(clip, draw)
        assert difference(clip.permute(0, 2, 3, 1).numpy(), f"dk_clip/{name}") == 0


def test_dk_clip_s_sampling_is_the_release_s() -> None:
    for count, expected in enumerate(RECORDED["dk_clip/sampling/test"].tolist(), start=1):
        assert published_test_frames(count, 16, "dk_clip").tolist() == expected
    for count, expected in enumerate(RECORDED["dk_clip/sampling/train"].tolist(), start=1):
        assert train_frames(count, 16, np.random.default_rng(0), "dk_clip").tolist() == expected


@pytest.mark.parametrize("number", range(4))
def test_the_cnns_training_is_the_release_s_to_the_pixel(number: int) -> None:
    drawn = DRAWS[f"cnn/{number}"]
    left, top, *_ = (int(x) for x in drawn["crop"])
    steps = (Crop(top, left, 44, 44), *([Flip()] if "transpose" in drawn else []))
    assert difference(apply(steps, picture(48, 48, number)), f"cnn/{number}") == 0


def test_the_cnns_ten_crops_are_the_release_s_to_the_pixel() -> None:
    ten = [apply(seen(48, 48), picture(48, 48, 9)) for seen in crops.fixed(CnnAugment(), size=44, crops=10)]
    assert difference(np.stack(ten), "cnn/ten") == 0


@shapes
def test_clip_s_test_is_the_release_s_within_one_level(number: int) -> None:
    (seen,) = crops.fixed(ClipAugment(), size=SIZE)
    assert difference(apply(seen(*SHAPES[number]), stored(number, number)), f"clip/test/{number}") <= 1


@pytest.mark.parametrize("seed", range(8))
def test_clip_s_training_is_torchvision_s_within_one_level(seed: int) -> None:
    """CoOp's crop: `RandomResizedCrop(size, interpolation=bicubic)`, flip."""
    height, width = SHAPES[seed % len(SHAPES)]
    frame = picture(height, width, seed)
    steps = crops.draw(ClipAugment(), np.random.default_rng(seed), height=height, width=width, size=SIZE)
    part = next(step for step in steps if isinstance(step, Crop))
    resized = transforms.functional.resized_crop(
        Image.fromarray(frame), part.top, part.left, part.height, part.width, [SIZE, SIZE], InterpolationMode.BICUBIC
    )
    expected = np.asarray(transforms.functional.hflip(resized) if Flip() in steps else resized).astype(int)
    assert np.abs(apply(steps, frame) - expected).max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_clivp_fer_s_training_is_torchvision_s_within_one_level(seed: int) -> None:
    """Its list of transforms: `Resize((224,))`, flip, `RandomRotation(30)`, of square pictures."""
    frame = picture(80, 80, seed)
    steps = crops.draw(ClivpFerAugment(), np.random.default_rng(seed), height=80, width=80, size=SIZE)
    turn = next(step for step in steps if isinstance(step, Turn))
    image = transforms.Resize((SIZE,))(Image.fromarray(frame))
    image = transforms.functional.hflip(image) if Flip() in steps else image
    expected = np.asarray(transforms.functional.rotate(image, turn.angle)).astype(int)
    got = apply(steps, frame)
    assert np.abs(got - expected).max() <= 1 and np.array_equal((got == 0).all(-1), (expected == 0).all(-1))
    assert abs(turn.angle) <= 30
