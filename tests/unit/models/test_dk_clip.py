"""DK-CLIP on tiny towers: messages, weights of equal snippets, schedules of the loss, frozen parts, wrong input."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.errors import UsageError
from dfer.models.build import build
from dfer.models.config_dk_clip import DkClipConfig, DkClipLossConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.cross_frame import CrossFrameEncoder, SnippetEncoder
from dfer.models.dk_clip import DkClip
from dfer.models.snippets import mean_of_kept, weigh
from dfer.models.towers import Towers
from dfer.recognition import PADDING, ClipBatch, Progress, Recognition
from dfer.training.gradients import Gradients
from tests.unit.models.tiny import START, batch

SCHEDULES = (
    DkClipLossConfig(),
    DkClipLossConfig(schedule="global_then_all", epoch=11),
    DkClipLossConfig(schedule="all_then_global", epoch=14),
)


def model_of(*, frames: int = 4, seed: int = 0, **changes: Any) -> DkClip:
    config = DkClipConfig(**{"towers": TowersConfig(arch="tiny-vit-64"), "snippet": 2, **changes})
    model = build(config, label_set("basic7"), num_frames=frames, seed=seed)
    assert isinstance(model, DkClip)
    return model


@functools.cache
def shared(*, frames: int = 4) -> DkClip:
    """A model that no test changes."""
    return model_of(frames=frames)


def at(epoch: int) -> Progress:
    return Progress(epoch=epoch, step=epoch, fraction=epoch / 50)


def finite(out: Recognition) -> bool:
    values = (out.logits, *out.variants.values(), *out.aux.values())
    return all(bool(value.float().isfinite().all()) for value in values)


# --- the answer


def test_shapes_and_variants() -> None:
    out = shared(frames=8)(batch(clips=3, frames=8))
    assert out.logits.shape == out.variants["local"].shape == out.variants["fused"].shape == (3, 7)
    assert out.aux["snippets"].shape == (3, 4, 7)
    assert torch.allclose(out.variants["local"], out.aux["snippets"].sum(dim=1))
    mean = (out.logits.softmax(-1) + out.variants["local"].softmax(-1)) / 2
    assert torch.allclose(out.variants["fused"].exp(), mean, atol=1e-6)
    assert torch.allclose(out.aux["weights"].sum(dim=1), torch.ones(3))


def test_a_clip_is_answered_alike_alone_and_among_others() -> None:
    model, clips = shared(frames=8), batch(clips=3, frames=8)
    alone = [model(ClipBatch(frames=clips.frames[i : i + 1], index=clips.index[:1])).logits for i in range(3)]
    assert torch.allclose(torch.cat(alone), model(clips).logits, atol=1e-3)


def test_messages_reach_the_frames_of_a_snippet_and_no_others() -> None:
    image = shared().image
    pictures = torch.randn(4, 3, 64, 64)
    other = pictures.clone()
    other[1] += 1
    before, after = image(pictures, 2)[0], image(other, 2)[0]
    moved = (before - after).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [True, True, False, False]


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_equal_snippets_weigh_the_same_and_keep_gradients_finite(frames: int) -> None:
    """A still with snippets of one frame, and a clip of one frame over and over."""
    snippet = 1 if frames == 1 else frames // max(1, frames // 2)
    model = model_of(frames=frames, snippet=snippet)
    still = batch(clips=2, frames=1)
    clips = ClipBatch(frames=still.frames.expand(-1, frames, -1, -1, -1), labels=still.labels, index=still.index)
    out = model(clips)
    number = frames // snippet
    assert torch.equal(out.aux["weights"], torch.full((2, number), 1 / number)) and out.aux["kept"].all()
    torch.stack([*model.loss(out, clips, START).values()]).sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert finite(out) and all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def test_grey_and_constant_frames() -> None:
    model, clips = shared(), batch()
    grey = clips.frames[:, :, :1].expand(-1, -1, 3, -1, -1)
    for frames in (grey, torch.zeros_like(grey), torch.full_like(grey, 255)):
        assert finite(model(ClipBatch(frames=frames, index=clips.index)))


def test_some_snippet_is_kept_however_many_there_are() -> None:
    """Of 16 equal snippets each weighs less than 0.15; the released code would keep none."""
    clip = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    weights, kept = weigh(clip, clip[:, None].expand(-1, 16, -1), erase_below=0.15)
    assert torch.equal(weights, torch.full((2, 16), 1 / 16)) and kept.all()
    snippets = torch.nn.functional.normalize(torch.randn(2, 16, 8), dim=-1)
    weights, kept = weigh(clip, snippets, erase_below=0.15)
    assert kept.any(dim=1).all() and not kept.all()
    values = torch.randn(2, 16, 3, 5)
    for i in range(2):
        assert torch.allclose(mean_of_kept(values, kept)[i], values[i][kept[i]].mean(dim=0), atol=1e-6)


def test_frames_are_normalised_as_imagenet_s() -> None:
    model, seen = shared(), []
    hook = model.image.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(batch())
    hook.remove()
    expected = (batch().frames.flatten(0, 1) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    assert torch.allclose(seen[0], expected, atol=1e-6) and model.normalisation == "ImageNet's mean and deviation"


# --- training


@pytest.mark.parametrize("losses", SCHEDULES, ids=lambda losses: losses.schedule)
@pytest.mark.parametrize("train", ["all", "released"])
def test_every_trained_parameter_gets_a_gradient_in_every_epoch(losses: DkClipLossConfig, train: str) -> None:
    model = model_of(losses=losses, train=train)
    watched = Gradients(model)
    clips = batch(clips=1)
    for epoch in (0,) if losses.epoch is None else (losses.epoch - 1, losses.epoch):
        with watched.of_one_backward():
            torch.stack([*model.loss(model(clips), clips, at(epoch)).values()]).sum().backward()
        assert watched.take_missing() == []
    dead = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert dead == []


def test_the_schedules_change_at_their_epochs() -> None:
    every, whole = ["global", "local", "agreement"], ["global"]
    expected = {
        0: (every, whole, every),
        10: (every, whole, every),
        11: (every, every, every),
        14: (every, every, whole),
    }
    models, out = [model_of(losses=losses) for losses in SCHEDULES], Recognition(logits=torch.randn(2, 7))
    out.variants["local"] = torch.randn(2, 7)
    for epoch, terms in expected.items():
        assert [list(model.loss(out, batch(), at(epoch))) for model in models] == list(terms)


def test_the_agreement_s_variants() -> None:
    """Without a gradient into the target; with the local prediction's logarithm, which is a cross entropy."""
    base, clips = shared(), batch()
    out = base(clips)
    for detached in (False, True):
        whole = out.logits.detach().requires_grad_()
        local = out.variants["local"].detach().requires_grad_()
        given = Recognition(logits=whole, variants={"local": local})
        losses = DkClipLossConfig(detached_target=detached, log_softmax_input=True)
        term = model_of(losses=losses).loss(given, clips, START)["agreement"]
        torch.autograd.backward(term)
        assert local.grad is not None and (whole.grad is None) == detached
        expected = -(whole.softmax(-1) * local.log_softmax(-1)).sum(-1).mean()
        assert torch.allclose(term, expected)


