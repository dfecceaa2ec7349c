"""Checkpoints of the released code: what does not fit is told in settings, not in tensors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, label_set
from dfer.errors import CheckpointError, DferError
from dfer.models.build import build
from dfer.models.config import DferClipConfig, TemporalConfig, TowersConfig
from dfer.models.foreign.fill import fill_foreign
from dfer.models.foreign.weights import read_weights
from tests.reference.recipe import CASES, CLIP_LAYOUT
from tests.unit.models.conftest import Released

PUBLISHED = CASES[0]


def filled(
    config: DferClipConfig, path: Path, emotions: Emotions | None = None, num_frames: int = 16
) -> dict[str, str]:
    emotions = emotions or label_set("basic7")
    model = build(config, emotions, num_frames=num_frames, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        return fill_foreign(model, read_weights(path), path, emotions)
    except DferError:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "loads nothing"
        raise


def refusal(config: DferClipConfig, path: Path, emotions: Emotions | None = None, num_frames: int = 16) -> str:
    with pytest.raises(CheckpointError) as caught:
        filled(config, path, emotions, num_frames)
    assert caught.value.exit_code == 5
    return str(caught.value)


def published(arch: str, **changes: Any) -> DferClipConfig:
    return DferClipConfig(**{"towers": TowersConfig(arch=arch), **changes})


def test_other_settings_are_named_with_the_checkpoints_values(arch: str, released: Released) -> None:
    path = released(PUBLISHED)
    text = refusal(published(arch, num_contexts=4, temporal=TemporalConfig(depth=3)), path, num_frames=8)
    assert "expected model.num_contexts = 8, model.temporal.depth = 1, data.frames = 16, got 4, 3, 8" in text
    text = refusal(published(arch, shared_contexts=True), path, label_set("mafw11"))
    assert "expected model.shared_contexts = false, number of classes = 7, got true, 11" in text


def test_other_texts_or_another_class_order_are_noticed(arch: str, released: Released) -> None:
    config, path = published(arch), released(PUBLISHED)
    swapped = Emotions(names=("sadness", "happiness", *label_set("basic7").names[2:]))
    texts = refusal(replace(config, text="class_names"), path), refusal(config, path, swapped)
    assert all("expected the class texts that it was trained with" in text for text in texts)
    assert texts[0].endswith("Set model.text=class_descriptor.")
    assert texts[1].endswith("Set the model.text and the order of data.classes that it was trained with.")


def test_another_architecture_is_told_by_its_tensors(released: Released) -> None:
    text = refusal(DferClipConfig(towers=TowersConfig(arch="ViT-B-32-quickgelu")), released(PUBLISHED))
    assert "tensors that fit the model" in text and "Set model.towers.arch" in text


def test_a_plain_clip_is_sent_to_its_own_setting(arch: str, clip_weights: dict[str, Any], tmp_path: Path) -> None:
    torch.save(clip_weights, tmp_path / "clip.pt")
    text = refusal(published(arch), tmp_path / "clip.pt")
    assert "got one without prompt_learner.ctx" in text and "is imported with --method towers" in text


def test_the_exact_activation_is_refused(released: Released, tmp_path: Path) -> None:
    """The authors train OpenAI's CLIP; with the exact GELU its tensors would fit and its answers be wrong."""
    arch, path = tmp_path / "exact.json", released(PUBLISHED)
    arch.write_text(json.dumps({**CLIP_LAYOUT, "quick_gelu": False}))
    with pytest.raises(ConfigProblem) as caught:
        filled(published(str(arch)), path)
    assert str(caught.value).startswith(f"{path}: expected an architecture with OpenAI's quick GELU")
    assert caught.value.exit_code == 2


def changed(path: Path, **tensors: torch.Tensor | None) -> Path:
    """The file with other tensors: None removes one."""
    state = {**read_weights(path), **tensors}
    torch.save({"state_dict": {name: value for name, value in state.items() if value is not None}}, path)
    return path


def test_every_name_is_used_or_told(arch: str, released: Released) -> None:
    left_out = filled(published(arch), released(PUBLISHED))
    assert left_out["clip_model_.logit_scale"].startswith("CLIP's own temperature")
    assert left_out["clip_model_.visual.proj"] == "a second copy of image_encoder.proj, equal"
    assert left_out["text_encoder.ln_final.bias"] == "a second copy of clip_model_.ln_final.bias, equal"
    assert all(name.startswith(("clip_model_.", "text_encoder.", "prompt_learner.token_")) for name in left_out)


def test_a_second_copy_that_differs_and_an_unknown_name_are_refused(arch: str, released: Released) -> None:
    path = changed(released(PUBLISHED), **{"text_encoder.ln_final.bias": torch.zeros(128)})
    text = refusal(published(arch), path)
    assert "expected text_encoder.ln_final.bias equal to clip_model_.ln_final.bias, got another tensor" in text
    path = changed(released(PUBLISHED), **{"meta_net.weight": torch.zeros(2)})
    assert "got unknown meta_net.weight" in refusal(published(arch), path)
    path = changed(released(PUBLISHED), **{"image_encoder.proj": None})
    assert "expected clip_model_.visual.proj equal to image_encoder.proj" in refusal(published(arch), path)


@pytest.mark.parametrize("name", ["prompt_learner.token_prefix", "prompt_learner.token_suffix"])
def test_all_fixed_embeddings_are_compared(arch: str, released: Released, name: str) -> None:
    """The last place as well, which is padding."""
    value = read_weights(released(PUBLISHED))[name].clone()
    value[3, -1] += 1
    assert "expected the class texts" in refusal(published(arch), changed(released(PUBLISHED), **{name: value}))
