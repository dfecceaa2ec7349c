"""Training targets and mixed clips: masks as the released code gives them, draws that repeat, padding left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfer.config import ConfigProblem, from_plain
from dfer.data.config import DataConfig
from dfer.data.mix import Mix, draw_mask, low_frequency_image, mask_of, mix_rng
from dfer.data.mix_config import MixConfig
from dfer.recognition import PADDING, ClipBatch, FeatureBatch
from tests.reference.fmix_cases import CASES, Case

CLASSES = 3
RECORDED = np.load(Path(__file__).parents[2] / "reference" / "fmix.npz")


def batch(index: list[int]) -> ClipBatch:
    """Each clip has one level of its own: 10 times its index; padding is 7."""
    levels = torch.tensor([7 if i == PADDING else 10 * i for i in index], dtype=torch.uint8)
    return ClipBatch(
        frames=levels[:, None, None, None, None].repeat(1, 2, 3, 16, 16),
        labels=torch.tensor([0 if i == PADDING else i % CLASSES for i in index]),
        index=torch.tensor(index),
    )


def mix(votes: Tensor | None = None, seed: int = 1, **config: Any) -> Mix:
    return Mix(MixConfig(**config), seed=seed, num_classes=CLASSES, votes=votes)


def targets_of(found: ClipBatch | FeatureBatch) -> Tensor:
    assert found.targets is not None
    return found.targets


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks_equal_those_of_the_released_code(case: Case) -> None:
    image = low_frequency_image(case.noise(), case.height, case.width, decay=case.decay)
    mask = mask_of(image, share=case.share, up=case.up)
    assert np.abs(image[::7, ::7] - RECORDED[f"{case.name}/image"]).max() < 1e-6
    assert np.array_equal(np.packbits(mask), RECORDED[f"{case.name}/mask"])


def test_a_drawn_mask_keeps_its_share() -> None:
    shares = np.linspace(0, 1, 23)
    kept = [draw_mask(mix_rng(1, 0, [n]), 20, 24, share=share, decay=3.0).sum() for n, share in enumerate(shares)]
    assert np.abs(np.array(kept) - shares * 480).max() < 1 and kept[0] == 0 and kept[-1] == 480


def test_without_an_option_a_batch_stays_as_it_is() -> None:
    plain = batch([3, 1])
    assert mix()(plain, 0) is plain


def test_smoothing_is_torchs() -> None:
    found = mix(label_smoothing=0.1)(batch([0, 1, 2]), 0)
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    ours = -(targets_of(found) * logits.log_softmax(1)).sum(1).mean()
    assert found.labels is not None
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(logits, found.labels, label_smoothing=0.1))
    assert torch.allclose(targets_of(found)[1], torch.tensor([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]))


def test_votes_are_taken_by_clip_and_smoothed() -> None:
    votes = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    features = FeatureBatch(index=torch.tensor([2, PADDING, 0]), features={}, labels=torch.zeros(3).long())
    found = targets_of(mix(votes, label_smoothing=0.3)(features, 0))
    assert torch.allclose(found[[0, 2]], 0.7 * votes[[2, 0]] + 0.1)


def test_mixup_blends_frames_and_targets_by_one_weight() -> None:
    clips = [5, 1, 6, 3]
    found = mix(mixup=1.0)(batch(clips), 2)
    rng = mix_rng(1, 2, clips)
    rng.random()
    partner, share = rng.permutation(4), rng.beta(0.8, 0.8)
    assert 0.01 < share < 0.99 and partner.tolist() != [0, 1, 2, 3]
    certain = torch.eye(CLASSES)[torch.tensor(clips) % CLASSES]
    levels = 10.0 * torch.tensor(clips)
    assert torch.allclose(targets_of(found), (share * certain + (1 - share) * certain[partner]).float())
    expected = (share * levels + (1 - share) * levels[partner]).round()
    assert torch.equal(found.frames.float(), expected[:, None, None, None, None].expand(found.frames.shape))


def test_fmix_takes_each_pixel_from_one_of_two_clips_by_one_mask() -> None:
    clips = [5, 1, 6, 3]
    found = mix(fmix=1.0)(batch(clips), 0)
    rng = mix_rng(1, 0, clips)
    rng.random()
    partner, share = rng.permutation(4), rng.beta(1.0, 1.0)
    kept = [(found.frames[row] == 10 * clip).float() for row, clip in enumerate(clips) if partner[row] != row]
    assert len(kept) >= 2 and all(torch.equal(one, kept[0]) for one in kept)
    assert torch.equal(kept[0], kept[0][:1, :1].expand(kept[0].shape))  # the same for all frames and colours
    assert abs(float(kept[0].mean()) - share) <= 1 / 256
    for row in range(4):
        values = set(found.frames[row].flatten().tolist())
        assert values <= {10 * clips[row], 10 * clips[partner[row]]}
    certain = torch.eye(CLASSES)[torch.tensor(clips) % CLASSES]
    assert torch.allclose(targets_of(found), (share * certain + (1 - share) * certain[partner]).float())


@pytest.mark.parametrize("kind", ["mixup", "fmix"])
def test_padding_is_neither_changed_nor_a_partner(kind: str) -> None:
    clips = [PADDING, 9, PADDING, 4, 7]
    for epoch in range(20):
        found = mix(**{kind: 1.0})(batch(clips), epoch)
        assert (found.frames[[0, 2]] == 7).all() and found.index.tolist() == clips
        assert (found.frames[[1, 3, 4]] >= 40).all()  # nothing of padding's level
        assert torch.equal(targets_of(found)[[0, 2]], torch.eye(CLASSES)[[0, 0]])


def test_draws_depend_on_seed_epoch_and_clips_alone() -> None:
    def mixed(seed: int = 1, epoch: int = 0, clips: tuple[int, ...] = (1, 2, 3, 4)) -> Tensor:
        return targets_of(mix(seed=seed, mixup=0.5, fmix=0.5)(batch([*clips]), epoch))

    np.random.seed(0)
    first = mixed()
    torch.manual_seed(9)
    assert torch.equal(first, mixed())
    assert not any(torch.equal(first, other) for other in (mixed(seed=2), mixed(epoch=1), mixed(clips=(1, 2, 3, 7))))


def test_each_way_has_its_probability() -> None:
    """Of 400 micro-batches of two clips, which a permutation exchanges half of the time; within four standard errors.
    Rounding hides a few whose weight is near 0 or 1."""
    blended = cut = 0
    maker = mix(fmix=0.3, mixup=0.5)
    for epoch in range(400):
        frames = maker(batch([1, 25]), epoch).frames
        levels = [set(clip.flatten().tolist()) for clip in frames]
        blended += levels[0] != {10} and not levels[0] <= {10, 250}
        cut += levels[0] == {10, 250}
    for count, share in ((blended, 0.25), (cut, 0.15)):
        assert abs(count - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5


def test_one_clip_alone_is_not_mixed() -> None:
    found = mix(mixup=1.0)(batch([5, PADDING]), 0)
    assert (found.frames[0] == 50).all() and torch.equal(targets_of(found)[0], torch.eye(CLASSES)[2])


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing: expected 0 or more, and below 1, got 1.0. 0 switches it off."),
        ({"mixup": 1.5}, "mixup: expected a probability, 0 to 1, got 1.5. 0 switches it off."),
        ({"fmix": -0.1}, "fmix: expected a probability, 0 to 1, got -0.1. 0 switches it off."),
        ({"fmix_decay": 0.0}, "fmix_decay: expected more than 0, got 0.0. DK-CLIP's: mixup_alpha 0.8"),
        (
            {"mixup": 0.6, "fmix": 0.5},
            "mixup, fmix: expected probabilities whose sum is at most 1, got 0.6, 0.5. A micro-batch is mixed in one",
        ),
    ],
)
def test_messages(plain: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        from_plain(DataConfig, {"shards": "x", "mix": plain})
    assert text in str(caught.value)


def test_stored_features_cannot_be_mixed() -> None:
    still = {"crop": False, "flip": 0.0}
    plain = {"shards": "x", "features": "f", "augment": still, "train_frames": "middle", "mix": {"mixup": 0.5}}
    with pytest.raises(
        ConfigProblem, match=r"got data.mix.mixup=0.5. Set data.mix.mixup=0, or leave data.features out"
    ):
        from_plain(DataConfig, plain)
