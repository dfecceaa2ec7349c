"""CLIP in other layouts as a file in open_clip's: equal features, or a refusal by name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError
from dfer.jobs.importing import HEAD_FILE, TOWERS_CONFIG, TOWERS_FILE, import_head, import_towers
from dfer.models import head_file
from dfer.models.config_towers import TowersConfig
from dfer.models.foreign.weights import read_weights
from dfer.models.towers import Towers
from dfer.storage import Folder
from tests.reference import recipe
from tests.unit.models.conftest import REFERENCE

ABOUT = json.loads((REFERENCE / "transformers_clip.json").read_text())


def hub(folder: Path, act: str = "quick_gelu", **changes: Tensor | None) -> Path:
    """The weights that transformers had when its answers were recorded, as its older versions save them."""
    folder.mkdir(exist_ok=True)
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state: dict[str, Any] = {name: torch.from_numpy(np.asarray(x)) for name, x in recipe.drawn(shapes).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(recipe.CONTEXT)[None]
    state |= changes
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "pytorch_model.bin")
    parts = {"hidden_act": act}
    (folder / "config.json").write_text(json.dumps({"text_config": parts, "vision_config": parts}))
    return folder / "pytorch_model.bin"


def layout(folder: Path, act: str) -> str:
    path = folder / f"{act}.json"
    path.write_text(json.dumps({**recipe.CLIP_LAYOUT, "quick_gelu": act == "quick_gelu"}))
    return str(path)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_transformers_features_are_equal(tmp_path: Path, act: str) -> None:
    arch, out = layout(tmp_path, act), tmp_path / "out"
    taken = import_towers(hub(tmp_path / "hub", act), Folder(out), arch=arch)
    assert taken.new and "hub/config.json says" in taken.notes[0]
    towers = Towers(TowersConfig(arch=arch, pretrained=str(out / TOWERS_FILE)))
    assert towers.origin is not None and "open_clip_config.json says" in towers.origin
    pictures = torch.from_numpy(recipe.clips(1)[0, :4]).float() / 255
    tokens = torch.zeros(2, recipe.CONTEXT, dtype=torch.int64)
    for row, ids in enumerate(ABOUT["tokens"]):
        tokens[row, : len(ids)] = torch.tensor(ids)
    ends = torch.tensor([len(ids) - 1 for ids in ABOUT["tokens"]])
    found = {"image": towers.encode_frames(pictures), "text": towers.encode_prompts(towers.embed(tokens), ends)}
    with np.load(REFERENCE / "transformers_clip.npz", allow_pickle=False) as recorded:
        for name, value in found.items():
            expected = recorded[f"{act}/{name}"]
            assert np.ptp(expected, axis=0).max() > 0.1
            np.testing.assert_allclose(value.detach().numpy(), expected, atol=1e-4, rtol=0)
    # open_clip itself takes the folder as a hub's.
    theirs = open_clip.create_model(f"local-dir:{out}")
    with torch.no_grad():
        np.testing.assert_allclose(
            theirs.encode_image(pictures).numpy(), found["image"].detach().numpy(), atol=1e-4, rtol=0
        )


def refused(path: Path, arch: str, kind: type[Exception] = CheckpointError) -> str:
    out = path.parent / "refused"
    with pytest.raises(kind) as caught:
        import_towers(path, Folder(out), arch=arch)
    assert not out.exists()
    return str(caught.value)


def test_what_transformers_clip_is_not(tmp_path: Path) -> None:
    arch, folder = layout(tmp_path, "quick_gelu"), tmp_path / "hub"
    said = refused(hub(folder, **{"classifier.weight": torch.ones(2)}), arch)
    assert "expected the names of transformers' CLIP, got classifier.weight" in said
    said = refused(hub(folder, **{"text_model.embeddings.position_ids": torch.ones(77)}), arch)
    assert "got text_model.embeddings.position_ids" in said
    third = "vision_model.encoder.layers.1.self_attn.k_proj.bias"
    said = refused(hub(folder, **{third: None}), arch)
    assert "three projections of one shape for visual.transformer.resblocks.1.attn.in_proj_bias, got 2" in said
    said = refused(hub(folder, **{"visual_projection.weight": torch.ones(5, 128)}), arch)
    assert "visual.proj (128, 5) instead of (128, 512)" in said
    said = refused(hub(folder, act="gelu"), arch, ConfigProblem)
    assert "config.json): expected an architecture with the exact GELU" in said
    (hub(folder).parent / "config.json").write_text(json.dumps({"text_config": {"hidden_act": "relu"}}))
    said = refused(folder / "pytorch_model.bin", arch, ConfigProblem)
    assert "expected the hidden_act quick_gelu or gelu, the same in text_config and vision_config, got relu and" in said
    (folder / "config.json").unlink()
    taken = import_towers(folder / "pytorch_model.bin", None, arch=arch)
    assert taken.new is None and "the file cannot confirm it" in taken.notes[0]


def test_an_openai_archive_is_taken(tmp_path: Path, clip_weights: dict[str, Tensor]) -> None:
    """fp16 and with the names that only OpenAI writes; the file they publish is TorchScript (test_towers.py)."""
    half = {name: value.half() for name, value in clip_weights.items()}
    torch.save({**half, "input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}, tmp_path / "b32.pt")
    arch, out = layout(tmp_path, "quick_gelu"), tmp_path / "out"
    taken = import_towers(tmp_path / "b32.pt", Folder(out), arch=arch)
    assert taken.left_out == {"input_resolution": "describes the file", "context_length": "describes the file"}
    found = read_weights(out / TOWERS_FILE)
    assert found.keys() == clip_weights.keys()
    assert all(torch.equal(value, half[name].float()) for name, value in found.items())
    assert json.loads((out / TOWERS_CONFIG).read_text())["model_cfg"]["quick_gelu"] is True
    assert "b32.pt" in (out / "README.md").read_text()
    assert not import_towers(tmp_path / "b32.pt", Folder(out), arch=arch).new, "the same folder again"
    said = refused(tmp_path / "b32.pt", layout(tmp_path, "gelu"), ConfigProblem)
    assert "OpenAI's own file): expected an architecture with OpenAI's quick GELU" in said


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"patch_embed.proj.weight": torch.ones(2), "blocks.0.attn.qkv.weight": torch.ones(2)}, tmp_path / "t.pt")
    assert "got an image model in the names of timm. Both towers" in refused(tmp_path / "t.pt", "tiny-vit-64")


def test_an_imported_head_is_recognised_as_the_released_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its numbers, so that others under the same metadata are not."""
    file, made = tmp_path / "ExpCLIP_B16_model.pth", tmp_path / "out" / HEAD_FILE
    torch.save({"mlp.weight": torch.randn(64, 512)}, file)
    import_head(file, Folder(tmp_path / "unknown"))
    assert head_file.released_head(tmp_path / "unknown" / HEAD_FILE) == ""
    data = file.read_bytes()
    monkeypatch.setattr(head_file, "HEADS", {hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(): "B16"})
    taken = import_head(file, Folder(tmp_path / "out"))
    assert taken.notes == ("the released head B16, of OpenAI's ViT-B-16-quickgelu",)
    assert head_file.released_head(made) == "B16" and head_file.made_for(made) == head_file.made_for(file)
    assert not import_head(file, Folder(tmp_path / "out")).new, "the same bytes again"
    whole = made.read_bytes()
    made.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert head_file.released_head(made) == ""
    made.write_bytes(whole.replace(b'\\"B16\\"', b'\\"X99\\"'))
    assert made.read_bytes() != whole and head_file.released_head(made) == ""


def test_an_exp_clip_head(tmp_path: Path) -> None:
    head = torch.randn(4096, 512)
    torch.save({"mlp.weight": head}, tmp_path / "ExpCLIP_B32_model.pth")
    taken = import_head(tmp_path / "ExpCLIP_B32_model.pth", Folder(tmp_path / "out"))
    assert torch.equal(read_weights(tmp_path / "out" / HEAD_FILE)["mlp.weight"], head)
    assert taken.use.endswith(f"model.head={tmp_path}/out/head.safetensors")
    for state in ({"mlp.weight": head, "mlp.bias": head[0]}, {"mlp.weight": head[0]}, {"w": head}):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"expected mlp\.weight of two dimensions alone, got "):
            import_head(tmp_path / "other.pth", Folder(tmp_path / "other"))
        assert not (tmp_path / "other").exists()