def test_padding_adds_nothing_to_any_term() -> None:
    model, clips = shared(), batch(clips=3)
    index = torch.tensor([0, PADDING, 1])
    padded = ClipBatch(frames=clips.frames, labels=clips.labels, index=index)
    kept = index != PADDING
    short = ClipBatch(frames=clips.frames[kept], labels=clips.labels[kept], index=index[kept])  # type: ignore[index]
    ours, theirs = model.loss(model(padded), padded, START), model.loss(model(short), short, START)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4) for name in ours)


def test_groups_and_what_the_release_freezes() -> None:
    groups = shared().param_groups()
    assert list(groups) == ["image", "semantic", "messages", "integration", "prompts"]
    model = model_of(train="released")
    assert list(model.param_groups()) == ["image", "messages", "prompts"]
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"semantic", "integration", "towers"}
    assert all(not p.requires_grad for p in model.towers.text.parameters())


def test_the_second_encoder_begins_as_clip_s_or_drawn() -> None:
    clip, drawn, again = shared(), model_of(second_encoder="random"), model_of(second_encoder="random")
    name = "blocks.1.mlp.c_fc.weight"
    ours = {which: model.semantic.state_dict()[name] for which, model in zip("cda", (clip, drawn, again))}
    theirs = clip.image.state_dict()[name]
    assert torch.equal(ours["c"], theirs) and not torch.equal(ours["d"], theirs) and torch.equal(ours["d"], ours["a"])
    messages = "blocks.1.message_fc.weight"
    assert not torch.equal(clip.semantic.state_dict()[messages], clip.image.state_dict()[messages])


