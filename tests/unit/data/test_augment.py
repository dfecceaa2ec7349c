"""Augmentation against Pillow's operations and the published distributions."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from dfer.config import ConfigProblem
from dfer.data.augment import Augment, Draw, apply, draw
from dfer.data.config import AugmentConfig
from dfer.recognition import PADDING, ClipBatch

OFF = AugmentConfig(crop=False, flip=0.0)
DFEW = AugmentConfig(brightness=0.5)


def pictures(frames: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth random frames [T C H W] with the strides the decoder gives."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in small]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2)


def batch_of(clips: int, *, side: int = 48, first: int = 0) -> ClipBatch:
    frames = torch.stack([pictures(4, side, seed=first + i) for i in range(clips)])
    return ClipBatch(frames=frames, labels=torch.zeros(clips, dtype=torch.int64), index=torch.arange(clips) + first)


def in_pillow(frame: torch.Tensor, drawn: Draw) -> np.ndarray:
    """The published order with Pillow: brightness, rotation, crop, resize, flip."""
    side = frame.shape[-1]
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image = ImageEnhance.Brightness(image).enhance(drawn.brightness)
    if drawn.angle:
        image = image.rotate(drawn.angle)  # nearest, without expansion
    image = image.crop((drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height))
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.flip else image).astype(int)


WHOLE = {"top": 0, "left": 0, "height": 48, "width": 48}


@pytest.mark.parametrize("steps", [64, 90, 127, 128, 129, 160, 192, 256])
def test_brightness_is_pillows_to_the_level(steps):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    drawn = Draw(top=0, left=0, height=16, width=16, brightness=steps / 128)
    assert np.array_equal(apply(levels, drawn)[0].permute(1, 2, 0).numpy(), in_pillow(levels[0], drawn))


def noise(side: int, seed: int = 0) -> torch.Tensor:
    """One frame [1 C H W] whose neighbouring pixels have nothing in common."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [47, 48, 224])
@pytest.mark.parametrize("angle", [-4.0, -1.3, 0.01, 2.7, 4.0, 45.0, 90.0, -179.5, 180.0])
def test_rotation_is_pillows_nearest_to_the_pixel(angle, side):
    frames = noise(side)
    drawn = Draw(top=0, left=0, height=side, width=side, angle=angle)
    got = apply(frames, drawn)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(got, in_pillow(frames[0], drawn))


@given(st.floats(-180, 180), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_angle_takes_pillows_pixels(angle, seed):
    frames = noise(40, seed)
    drawn = Draw(top=0, left=0, height=40, width=40, angle=angle)
    got = apply(frames, drawn)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(got, in_pillow(frames[0], drawn))


def test_rotation_makes_no_colours_and_is_counterclockwise():
    """Two colours stay two, with black; a mark on the right goes up."""
    frames = torch.full((1, 3, 33, 33), 200, dtype=torch.uint8)
    frames[..., 16, 30] = 77
    out = apply(frames, Draw(top=0, left=0, height=33, width=33, angle=4.0))
    assert set(out.unique().tolist()) == {0, 77, 200}
    assert (out[0, 0] == 77).nonzero().tolist() == [[15, 30]]  # 14 pixels x sin 4 degrees is one


@given(st.integers(0, 2**32), st.sampled_from([AugmentConfig(), DFEW]))
@settings(max_examples=40, deadline=None)
def test_whole_draws_agree_with_pillow_within_one_level(seed, config):
    frames = pictures(1, 64, seed=seed % 1000)
    drawn = draw(config, np.random.default_rng(seed), height=64, width=64)
    got = apply(frames, drawn)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - in_pillow(frames[0], drawn)).max() <= 1


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_rotation_adds_no_rounding(seed):
    frames = pictures(1, 64, seed=seed % 1000)
    drawn = draw(AugmentConfig(brightness=0.5, rotation=4.0), np.random.default_rng(seed), height=64, width=64)
    got = apply(frames, drawn)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - in_pillow(frames[0], drawn)).max() <= 1


def test_every_frame_of_a_clip_gets_the_same_draw():
    batch = batch_of(1)
    batch.frames[0, 1:] = batch.frames[0, :1]
    out = Augment(AugmentConfig(brightness=0.5, rotation=4.0), 7)(batch, 0).frames[0]
    assert all(torch.equal(out[t], out[0]) for t in range(1, 4))


