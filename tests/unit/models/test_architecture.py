"""Architectures from files of anybody's."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfer.config import ConfigProblem
from dfer.models.config_towers import TowersConfig
from dfer.models.foreign.architecture import MAX_BYTES, read_architecture
from dfer.models.towers import Towers
from tests.reference.recipe import CLIP_LAYOUT

KEYS = {"layers", "width", "head_width", "patch_size", "image_size", "mlp_ratio", "timm_model_name", "act_kwargs"}
TEXT_KEYS = {"layers", "width", "heads", "context_length", "vocab_size", "pad_id"}


def read(tmp_path: Path, settings: Any) -> dict[str, Any]:
    path = tmp_path / "a.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return read_architecture(path, vision=KEYS, text=TEXT_KEYS)


def with_vision(**changes: Any) -> dict[str, Any]:
    return {**CLIP_LAYOUT, "vision_cfg": {**CLIP_LAYOUT["vision_cfg"], **changes}}


def test_what_is_in_the_file_comes_back(tmp_path: Path) -> None:
    assert read(tmp_path, CLIP_LAYOUT) == CLIP_LAYOUT
    stages = with_vision(layers=[3, 4, 6, 3], mlp_ratio=2, timm_model_name=None)
    assert read(tmp_path, stages) == stages


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("[" * 100_000, "got no readable file"),
        (" " * (MAX_BYTES + 1), "more than 65536 bytes"),
        ("[]", "got list"),
        ({**CLIP_LAYOUT, "vision_cfg": 3}, "expected a mapping as vision_cfg, got int"),
        ({**CLIP_LAYOUT, "embed_dim": 10**9}, "a whole number from 1 to 4096 as embed_dim, got 1000000000"),
        ({**CLIP_LAYOUT, "quick_gelu": "no"}, "quick_gelu true or false"),
        (with_vision(layers=10**9), "1 to 64 as vision_cfg.layers, got 1000000000"),
        (with_vision(layers=[1, 2, 3]), "as vision_cfg.layers, got list"),
        (with_vision(layers=64, width=4096), "layers x width² up to 268,435,456 in vision_cfg, got 1,073,741,824"),
        (with_vision(image_size=1024, patch_size=8), "up to 64 patches along a side, got 128"),
        (with_vision(width=True), "as vision_cfg.width, got bool"),
        (with_vision(mlp_ratio=float("nan")), "a number from 0 to 8.0 as vision_cfg.mlp_ratio, got nan"),
        (with_vision(timm_model_name="hf-hub:a/b"), "a plain word as vision_cfg.timm_model_name"),
        (with_vision(act_kwargs={"x": 1}), "a plain word as vision_cfg.act_kwargs, got dict"),
        (with_vision(evil=1), "expected keys of open_clip in vision_cfg, got 'evil'"),
    ],
)
def test_what_is_refused(tmp_path: Path, settings: Any, says: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        read(tmp_path, settings)
    assert says in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/a.json: expected ")


def test_sizes_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**CLIP_LAYOUT, "text_cfg": {**CLIP_LAYOUT["text_cfg"], "heads": 7}}))
    with pytest.raises(ConfigProblem, match=r"towers.arch: expected sizes that go together, got .*a\.json \(Assert"):
        Towers(TowersConfig(arch=str(path)))


def test_no_model_of_a_hub_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(with_vision(timm_model_name="resnet18")))
    with pytest.raises(ConfigProblem, match="expected no timm_model_name but dfer_conv_64, got 'resnet18'"):
        Towers(TowersConfig(arch=str(path)))


def test_names_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CLIP_LAYOUT))
    with pytest.raises(ConfigProblem, match="a known architecture"):
        Towers(TowersConfig(arch=str(tmp_path / "a")))
    with pytest.raises(ConfigProblem, match="image_size: expected at most 1024 pixels, got 100000"):
        TowersConfig(image_size=100_000)