def test_class_texts_are_encoded_once_and_again_after_loading() -> None:
    model, calls = model_of(), []
    model.towers.text.register_forward_hook(lambda *_: calls.append(1))
    before = [model(batch()).logits for _ in range(3)]
    assert len(calls) == 1 and torch.equal(before[0], before[2])
    other = model_of(seed=5)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(batch()).logits, other(batch()).logits) and len(calls) == 2
    assert not [name for name in model.state_dict() if name.startswith(("_text", "mean", "std", "tokens", "eos"))]


def test_it_learns_one_batch() -> None:
    model, clips = model_of(frames=2, snippet=1), batch(clips=3, frames=2)
    clips = ClipBatch(frames=clips.frames, labels=torch.tensor([0, 3, 6]), index=clips.index)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        terms = model.loss(model(clips), clips, START)
        losses.append(float(terms["global"].detach()))
        optimizer.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


# --- wrong input


@pytest.mark.parametrize(
    ("frames", "do"), [(6, r"Set data.frames=4, or model.snippet=2\."), (3, r"Set data.frames=4, or model.snippet=1\.")]
)
def test_frames_that_the_snippet_length_does_not_divide(frames: int, do: str) -> None:
    with pytest.raises(
        ConfigProblem, match=rf"data.frames: expected a multiple of model.snippet=4, got {frames}\. {do}"
    ):
        model_of(frames=frames, snippet=4)


def test_clips_of_another_length_or_size() -> None:
    model = shared()
    assert model(batch(frames=2)).logits.shape == (2, 7)
    with pytest.raises(UsageError, match=r"frames: expected whole snippets of 2 frames, got 3\. Set data.frames to"):
        model(batch(frames=3))
    with pytest.raises(UsageError, match=r"frames: expected at most 4 a clip, got 6\. Set data.frames=4"):
        model(batch(frames=6))
    with pytest.raises(UsageError, match=r"frames: expected 64 x 64 pixels.*got 32 x 32\. Set data.size=64"):
        model(batch(size=32))


def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    texts = tmp_path / "texts.yaml"
    names = label_set("basic7").names
    texts.write_text("".join(f"{name}: {'brow ' * (80 if name == 'fear' else 1)}\n" for name in names))
    with pytest.raises(
        ConfigProblem, match=r"model.text: expected texts of at most 75 tokens, got 80 in 'brow .*Shorten"
    ):
        model_of(text=str(texts))


@pytest.mark.parametrize("encoder", [CrossFrameEncoder, lambda visual: SnippetEncoder(visual, init="clip")])
def test_a_tower_that_takes_no_messages(encoder: Any) -> None:
    visual = Towers(TowersConfig(arch="tiny-conv-64")).visual
    with pytest.raises(
        ConfigProblem, match=r"towers.arch: expected a vision transformer of CLIP's form, got a \w+ without"
    ):
        encoder(visual)


def test_towers_that_pool_drop_or_scale() -> None:
    for change, got in (
        ("pool_type", "pools its tokens"),
        ("patch_dropout", "drops patches"),
        ("ls_1", "another kind"),
    ):
        visual: Any = Towers(TowersConfig(arch="tiny-vit-64")).visual
        holder = visual.transformer.resblocks[0] if change == "ls_1" else visual
        setattr(holder, change, "avg" if change == "pool_type" else torch.nn.Dropout(0.5))
        with pytest.raises(ConfigProblem, match=got):
            CrossFrameEncoder(visual)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"snippet": 0}, "snippet: expected at least 1 frame, got 0"),
        ({"erase_below": 1.0}, r"erase_below: expected a weight from 0 to 1, got 1\.0"),
        ({"prompt_layers": 0}, "prompt_layers: expected at least 1, got 0"),
        ({"temperature": 0.0}, r"temperature: expected more than 0, got 0\.0"),
        ({"text": "action_unit"}, "text: expected one of .*action_units"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigProblem, match=problem):
        DkClipConfig(**changes)


@pytest.mark.parametrize(("schedule", "epoch"), [("all", 3), ("global_then_all", None), ("all_then_global", 0)])
def test_a_schedule_has_an_epoch_if_it_changes(schedule: Any, epoch: int | None) -> None:
    with pytest.raises(ConfigProblem, match="epoch: expected"):
        DkClipLossConfig(schedule=schedule, epoch=epoch)