def test_draws_do_not_depend_on_the_rest_of_the_batch_or_its_order():
    augment = Augment(DFEW, 7)
    together = augment(batch_of(5), 2).frames
    for i in (4, 0, 2):
        assert torch.equal(augment(batch_of(1, first=i), 2).frames[0], together[i])


def test_epoch_seed_and_clip_change_the_draw_and_repeating_does_not():
    def out(seed, epoch, first=0):
        return Augment(DFEW, seed).draw(epoch, first, pictures(1, 48))

    assert out(1, 0) == out(1, 0)
    assert len({out(1, 0), out(2, 0), out(1, 1), out(1, 0, first=1)}) == 4


def test_padding_is_left_alone_and_labels_pass_through():
    batch = batch_of(3)
    batch.index[1] = PADDING
    before = batch.frames.clone()
    out = Augment(DFEW, 1)(batch, 0)
    assert torch.equal(out.frames[1], before[1])
    assert not torch.equal(out.frames[0], before[0])
    assert out.frames.dtype == torch.uint8 and out.frames.shape == before.shape
    assert out.index.tolist() == [0, PADDING, 2]


def test_everything_off_changes_nothing():
    batch = batch_of(2)
    before = batch.frames.clone()
    assert torch.equal(Augment(OFF, 1)(batch, 0).frames, before)


def test_it_is_picklable():
    augment = pickle.loads(pickle.dumps(Augment(DFEW, 3)))
    assert torch.equal(augment(batch_of(1), 0).frames, Augment(DFEW, 3)(batch_of(1), 0).frames)


def draws(config: AugmentConfig, count: int = 4000, height: int = 224, width: int = 224) -> list[Draw]:
    rng = np.random.default_rng(5)
    return [draw(config, rng, height=height, width=width) for _ in range(count)]


def test_crop_statistics():
    """Against the published rule written out a second time, with another generator."""
    got = draws(AugmentConfig())
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
    got = draws(AugmentConfig(brightness=0.5, rotation=4.0, flip=0.25))
    assert abs(np.mean([d.flip for d in got]) - 0.25) < 0.03
    for values, low, high in [([d.brightness for d in got], 0.5, 1.5), ([d.angle for d in got], -4, 4)]:
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high
        assert np.abs(np.quantile(values, [0.25, 0.5, 0.75]) - np.linspace(low, high, 5)[1:4]).max() < 0.04 * (
            high - low
        )


def test_switching_brightness_on_does_not_move_the_crops():
    plain, bright = draws(AugmentConfig(), 20), draws(DFEW, 20)
    assert [(d.top, d.left, d.height, d.flip) for d in plain] == [(d.top, d.left, d.height, d.flip) for d in bright]


def test_when_no_crop_fits_a_square_of_the_short_side_is_kept():
    """Ten tries cannot fit at least half of the area into a strip of 20 x 400 with an aspect near one."""
    got = draws(AugmentConfig(min_area=0.5), 200, height=20, width=400)
    assert {(d.height, d.width) for d in got} == {(20, 20)}
    assert min(d.left for d in got) < 40 and max(d.left for d in got) > 340


@pytest.mark.parametrize(
    ("field", "value"), [("brightness", 1.5), ("flip", -0.1), ("min_area", 2.0), ("rotation", 181.0)]
)
def test_a_value_out_of_bounds_is_named(field, value):
    with pytest.raises(ConfigProblem, match=f"{field}: expected .* got {value}. Correct it in data.augment") as caught:
        AugmentConfig(**{field: value})
    assert caught.value.exit_code == 2


@pytest.mark.gpu
@pytest.mark.parametrize("rotation", [0.0, 4.0])
def test_cuda_agrees_with_the_cpu_within_one_level(rotation):
    config = AugmentConfig(brightness=0.5, rotation=rotation)
    on_cpu = Augment(config, 1)(batch_of(6, side=224), 0).frames.int()
    on_gpu = Augment(config, 1)(batch_of(6, side=224).to(torch.device("cuda")), 0).frames.cpu().int()
    assert (on_cpu - on_gpu).abs().max() <= 1


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_within_two_levels_where_frames_are_rotated():
    config = AugmentConfig(brightness=0.5, rotation=4)
    on_cpu = Augment(config, 1)(batch_of(6, side=224), 0).frames.int()
    on_gpu = Augment(config, 1)(batch_of(6, side=224).to(torch.device("cuda")), 0).frames.cpu().int()
    assert ((on_cpu - on_gpu).abs() <= 2).float().mean() > 0.999
