import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

import dfer.checkpoint
from dfer.checkpoint import CheckpointConfig, Checkpoints, damage
from dfer.config import ConfigProblem
from dfer.distributed import World
from dfer.errors import CheckpointError, StorageError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def store(folder: Path, **config: Any) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", world=World(), config=CheckpointConfig(**config))


def save(checkpoints: Checkpoints, step: int, **state: Any) -> Path:
    weights = {name: value + step for name, value in WEIGHTS.items()}
    return checkpoints.save(step, weights=weights, optimizer={"b/momentum_buffer": torch.zeros(1)}, state=state)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = save(store(tmp_path), 12, note={"x": 1})
    assert folder.name == "step_00000012"
    assert {p.name for p in folder.iterdir()} == {
        "weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    got = store(tmp_path).latest()
    assert got is not None and got.step == 12 and got.state == {"note": {"x": 1}}
    assert torch.equal(got.weights()["a.weight"], WEIGHTS["a.weight"] + 12)
    assert got.optimizer().keys() == {"b/momentum_buffer"}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert store(tmp_path).latest() is None and store(tmp_path).best() is None


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, keep_last=2)
    for step in (10, 20, 30, 40, 50):
        save(checkpoints, step, best={"step": 20} if step > 10 else None)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step_00000020", "step_00000040", "step_00000050"]
    best = checkpoints.best()
    assert best is not None and best.step == 20
    assert torch.equal(best.weights()["b"], torch.tensor([21.0]))


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "weights.safetensors has another sha256 than its manifest": lambda f: _flip(f / "weights.safetensors"),
    "state.json has": lambda f: (f / "state.json").write_text("{}"),
    "weights.safetensors has 40 bytes instead of": lambda f: (f / "weights.safetensors").write_bytes(bytes(40)),
    "no manifest.json": lambda f: (f / "manifest.json").unlink(),
    "manifest.json is unreadable (JSONDecodeError)": lambda f: (f / "manifest.json").write_text('{"vers'),
    "manifest.json is unreadable (KeyError)": lambda f: (f / "manifest.json").write_text("{}"),
    "manifest.json is of version 9": lambda f: (f / "manifest.json").write_text('{"version": 9, "files": {}}'),
    "optimizer.safetensors cannot be read": lambda f: (f / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("text", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    DAMAGES[text](newest)
    with caplog.at_level(logging.WARNING, logger="dfer"):
        got = checkpoints.latest()
    assert got is not None and got.step == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"{newest}: damaged ({text}") and warning.endswith("using an older checkpoint")


@given(data=st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save(store(tmp_path_factory.mktemp("run")), 1, note="x")
    name = data.draw(st.sampled_from(["weights.safetensors", "optimizer.safetensors", "state.json"]))
    raw = bytearray((folder / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(raw)
    assert damage(folder) == f"{name} has another sha256 than its manifest"


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    for step in (1, 2):
        _flip(save(checkpoints, step) / "weights.safetensors")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    text = str(caught.value)
    assert text.startswith(
        f"{checkpoints.folder}: expected one whole checkpoint, got 2 damaged (step_00000002: weights"
    )
    assert text.endswith("Copy them anew from where they came, or start over with another run=FOLDER.")
    assert caught.value.exit_code == 5


def test_a_given_step_that_is_gone_is_an_error(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 5, best={"step": 3})
    with pytest.raises(CheckpointError, match=r"step_00000003: expected a whole checkpoint, got no manifest\.json"):
        checkpoints.best()


class _Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("at", ["save_file", "_sha256", "_sync"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_save_cut_off_anywhere_leaves_the_old_one(
    at: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 1)
    real, calls = getattr(dfer.checkpoint, at), 0

    def cut(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise _Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dfer.checkpoint, at, cut)
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a killed process cleans nothing up
        if at == "save_file" and call == 3:
            save(checkpoints, 2)  # there are only two
        else:
            with pytest.raises(_Killed):
                save(checkpoints, 2)
    got = checkpoints.latest()
    assert got is not None and got.step == (2 if calls < call else 1)
    save(checkpoints, 3)
    assert not list(checkpoints.folder.glob(".step_*")), "leftovers are cleared by the next save"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]
)
def test_a_full_disk_says_so_and_leaves_the_old_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 1)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(dfer.checkpoint, "save_file", full)
        with pytest.raises(StorageError) as caught:
            save(checkpoints, 2)
    assert str(caught.value) == (
        f"{checkpoints.folder / 'step_00000002'}: expected to write a checkpoint, got no space left. "
        "Free some, or lower checkpoint.keep_last; the same command continues from the last checkpoint."
    )
    assert caught.value.exit_code == 6
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step_00000001"]
    assert checkpoints.latest() is not None


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match=r"expected to write a checkpoint, got .*Not a directory"):
        save(store(tmp_path), 1)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    _flip(save(checkpoints, 4) / "weights.safetensors")
    save(checkpoints, 4, second=True)
    got = checkpoints.latest()
    assert got is not None and got.state == {"second": True}
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step_00000004"]


def test_paths_in_a_manifest_lead_nowhere(tmp_path: Path) -> None:
    folder = save(store(tmp_path), 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json is of version 1 with ../../secret" in str(damage(folder))


def test_weights_that_are_no_safetensors_are_a_message(tmp_path: Path) -> None:
    got = store(tmp_path).at(int(save(store(tmp_path), 1).name[5:]))
    (got.folder / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="expected a safetensors file, got "):
        got.weights()


@pytest.mark.parametrize(
    ("config", "due"),
    [
        ({}, {10, 20, 30}),
        ({"every_epochs": 2}, {20}),
        ({"every_epochs": None}, set()),
        ({"every_epochs": None, "every_steps": 8}, {8, 16, 24}),
        ({"every_epochs": 3, "every_steps": 25}, {25, 30}),
    ],
)
def test_due(config: dict[str, Any], due: set[int], tmp_path: Path) -> None:
    checkpoints = store(tmp_path, **config)
    steps = range(1, 31)
    assert {s for s in steps if checkpoints.due(s, epochs_done=s // 10 if s % 10 == 0 else None)} == due


@pytest.mark.parametrize("key", ["every_epochs", "every_steps", "keep_last"])
def test_config_messages(key: str) -> None:
    with pytest.raises(ConfigProblem, match=f"{key}: expected 1 or more, got 0"):
        CheckpointConfig(**{key: 0})
