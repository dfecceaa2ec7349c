"""Checkpoints of the released code: what does not fit is told in settings, not in tensors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.config import DferClipConfig, TemporalConfig, TowersConfig
from tests.reference.recipe import CASES, CLIP_LAYOUT
from tests.unit.models.conftest import Released

PUBLISHED = CASES[0]


def refusal(config: DferClipConfig, emotions: Emotions | None = None, num_frames: int = 16) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(config, emotions or label_set("basic7"), num_frames=num_frames, seed=0)
    assert caught.value.exit_code == 5
    return str(caught.value)


def published(arch: str, path: Path, **changes: Any) -> DferClipConfig:
    return DferClipConfig(**{"towers": TowersConfig(arch=arch), "released": str(path), **changes})


def test_other_settings_are_named_with_the_checkpoints_values(arch: str, released: Released) -> None:
    config = published(arch, released(PUBLISHED), num_contexts=4, temporal=TemporalConfig(depth=3))
    text = refusal(config, num_frames=8)
    assert "expected model.num_contexts = 8, model.temporal.depth = 1, data.frames = 16, got 4, 3, 8" in text
    text = refusal(published(arch, Path(str(config.released)), shared_contexts=True), label_set("mafw11"))
    assert "expected model.shared_contexts = false, number of classes = 7, got true, 11" in text


def test_other_texts_or_another_class_order_are_noticed(arch: str, released: Released) -> None:
    config = published(arch, released(PUBLISHED))
    swapped = Emotions(names=("sadness", "happiness", *label_set("basic7").names[2:]))
    for text in (refusal(replace(config, text="class_names")), refusal(config, swapped)):
        assert "expected the class texts that it was trained with" in text


def test_another_architecture_is_told_by_its_tensors(released: Released) -> None:
    text = refusal(DferClipConfig(towers=TowersConfig(arch="ViT-B-32-quickgelu"), released=str(released(PUBLISHED))))
    assert "tensors that fit the model" in text and "Set model.towers.arch" in text


def test_a_plain_clip_is_sent_to_its_own_setting(arch: str, clip_weights: dict[str, Any], tmp_path: Path) -> None:
    torch.save(clip_weights, tmp_path / "clip.pt")
    text = refusal(published(arch, tmp_path / "clip.pt"))
    assert "got one without prompt_learner.ctx. A plain CLIP goes to model.towers.pretrained" in text


def test_the_exact_activation_is_refused(released: Released, tmp_path: Path) -> None:
    """The authors train OpenAI's CLIP; with the exact GELU its tensors would fit and its answers be wrong."""
    arch, path = tmp_path / "exact.json", released(PUBLISHED)
    arch.write_text(json.dumps({**CLIP_LAYOUT, "quick_gelu": False}))
    with pytest.raises(ConfigProblem) as caught:
        build(published(str(arch), path), label_set("basic7"), num_frames=16, seed=0)
    assert str(caught.value).startswith(f"{path}: expected an architecture with OpenAI's quick GELU")
    assert caught.value.exit_code == 2


def test_pretrained_is_not_read_beside_it(arch: str, released: Released) -> None:
    config = published(arch, released(PUBLISHED))
    gone = replace(config, towers=TowersConfig(arch=arch, pretrained="/gone/ViT-B-32.pt"))
    plain, beside = (build(c, label_set("basic7"), num_frames=16, seed=0).state_dict() for c in (config, gone))
    assert all(torch.equal(plain[name], beside[name]) for name in plain)
