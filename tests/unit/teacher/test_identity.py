"""What identifies a teacher: samples of its weights, and the commit of a hub."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dfer.errors import CheckpointError
from dfer.storage import Folder
from dfer.teacher import files
from dfer.teacher.build import agree_commit, build_teacher
from dfer.teacher.config import Blip2TeacherConfig, InstructBlipTeacherConfig, TextTeacherConfig
from dfer.teacher.files import identity, sample
from dfer.teacher.teacher import Teacher
from tests.unit.teacher import models
from tests.unit.teacher.test_ready import COMMIT, cache, cached

__all__ = ["cache"]
CPU = torch.device("cpu")


def sampled(path: Path) -> str:
    sample.cache_clear()
    return sample(path, path.stat().st_size, path.stat().st_mtime_ns)


def test_a_fine_tuned_copy_is_another_teacher(tmp_path: Path) -> None:
    folder = models.text_encoder(tmp_path / "model")
    config = TextTeacherConfig(model=str(folder))
    before = identity(config)["sha256"]
    weights = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["encoder.layer.1.output.dense.bias"] += 1e-3
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    assert identity(config)["sha256"] != before


@pytest.mark.parametrize("kind", ["blip2", "instruct_blip"])
def test_every_file_of_a_tokenizer_counts(kind: str, tmp_path: Path) -> None:
    folder = models.blip(kind, tmp_path / "model")
    config = {"blip2": Blip2TeacherConfig, "instruct_blip": InstructBlipTeacherConfig}[kind](model=str(folder))
    found = [identity(config)["sha256"]]
    for name in ("tokenizer.json", "spiece.model", "qformer_tokenizer/vocab.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        found.append(identity(config)["sha256"])
    assert len({*found}) == len(found)


def test_every_tensor_of_a_large_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WHOLE", 1000)
    monkeypatch.setattr(files, "BLOCK", 64)
    tensors = {name: torch.zeros(size) for name, size in {"a": 100_000, "b": 3, "c": 50_000, "d": 1}.items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path)
    found = [sampled(path)]
    assert sampled(path) == found[0]
    for name in tensors:
        safetensors.torch.save_file({**tensors, name: tensors[name] + 1}, path)
        found.append(sampled(path))
    safetensors.torch.save_file({**tensors, "a": torch.zeros(50_000), "c": torch.zeros(100_000)}, path)
    found.append(sampled(path))
    tensors["a"][50_000:] = 1  # also behind the first numbers of a tensor
    safetensors.torch.save_file(tensors, path)
    assert len({*found, sampled(path)}) == len(found) + 1


@pytest.mark.parametrize(
    "header", [b"no JSON", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b'{"a": {"data_offsets": [-9]}}']
)
def test_a_large_file_of_something_else_is_refused(
    header: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WHOLE", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100_000))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: expected a safetensors file, got another header. Copy"
    ):
        sampled(path)
    path.write_bytes(b"\xff" * 100_000)
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        sampled(path)


@pytest.mark.parametrize("kind", ["blip2", "text"])
def test_the_commit_of_a_hub_is_told_and_is_no_part_of_the_key(
    kind: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = models.blip(kind, tmp_path / "made") if kind == "blip2" else models.text_encoder(tmp_path / "made")
    config: Any = {"blip2": Blip2TeacherConfig, "text": TextTeacherConfig}[kind](model="me/tiny")
    before = identity(config)
    cached(cache, made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    teacher = build_teacher(config, CPU)
    assert (teacher.commit, teacher.origin) == (COMMIT, f"me/tiny, revision main, commit {COMMIT}")
    assert identity(config) == before and before["revision"] == "main"
    local: Any = {"blip2": Blip2TeacherConfig, "text": TextTeacherConfig}[kind](model=str(made))
    teacher = build_teacher(local, CPU)
    assert (teacher.commit, teacher.origin) == (None, str(made))


class Loaded(Teacher):
    """A teacher of some commit."""

    def __init__(self, commit: str | None) -> None:
        super().__init__()
        self.commit = commit

    def forward(self, pictures: torch.Tensor, texts: Any) -> torch.Tensor:
        return pictures


def test_parts_do_not_mix_two_commits(tmp_path: Path) -> None:
    home = Folder(str(tmp_path / "features"), what="pairs.features")
    agree_commit(home, Loaded(None))
    assert not (tmp_path / "features").exists()
    for _ in range(2):
        agree_commit(home, Loaded(COMMIT))
    with pytest.raises(CheckpointError) as caught:
        agree_commit(home, Loaded("f" * 40))
    assert str(caught.value) == (
        f"{home}: expected the teacher of the first part, commit {COMMIT}, got commit {'f' * 40}. Set "
        f"pairs.teacher.revision to {COMMIT} or {'f' * 40}, and another run=FOLDER."
    )
    shutil.rmtree(tmp_path / "features")
    agree_commit(home, Loaded("f" * 40))
