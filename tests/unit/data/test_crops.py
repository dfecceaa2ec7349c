"""Geometry of training and test frames against Pillow's operations and the published distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from dfer.config import ConfigProblem
from dfer.data import crops
from dfer.data.geometry import MAX_PIXELS, Brightness, Crop, Flip, Resize, Step, Steps, Turn, apply
from dfer.data.recipes import (
    AugmentConfig,
    ClipAugment,
    ClivpFerAugment,
    CnnAugment,
    DferClipAugment,
    DkClipAugment,
    ViewsConfig,
)

OFF = DferClipAugment(crop=False, flip=0.0)
DFEW = DferClipAugment(brightness=0.5)
BOTH = DferClipAugment(brightness=0.5, rotation=4.0)


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures [N H W C]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in small])


def noise(side: int, seed: int = 0) -> np.ndarray:
    """A picture whose neighbouring pixels have nothing in common."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def in_pillow(picture: np.ndarray, steps: Steps) -> np.ndarray:
    """The published order with Pillow: brightness, rotation, crop, resize, flip."""

    def of(kind: type) -> Step | None:
        return next((step for step in steps if isinstance(step, kind)), None)

    image = Image.fromarray(picture)
    brightness, turn, size = of(Brightness), of(Turn), of(Resize)
    if brightness:
        image = ImageEnhance.Brightness(image).enhance(brightness.factor)
    if turn:
        image = image.rotate(turn.angle)  # nearest, without expansion
    part = turn.part if turn else of(Crop)
    if part:
        image = image.crop((part.left, part.top, part.left + part.width, part.top + part.height))
    if size:
        image = image.resize((size.width, size.height), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if of(Flip) else image).astype(int)


@pytest.mark.parametrize("steps", [64, 90, 127, 128, 129, 160, 192, 256])
def test_brightness_is_pillows_to_the_level(steps):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    drawn = (Brightness(steps / 128),)
    assert np.array_equal(apply(drawn, levels), in_pillow(levels, drawn))


@pytest.mark.parametrize("side", [47, 48, 224])
@pytest.mark.parametrize("angle", [-4.0, -1.3, 0.01, 2.7, 4.0, 45.0, 90.0, -179.5, 180.0])
def test_rotation_is_pillows_nearest_to_the_pixel(angle, side):
    drawn = (Turn(angle, Crop(0, 0, side, side)),)
    assert np.array_equal(apply(drawn, noise(side)), in_pillow(noise(side), drawn))


@given(st.floats(-180, 180), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_angle_takes_pillows_pixels(angle, seed):
    drawn = (Turn(angle, Crop(0, 0, 40, 40)),)
    assert np.array_equal(apply(drawn, noise(40, seed)), in_pillow(noise(40, seed), drawn))


def test_rotation_makes_no_colours_and_is_counterclockwise():
    """Two colours stay two, with black; a mark on the right goes up."""
    picture = np.full((33, 33, 3), 200, np.uint8)
    picture[16, 30] = 77
    out = apply((Turn(4.0, Crop(0, 0, 33, 33)),), picture)
    assert set(np.unique(out).tolist()) == {0, 77, 200}
    assert np.argwhere(out[..., 0] == 77).tolist() == [[15, 30]]  # 14 pixels x sin 4 degrees is one


@given(st.integers(0, 2**32), st.sampled_from([DferClipAugment(), DFEW, BOTH]))
@settings(max_examples=60, deadline=None)
def test_whole_draws_agree_with_pillow_within_one_level(seed, config):
    """Out of stored frames that are larger than the size, smaller, and not square."""
    height, width = ((64, 64), (80, 51), (30, 44))[seed % 3]
    picture = pictures(1, height, width, seed=seed % 1000)[0]
    steps = crops.draw(config, np.random.default_rng(seed), height=height, width=width, size=48)
    got = apply(steps, picture)
    assert got.shape == (48, 48, 3) and np.abs(got - in_pillow(picture, steps)).max() <= 1


RECIPES: list[AugmentConfig] = [BOTH, DkClipAugment(), CnnAugment(), ClivpFerAugment(), ClipAugment()]
every = pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.name)


