"""Colours of training clips against Pillow and torchvision."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as published

from dfer.data.augment import JITTER, OPERATIONS, Augment, Draw, draw, recolour
from dfer.data.recipes import ClipAugment, DferClipAugment, DkClipAugment
from dfer.recognition import PADDING, ClipBatch

ALWAYS = DkClipAugment(jitter=1.0, grey=0.0)


def pictures(count: int, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Frames [N C H W], half smooth and half noise, with the strides the reader gives."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in small]
    smooth[::2] = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in smooth[::2]]
    return torch.from_numpy(np.stack(smooth)).permute(0, 3, 1, 2)


def batch_of(clips: int, *, first: int = 0) -> ClipBatch:
    frames = torch.stack([pictures(4, seed=first + i) for i in range(clips)])
    return ClipBatch(frames=frames, labels=torch.zeros(clips, dtype=torch.int64), index=torch.arange(clips) + first)


PUBLISHED = dict(
    zip(
        JITTER,
        (
            published.adjust_brightness,
            published.adjust_contrast,
            published.adjust_saturation,
            published.adjust_hue,
        ),
    )
)


@pytest.mark.parametrize("name", JITTER)
def test_every_operation_is_torchvisions_on_pillow_to_the_level(name):
    frames, rng = pictures(24), np.random.default_rng(3)
    factors = rng.uniform(*JITTER[name], size=24).astype(np.float32)
    ours = OPERATIONS[[*JITTER].index(name)](frames, torch.from_numpy(factors).view(-1, 1, 1, 1))
    for frame, factor, got in zip(frames, factors, ours):
        image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(PUBLISHED[name](image, float(factor))))


def test_a_jittered_clip_is_every_frame_in_its_own_order():
    clip = pictures(10)
    before, drawn = clip.clone(), draw(ALWAYS, np.random.default_rng(0), 10)
    recolour(clip, drawn)
    assert drawn.factors is not None and drawn.order is not None
    assert len({tuple(order) for order in drawn.order.tolist()}) > 5
    for frame, got, factors, order in zip(before, clip, drawn.factors, drawn.order):
        image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        for number in order:
            image = PUBLISHED[[*JITTER][number]](image, float(np.float32(factors[number])))
        assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(image))


def test_grey_is_pillows():
    clip = pictures(6)
    before = clip.clone()
    recolour(clip, Draw(None, None, grey=True))
    for frame, got in zip(before, clip):
        expected = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).convert("L")
        assert all(np.array_equal(channel.numpy(), np.asarray(expected)) for channel in got)


def test_statistics_of_the_draws():
    rng = np.random.default_rng(1)
    drawn = [draw(DkClipAugment(), rng, 4) for _ in range(3000)]
    jittered = [each.factors for each in drawn if each.factors is not None]
    assert abs(len(jittered) / 3000 - 0.8) < 0.03 and abs(np.mean([each.grey for each in drawn]) - 0.2) < 0.03
    values = np.concatenate(jittered)
    for column, (low, high) in zip(values.T, JITTER.values(), strict=True):
        assert np.abs(np.quantile(column, [0, 0.5, 1]) - [low, (low + high) / 2, high]).max() < 0.02


def test_switching_the_jitter_off_does_not_move_the_grey_clips():
    def greys(config):
        return [draw(config, np.random.default_rng(seed), 4).grey for seed in range(60)]

    assert greys(DkClipAugment()) == greys(DkClipAugment(jitter=0.0)) and any(greys(DkClipAugment()))


def test_draws_do_not_depend_on_the_rest_of_the_batch_or_its_order():
    augment = Augment(DkClipAugment(), 7)
    together = augment(batch_of(5), 2).frames
    for i in (4, 0, 2):
        assert torch.equal(augment(batch_of(1, first=i), 2).frames[0], together[i])


def test_epoch_seed_and_clip_change_the_colours_and_repeating_does_not():
    def out(seed, epoch, index=0):
        batch = batch_of(1)
        batch.index[0] = index
        return Augment(ALWAYS, seed)(batch, epoch).frames

    first = out(1, 0)
    assert torch.equal(first, out(1, 0))
    assert not any(torch.equal(first, other) for other in (out(2, 0), out(1, 1), out(1, 0, index=1)))


def test_padding_is_left_alone_and_labels_pass_through():
    batch = batch_of(3)
    batch.index[1] = PADDING
    before = batch.frames.clone()
    out = Augment(ALWAYS, 1)(batch, 0)
    assert torch.equal(out.frames[1], before[1])
    assert not torch.equal(out.frames[0], before[0])
    assert out.frames.dtype == torch.uint8 and out.frames.shape == before.shape
    assert out.index.tolist() == [0, PADDING, 2]


@pytest.mark.parametrize(
    "config", [DferClipAugment(brightness=0.5), ClipAugment(), DkClipAugment(jitter=0.0, grey=0.0)], ids=str
)
def test_other_recipes_leave_the_colours_to_the_reader(config):
    batch = batch_of(2)
    before = batch.frames.clone()
    assert torch.equal(Augment(config, 1)(batch, 0).frames, before)


def test_it_is_picklable():
    augment = pickle.loads(pickle.dumps(Augment(ALWAYS, 3)))
    assert torch.equal(augment(batch_of(1), 0).frames, Augment(ALWAYS, 3)(batch_of(1), 0).frames)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_within_one_level_but_for_hues_at_a_step():
    on_cpu = Augment(ALWAYS, 1)(batch_of(6), 0).frames.int()
    on_gpu = Augment(ALWAYS, 1)(batch_of(6).to(torch.device("cuda")), 0).frames.cpu().int()
    assert ((on_cpu - on_gpu).abs() <= 1).float().mean() > 0.999
