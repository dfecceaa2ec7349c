"""Contrastive training of clips and captions: the loss by hand, equal captions, padding, gradients, temperature."""

import math
from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import ContrastiveConfig, ZeroShotConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.contrastive import Contrastive, caption_keys
from dfer.recognition import PADDING, ClipBatch, Progress
from tests.unit.models.tiny import START, batch

EMOTIONS = label_set("basic7")
END = Progress(epoch=49, step=490, fraction=0.98)
TOKENIZER = SimpleTokenizer()
CAPTIONS = ["a broad smile.", "a frown and tight lips.", "a broad smile.", "wide eyes."]
SMALL = TemporalConfig(depth=1, heads=2, head_dim=16, mlp_dim=48, init_std=0.02)


def contrastive(*, arch: str = "tiny-conv-64", **changes: Any) -> Contrastive:
    config = ContrastiveConfig(towers=TowersConfig(arch=arch), **changes)
    found = build(config, EMOTIONS, num_frames=2, seed=1)
    assert isinstance(found, Contrastive)
    return found.train()


def said(captions: list[str] = CAPTIONS, *, length: int = 77) -> ClipBatch:
    frames = batch(len(captions), 2).frames
    text = TOKENIZER(captions)[:, :length]
    return ClipBatch(frames=frames, text=text, index=torch.arange(len(captions)) + 10)


def by_hand(clips: Tensor, captions: Tensor, *, scale: float, texts: list[str]) -> float:
    """The mean over pairs of both cross entropies, one exponential at a time; equal texts do not count against it."""
    total = 0.0
    for i in range(len(texts)):
        others = [j for j in range(len(texts)) if j == i or texts[j] != texts[i]]
        for own, all_others in ((clips[i], captions), (captions[i], clips)):
            each = [scale * float(own @ all_others[j]) for j in others]
            total += math.log(sum(math.exp(x) for x in each)) - each[others.index(i)]
    return total / 2 / len(texts)


@torch.no_grad()
def test_the_loss_is_the_symmetric_info_nce_without_equal_captions() -> None:
    model, shown = contrastive(temperature=0.1), said()
    clips = torch.stack([model.towers.visual(clip / 255).mean(0) for clip in shown.frames])
    captions = model.towers.encode_prompts(model.towers.embed(shown.text), shown.text.argmax(dim=1))  # type: ignore[arg-type, union-attr]
    units = F.normalize(clips, dim=-1), F.normalize(captions, dim=-1)
    loss = model.loss(model(shown), shown, START)["info_nce"]
    assert float(loss) == pytest.approx(by_hand(*units, scale=10, texts=CAPTIONS), abs=1e-5)
    assert float(loss) != pytest.approx(by_hand(*units, scale=10, texts=["a", "b", "c", "d"]), abs=1e-3)


def test_cutting_the_padding_of_captions_changes_nothing() -> None:
    model, whole, cut = contrastive(), said(), said(length=9)
    assert torch.allclose(model(whole).logits, model(cut).logits, atol=1e-5)
    keys = [caption_keys(shown.text, model.factors) for shown in (whole, cut)]  # type: ignore[arg-type]
    assert torch.equal(*keys) and len(set(keys[0].tolist())) == 3 and keys[0][0] == keys[0][2]


def test_padding_is_no_pair_and_no_negative() -> None:
    model, shown = contrastive(), said([*CAPTIONS[:3], "ignored"])
    padded = ClipBatch(frames=shown.frames, text=shown.text, index=torch.tensor([4, 5, 6, PADDING]))
    kept = ClipBatch(frames=shown.frames[:3], text=shown.text[:3], index=torch.tensor([4, 5, 6]))  # type: ignore[index]
    losses = [model.loss(model(one), one, START)["info_nce"] for one in (padded, kept)]
    assert torch.allclose(*losses, atol=1e-6)
    nothing = ClipBatch(frames=shown.frames, text=shown.text, index=torch.full((4,), PADDING))
    loss = model.loss(model(nothing), nothing, START)["info_nce"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("progress", [START, END])
@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, {"image", "text", "scale"}),
        ({"temporal": SMALL, "train_text": False}, {"image", "temporal", "scale"}),
        ({"temporal": SMALL, "train_image": False, "learn_temperature": False}, {"text", "temporal"}),
    ],
)
@pytest.mark.parametrize("arch", ["tiny-conv-64", "tiny-vit-64"])
def test_all_that_is_trained_gets_a_gradient(
    arch: str, changes: dict[str, Any], groups: set[str], progress: Progress
) -> None:
    model, shown = contrastive(arch=arch, **changes), said()
    model.loss(model(shown), shown, progress)["info_nce"].backward()
    found = model.param_groups()
    assert set(found) == groups and ("scale" not in found or not found["scale"].decay)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for group in found.values() for p in group.params} == {
        id(p) for name, p in model.named_parameters() if name in trained
    }
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_the_evaluation_is_zero_shot_with_the_class_texts() -> None:
    model = contrastive(text="ensemble_5", temperature=0.05, learn_temperature=False).eval()
    shown = batch(2, 2)
    plain = build(
        ZeroShotConfig(towers=model.config.towers, text="ensemble_5", temperature=0.05),
        EMOTIONS,
        num_frames=2,
        seed=1,
    ).eval()
    assert torch.allclose(model(shown).logits, plain(shown).logits, atol=1e-4)


def test_the_learned_temperature_stays_at_clip_s_limit() -> None:
    model, shown = contrastive(temperature=0.01), said()
    with torch.no_grad():
        before = model(shown).logits
        model.log_scale += 3
        assert torch.allclose(model(shown).logits, before, atol=1e-4)
        model.log_scale -= 4
        assert not torch.allclose(model(shown).logits, before, atol=1e-2)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"temperature: expected at least 0.01 where it is learned, got 0.005"):
        ContrastiveConfig(temperature=0.005)
    ContrastiveConfig(temperature=0.005, learn_temperature=False)
    with pytest.raises(ConfigProblem, match=r"train_image, train_text, temporal\.depth: with false, false and 0"):
        ContrastiveConfig(train_image=False, train_text=False)
    with pytest.raises(ConfigProblem, match="temperature: expected more than 0"):
        ContrastiveConfig(temperature=-1, learn_temperature=False)