@every
@pytest.mark.parametrize(("height", "width"), [(48, 48), (256, 256), (60, 91), (120, 47), (7, 30)])
def test_frames_of_any_shape_get_the_size(config, height, width):
    picture = pictures(1, height, width)[0]
    for index in range(30):
        seen = crops.drawn(config, size=44, seed=1, epoch=0, index=index)
        assert apply(seen(height, width), picture).shape == (44, 44, 3)
    for count in config.crops:
        for seen in crops.fixed(config, size=44, crops=count):
            assert apply(seen(height, width), picture).shape == (44, 44, 3)


@every
def test_the_picture_itself_is_never_changed(config):
    picture = pictures(1, 50, 60)[0]
    before = picture.copy()
    for index in range(20):
        apply(crops.drawn(config, size=44, seed=1, epoch=0, index=index)(50, 60), picture)
    assert np.array_equal(picture, before)


@every
def test_seed_epoch_and_clip_alone_decide_the_draw(config):
    def steps(**changes: int) -> list[Steps]:
        """Of 40 clips from some number on, as one of them alone can come out alike."""
        at = {"seed": 1, "epoch": 0, "first": 0} | changes
        seen = (
            crops.drawn(config, size=44, seed=at["seed"], epoch=at["epoch"], index=at["first"] + n) for n in range(40)
        )
        return [each(70, 80) for each in seen]

    assert steps() == steps()
    assert steps() != steps(seed=2) and steps() != steps(epoch=1) and steps() != steps(first=1)


@every
def test_switched_off_it_is_what_a_test_sees(config):
    still = type(config)(**config.still)
    (test,) = crops.fixed(still, size=44)
    picture = pictures(1, 60, 77)[0]
    for index in range(20):
        seen = crops.drawn(still, size=44, seed=1, epoch=0, index=index)
        assert np.array_equal(apply(seen(60, 77), picture), apply(test(60, 77), picture))


def test_nothing_is_done_to_a_test_frame_of_the_size():
    (seen,) = crops.fixed(DFEW, size=48)
    assert seen(48, 48) == () and seen(48, 50) == (Resize(48, 48),)


def parts(config: AugmentConfig, count: int = 4000, height: int = 224, width: int = 224) -> list[Crop]:
    """Crops of many draws."""
    rng = np.random.default_rng(5)
    drawn = [crops.draw(config, rng, height=height, width=width, size=224) for _ in range(count)]
    whole = Crop(0, 0, height, width)
    return [next((step for step in steps if isinstance(step, Crop)), whole) for steps in drawn]


def test_crop_statistics():
    """Against the published rule written out a second time, with another generator."""
    got = parts(DferClipAugment())
    area = np.array([d.height * d.width for d in got]) / 224**2
    aspect = np.array([d.width / d.height for d in got])
    expected = _published_crops(4000)
    for ours, theirs in [(area, expected[:, 0] * expected[:, 1] / 224**2), (aspect, expected[:, 1] / expected[:, 0])]:
        grid = np.quantile(theirs, np.linspace(0.05, 0.95, 19))
        gap = np.abs((ours[:, None] <= grid).mean(0) - (theirs[:, None] <= grid).mean(0)).max()
        assert gap < 0.045, "two-sample Kolmogorov-Smirnov, 4,000 each, far below p = 0.001"
    assert area.min() >= 0.078 and area.max() <= 1
    assert all(0 <= d.top <= 224 - d.height and 0 <= d.left <= 224 - d.width for d in got)
    assert abs(np.mean([d.top / max(224 - d.height, 1) for d in got]) - 0.5) < 0.03


def _published_crops(count: int) -> np.ndarray:
    """Heights and widths [N 2] on 224 x 224: rejection over arrays instead of tries in a loop."""
    rng = np.random.default_rng(99)
    area = rng.uniform(0.08, 1, (count, 10)) * 224**2
    aspect = rng.uniform(3 / 4, 4 / 3, (count, 10))
    aspect = np.where(rng.random((count, 10)) < 0.5, aspect, 1 / aspect)
    sides = np.rint(np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], -1))
    fits = (sides <= 224).all(-1)
    chosen = sides[np.arange(count), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], chosen, 224)


