"""Weights that are something else than they are given for: whose layout it is, and what to give instead."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dfer.emotions import label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.config import TowersConfig
from dfer.models.files import check_files
from dfer.models.foreign.weights import read_weights
from dfer.models.towers import Towers
from tests.reference.recipe import CASES
from tests.unit.models.conftest import Released
from tests.unit.models.tiny import tiny

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 5
    return str(caught.value)


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 605143316\n"


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("data", "got", "do"),
    [
        (POINTER, "got a Git LFS pointer to 605,143,316 bytes", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>..", "got an HTML page", "Download the file itself"),
        (b"<HTML><head>", "got an HTML page", "Download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "got an XML page", "Download the file itself"),
        (b'{"weight_map": {}}', "got JSON text, such as", "the file of weights beside it"),
        (b"\x89HDF\r\n\x1a\n", "got a Keras or TensorFlow file", "weights for PyTorch"),
        (b"GGUF\x03\0\0\0", "got a GGUF file", "weights for PyTorch"),
        (b"\x1f\x8b\x08\0", "got a gzip archive", "Unpack it"),
        (b"\xfd7zXZ\0", "got an xz archive", "Unpack it"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", "got a bare pickle", "convert it: python -c"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, data: bytes, got: str, do: str) -> None:
    (tmp_path / name).write_bytes(data)
    said = refused(tmp_path / name)
    assert got in said and do in said and "Copy it again" not in said


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "renamed.pt")
    torch.save(STATE, tmp_path / "renamed.safetensors")
    assert same(read_weights(tmp_path / "renamed.pt")) and same(read_weights(tmp_path / "renamed.safetensors"))


def test_safetensors_of_any_size_are_not_taken_for_something_else(tmp_path: Path) -> None:
    """The first byte is the lowest one of the header's size: `{`, 0x80 or 0x1f as well."""
    for size in range(64, 64 + 256):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(size)
        (tmp_path / "w.pt").write_bytes(size.to_bytes(8, "little") + header + bytes(4))
        assert read_weights(tmp_path / "w.pt")["a"].item() == 0


@pytest.mark.parametrize("key", ["module", "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_the_model_is_found_in_deepspeeds_and_others_checkpoints(tmp_path: Path, key: str, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    extra = {"optimizer": None, "ds_config": {"zero": 1}, "global_steps": 10, "buffer_names": []}
    torch.save({key: state, **extra}, tmp_path / "mp_rank_00_model_states.pt")
    assert same(read_weights(tmp_path / "mp_rank_00_model_states.pt"))


def test_deepspeeds_other_files_are_told(tmp_path: Path) -> None:
    torch.save({"module": {name: torch.empty(0) for name in STATE}}, tmp_path / "zero.pt")
    said = refused(tmp_path / "zero.pt")
    assert "got 2 names with empty tensors, as DeepSpeed's ZeRO 3" in said and "zero_to_fp32.py" in said
    torch.save({"optimizer_state_dict": {"loss_scaler": 1}, "ds_version": "0.1"}, tmp_path / "optim.pt")
    assert "got none. Give the file that holds the model; DeepSpeed's is mp_rank_00_model_states.pt" in refused(
        tmp_path / "optim.pt"
    )


def test_of_a_hubs_folder_the_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    assert "got a folder without weights. Give a file that ends in .safetensors, .pt, .pth, .bin." in refused(folder)
    for name in ("README.md", "tokenizer.json", "open_clip_config.json", "model.safetensors"):
        (folder / name).touch()
    assert refused(folder).endswith(f"got a folder. Give the file in it: {folder}/model.safetensors.")
    for name in ("open_clip_pytorch_model.bin", "open_clip_model.safetensors", "optimizer.optim.pt"):
        (folder / name).touch()
    files = f"{folder}/open_clip_model.safetensors or {folder}/open_clip_pytorch_model.bin."
    assert refused(folder).endswith(f"Give the file in it: {files}")
    cache = tmp_path / "models--timm--vit" / "snapshots" / "ab12"
    shutil.copytree(folder, cache)
    assert f"Give the file in it: {cache}/open_clip_model.safetensors" in refused(tmp_path / "models--timm--vit")
    for path in (str(folder), str(tmp_path / "models--timm--vit")):  # launchers say the same before they submit
        with pytest.raises(CheckpointError, match=r"model\.towers\.pretrained=.*open_clip_model\.safetensors"):
            check_files(tiny(towers=TowersConfig(arch="tiny-vit-64", pretrained=path)))


def test_a_run_folder_is_sent_to_start(tmp_path: Path) -> None:
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "config.yaml").touch()
    for folder in (tmp_path, tmp_path / "fold_1"):
        assert "got a run folder or saved model of this project. Begin from its weights with model.start=" in refused(
            folder
        )


def as_transformers(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some of CLIP's tensors under the names of transformers' CLIPModel."""
    return {
        "text_model.embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": clip["visual.conv1.weight"],
        "visual_projection.weight": clip["visual.proj"].T.contiguous(),
        "logit_scale": clip["logit_scale"],
    }


def pretrained(arch: str, weights: dict[str, Tensor], tmp_path: Path) -> str:
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    with pytest.raises(CheckpointError) as caught:
        Towers(TowersConfig(arch=arch, pretrained=str(path)))
    said = str(caught.value)
    assert f"{path}: expected " in said and "Set `arch`" not in said and "Copy it again" not in said
    return said


def test_names_of_other_projects_are_told(arch: str, clip_weights: dict[str, Tensor], tmp_path: Path) -> None:
    hub = as_transformers(clip_weights)
    for weights in (hub, {f"clip.{name}": value for name, value in hub.items()}):
        said = pretrained(arch, weights, tmp_path)
        assert "expected a CLIP in OpenAI's or open_clip's names, got a model in the names of transformers" in said
        assert "or give the same CLIP in other names: open_clip_model.safetensors" in said
    timm = {"patch_embed.proj.weight": torch.ones(2), "blocks.0.attn.qkv.weight": torch.ones(2)}
    assert "got an image model in the names of timm. Both towers of a CLIP" in pretrained(arch, timm, tmp_path)
    other = {"net.0.weight": torch.ones(2), "net.0.bias": torch.ones(2)}
    assert "got names such as net.0.weight, net.0.bias. Give a CLIP as" in pretrained(arch, other, tmp_path)


def test_a_released_dfer_clip_is_sent_to_the_importer(arch: str, released: Released, tmp_path: Path) -> None:
    weights = read_weights(released(CASES[0]))
    said = pretrained(arch, weights, tmp_path)
    assert "got a checkpoint of the released DFER-CLIP code. Make a saved model of it, `dfer import" in said


def test_our_own_weights_are_sent_to_start(arch: str, tmp_path: Path) -> None:
    own: Any = build(tiny(arch="tiny-conv-64"), label_set("basic7"), num_frames=2, seed=1).state_dict()
    said = pretrained(arch, own, tmp_path)
    assert "got the weights of a run of this project. Give its run folder as model.start=RUN" in said
