"""DFER-CLIP as a recognizer: what trains, what the loss reads, which experiments a config can express."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dfer.config import ConfigProblem, from_plain
from dfer.emotions import Emotions, label_set
from dfer.errors import UsageError
from dfer.models.build import build
from dfer.models.config import DferClipConfig, ModelConfig
from dfer.models.dfer_clip import DferClip
from dfer.recognition import PADDING, Recognition
from tests.unit.models.tiny import START, batch, tiny

BASIC = label_set("basic7")


def small(emotions: Emotions = BASIC, **changes: Any) -> DferClip:
    return build(tiny(**changes), emotions, num_frames=4, seed=1)


@settings(max_examples=12)
@given(depth=st.integers(0, 2), contexts=st.sampled_from([0, 3]), image=st.booleans(), shared=st.booleans())
def test_the_groups_are_what_trains_and_all_of_it_learns(depth: int, contexts: int, image: bool, shared: bool) -> None:
    if not (depth or contexts or image):
        return
    model = small(depth=depth, num_contexts=contexts, train_image=image, shared_contexts=shared)
    groups = model.param_groups()
    assert set(groups) == {
        name for name, there in {"temporal": depth, "prompts": contexts, "image": image}.items() if there
    }
    grouped = [id(parameter) for group in groups.values() for parameter in group.params]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    clips = batch()
    sum(model.loss(model(clips), clips, START).values()).backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert learns == (id(parameter) in grouped), name


def test_the_text_tower_is_frozen_and_the_contexts_learn_through_it() -> None:
    model = small()
    assert not any(parameter.requires_grad for parameter in model.towers.text.parameters())
    model.encode_text().square().sum().backward()
    assert model.prompts.contexts.grad.abs().amin(dim=(1, 2)).shape == (7,)
    assert all(parameter.grad is None for parameter in model.towers.text.parameters())


def test_no_parameter_is_without_a_dimension() -> None:
    """DeepSpeed cannot hold such."""
    assert all(parameter.dim() > 0 for parameter in small().parameters())


def test_logits_are_cosines_over_the_temperature() -> None:
    model, clips = small(num_contexts=2, temperature=0.5), batch(3)
    video, text = model.encode_video(clips.frames), model.encode_text()
    expected = F.cosine_similarity(video[:, None], text[None], dim=-1) / 0.5
    torch.testing.assert_close(model(clips).logits, expected, atol=1e-5, rtol=1e-5)


def test_without_a_temporal_model_the_clip_is_the_mean_of_its_frames() -> None:
    model, clips = small(depth=0), batch()
    frames = [model.towers.encode_frames(clips.frames[:, t].float() / 255) for t in range(4)]
    torch.testing.assert_close(model.encode_video(clips.frames), sum(frames) / 4, atol=1e-5, rtol=1e-4)


def test_the_loss_leaves_padding_out() -> None:
    model, clips = small(), batch(5)
    index = torch.tensor([4, PADDING, 0, PADDING, 7])
    logits = torch.randn(5, 7, requires_grad=True)
    terms = model.loss(Recognition(logits=logits), replace(clips, index=index), START)
    kept = torch.tensor([0, 2, 4])
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits[kept], clips.labels[kept]))
    terms["cross_entropy"].backward()
    assert not logits.grad[[1, 3]].any()
    nothing = model.loss(Recognition(logits=logits), replace(clips, index=torch.full((5,), PADDING)), START)
    assert nothing["cross_entropy"].item() == 0


def test_the_loss_reads_no_parameter() -> None:
    model, clips = small(), batch()
    out = Recognition(logits=torch.zeros(2, 7))
    assert not model.loss(out, clips, START)["cross_entropy"].requires_grad


@pytest.mark.parametrize("arch", ["tiny-vit-64", "tiny-conv-64"])
def test_bf16_autocast_gives_fp32_logits_near_those_of_fp32(arch: str) -> None:
    model, clips = small(arch=arch), batch(3)
    exact = model(clips).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = model(clips)
    assert out.logits.dtype == torch.float32
    # bf16 keeps 8 bits; logits are cosines times 100.
    torch.testing.assert_close(out.logits, exact, atol=1.5, rtol=0)
    assert not torch.equal(out.logits, exact)
    sum(model.loss(out, clips, START).values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for group in model.param_groups().values() for p in group.params
    )


def test_a_model_cast_to_bf16_runs() -> None:
    """DeepSpeed's bf16 mode casts parameters and buffers instead of autocasting."""
    assert small().bfloat16()(batch()).logits.dtype == torch.float32


def test_a_few_steps_fit_a_batch() -> None:
    model, clips = small(), batch(4)
    rates = {"temporal": 1e-3, "image": 1e-4, "prompts": 1e-3}
    optimizer = torch.optim.AdamW(
        [{"params": group.params, "lr": rates[name]} for name, group in model.param_groups().items()]
    )
    losses = []
    for _ in range(15):
        loss = sum(model.loss(model(clips), clips, START).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4, losses


def test_frames_of_another_size_or_number_say_what_to_set() -> None:
    model = small()
    with pytest.raises(UsageError, match=r"expected 64 x 64 pixels.*got 32 x 32\. Set data.size=64"):
        model(batch(size=32))
    with pytest.raises(UsageError, match=r"expected at most 4 a clip, got 6\. Set data.frames=4"):
        model(batch(frames=6))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_contexts": -1}, "num_contexts: expected 0 or more, got -1"),
        ({"temperature": 0.0}, "temperature: expected more than 0, got 0.0"),
        ({"num_contexts": 0, "train_image": False, "depth": 0}, "with 0, 0 and false nothing is left to train"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigProblem, match=text) as caught:
        tiny(**change)
    assert caught.value.exit_code == 2


# Rows of the paper's tables 1, 2, 4 and 5 as they are written in YAML.
ROWS: dict[str, dict[str, Any]] = {
    "published": {},
    **{f"w/o temporal, {n} contexts": {"num_contexts": n, "temporal": {"depth": 0}} for n in (4, 8, 16)},
    **{f"depth {depth}": {"temporal": {"depth": depth}} for depth in (1, 2, 3)},
    "a photo of": {"text": "photo", "num_contexts": 0, "temporal": {"depth": 0}},
    "an expression of": {"text": "class_names_with_context", "num_contexts": 0, "temporal": {"depth": 0}},
    "learnable + class name, w/o temporal": {"text": "class_names", "temporal": {"depth": 0}},
    "learnable + class name": {"text": "class_names"},
}


@pytest.mark.parametrize("classes", ["basic7", "mafw11"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_paper_runs_from_a_config(row: str, classes: str) -> None:
    temporal = {"heads": 2, "head_dim": 16, "mlp_dim": 48, **ROWS[row].get("temporal", {})}
    plain = {"name": "dfer_clip", **ROWS[row], "towers": {"arch": "tiny-vit-64"}, "temporal": temporal}
    config: DferClipConfig = from_plain(ModelConfig, plain)
    emotions = label_set(classes)
    model = build(config, emotions, num_frames=4, seed=0)
    with torch.no_grad():
        logits = model(batch()).logits
    assert logits.shape == (2, len(emotions)) and logits.isfinite().all()
    assert len(logits.unique()) == logits.numel()