def test_flip_brightness_and_rotation_statistics():
    rng, config = np.random.default_rng(5), DferClipAugment(brightness=0.5, rotation=4.0, flip=0.25)
    drawn = [crops.draw(config, rng, height=224, width=224, size=224) for _ in range(4000)]
    assert abs(np.mean([Flip() in steps for steps in drawn]) - 0.25) < 0.03
    factors = [step.factor for steps in drawn for step in steps if isinstance(step, Brightness)]
    angles = [step.angle for steps in drawn for step in steps if isinstance(step, Turn)]
    for values, low, high in [(factors, 0.5, 1.5), (angles, -4, 4)]:
        span = high - low
        assert low <= min(values) < low + 0.02 * span and high - 0.02 * span < max(values) <= high
        assert np.abs(np.quantile(values, [0.25, 0.5, 0.75]) - np.linspace(low, high, 5)[1:4]).max() < 0.04 * span


def test_switching_brightness_on_does_not_move_the_crops():
    assert parts(DferClipAugment(), 20) == parts(DFEW, 20)


def test_when_no_crop_fits_a_square_of_the_short_side_is_kept():
    """Ten tries cannot fit at least half of the area into a strip of 20 x 400 with an aspect near one."""
    got = parts(DferClipAugment(min_area=0.5), 200, height=20, width=400)
    assert {(d.height, d.width) for d in got} == {(20, 20)}
    assert min(d.left for d in got) < 40 and max(d.left for d in got) > 340


def test_a_multi_scale_crop_has_ten_shapes_and_five_places():
    """By hand for a short side of 256: 256 224 192 168, at most one step apart; steps of a quarter, rounded down."""
    got = set(parts(DkClipAugment(), 3000, height=256, width=300))
    sides = [256, 224, 192, 168]
    shapes = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert {(d.height, d.width) for d in got} == shapes and len(shapes) == 10
    assert {(d.top, d.left) for d in got if (d.height, d.width) == (192, 168)} == {
        *((0, 0), (0, 132), (64, 0), (64, 132), (32, 66))
    }


def test_clips_own_crop_is_central_where_none_fits():
    """torchvision's rule by hand: the largest part with an aspect of 4 / 3."""
    assert set(parts(ClipAugment(min_area=0.5), 20, height=21, width=400)) == {Crop(0, 186, 21, 28)}
    assert set(parts(ClipAugment(min_area=0.5), 20, height=400, width=21)) == {Crop(186, 0, 28, 21)}


def test_ten_crops_are_corners_and_centre_and_the_same_mirrored():
    picture = noise(48)
    shown = [apply(seen(48, 48), picture) for seen in crops.fixed(CnnAugment(), size=44, crops=10)]
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for mirrored, five in ((picture, shown[:5]), (picture[:, ::-1], shown[5:])):
        for got, (top, left) in zip(five, corners, strict=True):
            assert np.array_equal(got, mirrored[top : top + 44, left : left + 44])


def test_three_crops_lie_along_the_long_side():
    picture = noise(40)[:, :30]
    shown = [apply(seen(40, 30), picture) for seen in crops.fixed(DkClipAugment(), size=30, crops=3)]
    assert all(np.array_equal(got, picture[top : top + 30]) for got, top in zip(shown, (0, 10, 5), strict=True))


@pytest.mark.parametrize(
    ("field", "value"), [("brightness", 1.5), ("flip", -0.1), ("min_area", 2.0), ("rotation", 181.0)]
)
def test_a_value_out_of_bounds_is_named(field, value):
    with pytest.raises(ConfigProblem, match=f"{field}: expected .* got {value}. Correct it in data.augment") as caught:
        DferClipAugment(**{field: value})
    assert caught.value.exit_code == 2


def test_values_of_the_other_recipes_have_bounds_too():
    for make, field in (
        (lambda: DkClipAugment(jitter=2), "jitter"),
        (lambda: CnnAugment(side=0), "side"),
        (lambda: ClivpFerAugment(rotation=200), "rotation"),
        (lambda: ClipAugment(min_area=-1), "min_area"),
        (lambda: ViewsConfig(clips=0), "clips"),
    ):
        with pytest.raises(ConfigProblem, match=f"{field}: expected "):
            make()


def test_a_frame_too_narrow_or_too_long_is_refused_before_it_takes_memory():
    strip = np.zeros((1, 70_000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"70000 x 1 pixels, so narrow that 17920000 x 256 would be needed"):
        apply(crops.fixed(DkClipAugment(), size=224)[0](1, 70_000), strip)
    assert MAX_PIXELS < 256 * 17_920_000
    with pytest.raises(ValueError, match=r"a side of 70000 pixels, more than the 32767 that can be rotated"):
        apply((Turn(3.0, Crop(0, 0, 1, 5)),), strip)
