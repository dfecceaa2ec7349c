"""Checkpoints of one process: what comes back and is kept, damage, cut-off saves, full disks, two copies of a run."""

import hashlib
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

import dfer.run.checkpoint_files
import dfer.run.checkpoints
from dfer.config import ConfigProblem
from dfer.distributed import World
from dfer.errors import CheckpointError, FencedError, StorageError
from dfer.run.checkpoint_files import damage
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.run.lease import Fence, Leases
from dfer.storage import Folder

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def store(home: Folder | Path, **config: Any) -> Checkpoints:
    home = home if isinstance(home, Folder) else Folder(home)
    return Checkpoints(home, world=World(), config=CheckpointConfig(**config))


def started(home: Folder | Path, **config: Any) -> Checkpoints:
    """A copy of the run that may write."""
    checkpoints = store(home, **config)
    checkpoints.start(checkpoints.latest())
    return checkpoints


def save(checkpoints: Checkpoints, step: int, **state: Any) -> Folder:
    """Publish and wait; the checkpoint's folder."""
    weights = {name: value + step for name, value in WEIGHTS.items()}
    checkpoints.save(step, weights=weights, optimizer={"b/momentum_buffer": torch.zeros(1)}, state=state)
    checkpoints.finish()
    assert checkpoints.fence is not None
    return checkpoints.folder / f"step_{step:08d}-{checkpoints.fence.id}"


def local(folder: Folder) -> Path:
    assert folder.local is not None
    return folder.local


def latest(checkpoints: Checkpoints) -> Checkpoint:
    found = checkpoints.latest()
    assert found is not None
    return found


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(name[5:13]) for name in checkpoints.folder.children()]


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder(tmp_path / "run")
        return
    yield Folder("memory://checkpoint-test/run")
    fsspec.filesystem("memory").rm("/checkpoint-test", recursive=True)


def test_what_is_saved_comes_back(home: Folder) -> None:
    folder = save(started(home), 12, note={"x": 1})
    assert folder.name.startswith("step_00000012-g1-")
    assert set(folder.children()) == {"weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    got = latest(store(home))
    assert got.step == 12 and got.state == {"note": {"x": 1}} and got.folder == folder
    assert torch.equal(got.weights()["a.weight"], WEIGHTS["a.weight"] + 12)
    assert got.optimizer().keys() == {"b/momentum_buffer"}


def test_copies_fetched_from_elsewhere_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = Folder("memory://checkpoint-test/run")
    try:
        folder = save(started(home), 1)
        got = latest(store(home))
        assert len(list(tmp_path.iterdir())) == 1 and got.weights()
        got.close()
        assert not list(tmp_path.iterdir())
        forgotten = latest(store(home))
        assert len(list(tmp_path.iterdir())) == 1 and forgotten.weights()
        del forgotten
        assert damage(folder) is None
        folder.write("weights.safetensors", b"x" * (folder.size("weights.safetensors") or 0))
        with pytest.raises(CheckpointError):
            store(home).latest()
        assert not list(tmp_path.iterdir())
    finally:
        fsspec.filesystem("memory").rm("/checkpoint-test", recursive=True)


def test_no_checkpoint_is_none(home: Folder) -> None:
    home.write("config.yaml", b"")
    assert store(home).latest() is None and store(home).best() is None


def test_the_newest_are_kept_and_the_best(home: Folder) -> None:
    checkpoints = started(home, keep_last=2)
    for step in (10, 20, 30, 40, 50):
        save(checkpoints, step, best={"step": 20} if step > 10 else None)
    assert steps(checkpoints) == [20, 40, 50]
    best = checkpoints.best()
    assert best is not None and best.step == 20
    assert torch.equal(best.weights()["b"], torch.tensor([21.0]))


def test_a_store_that_removes_nothing_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a bucket whose rules allow writing, not deleting."""

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    checkpoints = started(tmp_path, keep_last=1)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.rm_file", forbidden)
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert steps(checkpoints) == [1, 2, 3] and latest(checkpoints).step == 3
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "manifest.json: expected to remove it, got Operation not permitted" in told[0]
    assert told[0].endswith("Until then old checkpoints stay and take room.")


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "weights.safetensors has another sha256 than its manifest": lambda f: _flip(f / "weights.safetensors"),
    "state.json has": lambda f: (f / "state.json").write_text("{}"),
    "weights.safetensors has 40 bytes instead of": lambda f: (f / "weights.safetensors").write_bytes(bytes(40)),
    "manifest.json is unreadable (JSONDecodeError)": lambda f: (f / "manifest.json").write_text('{"vers'),
    "manifest.json is unreadable (KeyError)": lambda f: (f / "manifest.json").write_text("{}"),
    "manifest.json is unreadable (RecursionError)": lambda f: (f / "manifest.json").write_text("[" * 100_000),
    "manifest.json has 17825792 bytes": lambda f: (f / "manifest.json").write_text(" " * (17 << 20)),
    "manifest.json is of version 9": lambda f: (f / "manifest.json").write_text('{"version": 9, "files": {}}'),
    "optimizer.safetensors is missing": lambda f: (f / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("text", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = started(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    DAMAGES[text](local(newest))
    with caplog.at_level(logging.WARNING, logger="dfer"):
        got = latest(checkpoints)
    assert got.step == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"{newest}: damaged ({text}") and warning.endswith("using an older checkpoint")


def test_a_state_that_is_no_mapping_is_damage(tmp_path: Path) -> None:
    folder = local(save(started(tmp_path), 1))
    (folder / "state.json").write_text("[1]")
    plain = json.loads((folder / "manifest.json").read_text())
    plain["files"]["state.json"] = {"bytes": 3, "sha256": dfer.run.checkpoint_files.sha256_of(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(plain))
    assert damage(Folder(folder)) == "state.json holds no mapping"


@pytest.mark.slow("a hundred checkpoints, each written to disk")
@given(data=st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save(started(tmp_path_factory.mktemp("run")), 1, note="x")
    name = data.draw(st.sampled_from(["weights.safetensors", "optimizer.safetensors", "state.json"]))
    raw = bytearray(folder.read(name) or b"")
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (local(folder) / name).write_bytes(raw)
    assert damage(folder) == f"{name} has another sha256 than its manifest"


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoints = started(tmp_path)
    for step in (1, 2):
        _flip(local(save(checkpoints, step)) / "weights.safetensors")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    text = str(caught.value)
    assert text.startswith(f"{checkpoints.folder}: expected one whole checkpoint, got 2 damaged (step_00000002-g1-")
    assert text.endswith("Copy them again from their source, or start over with another run=FOLDER.")
    assert caught.value.exit_code == 5


def test_a_given_step_that_is_gone_is_an_error(tmp_path: Path) -> None:
    checkpoints = started(tmp_path)
    save(checkpoints, 5, best={"step": 3})
    with pytest.raises(CheckpointError, match=r"step_00000003: expected a whole checkpoint, got none of this step"):
        checkpoints.best()


class _Killed(BaseException):
    """Stands for SIGKILL: nothing catches it and nothing is cleaned up."""


@pytest.mark.parametrize("at", ["write_tensors", "sha256_of"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_save_cut_off_anywhere_leaves_the_old_one(
    at: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(started(tmp_path), 1)
    cut_off, real, calls = started(tmp_path), getattr(dfer.run.checkpoints, at), 0

    def cut(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise _Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dfer.run.checkpoints, at, cut)
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        if at == "write_tensors" and call == 3:
            save(cut_off, 2)  # there are only two
        else:
            with pytest.raises(_Killed):
                save(cut_off, 2)
    done = 2 if calls < call else 1
    assert latest(store(tmp_path)).step == done
    again = started(tmp_path)
    assert steps(again) == [1, 2][:done], "leftovers are cleared by the next start"
    save(again, 3)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]
)
def test_a_full_disk_says_so_and_leaves_the_old_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = started(tmp_path)
    old = save(checkpoints, 1)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(dfer.run.checkpoint_files, "save_file", full)
        with pytest.raises(StorageError) as caught:
            save(checkpoints, 2)
    name = old.url.replace("step_00000001", "step_00000002")
    assert str(caught.value) == (
        f"{name}/weights.safetensors: expected to write it, got no space left. Free some. "
        "The same command continues from the last checkpoint."
    )
    assert caught.value.exit_code == 6
    assert checkpoints.folder.children() == [old.name] and latest(checkpoints).step == 1


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    checkpoints = started(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError, match=r"weights.safetensors: expected to write it, got (Not a dir|File exists)"):
        save(checkpoints, 1)


def test_a_step_saved_again_counts_once(tmp_path: Path) -> None:
    save(started(tmp_path), 4)
    checkpoints = started(tmp_path)
    save(checkpoints, 4, second=True)
    assert latest(checkpoints).state == {"second": True}
    assert len(checkpoints.folder.children()) == 1


def test_paths_in_a_manifest_lead_nowhere(tmp_path: Path) -> None:
    folder = save(started(tmp_path), 1)
    manifest = json.loads(folder.text("manifest.json") or "")
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    folder.write("manifest.json", json.dumps(manifest).encode())
    assert "manifest.json is of version 2 with ../../secret" in str(damage(folder))


def test_weights_that_are_no_safetensors_are_a_message(tmp_path: Path) -> None:
    save(started(tmp_path), 1)
    got = latest(store(tmp_path))
    (local(got.folder) / "weights.safetensors").write_bytes(b"junk")
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
    wanted = {s for s in range(1, 31) if checkpoints.due(s, epochs_done=s // 10 if s % 10 == 0 else None)}
    assert wanted == due


def test_minutes_count_from_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoints = started(tmp_path, every_minutes=2)
    now += 119
    assert not checkpoints.overdue
    now += 2
    assert checkpoints.overdue
    save(checkpoints, 1)
    assert not checkpoints.overdue and not started(tmp_path, every_minutes=None).overdue


@pytest.mark.parametrize("key", ["every_epochs", "every_steps", "keep_last"])
def test_config_messages(key: str) -> None:
    with pytest.raises(ConfigProblem, match=f"{key}: expected 1 or more, got 0"):
        CheckpointConfig(**{key: 0})
    with pytest.raises(ConfigProblem, match=r"every_minutes: expected minutes above 0, got -1. null switches it off"):
        CheckpointConfig(every_minutes=-1)


# In the background


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, may_write = started(tmp_path), threading.Event()
    real = dfer.run.checkpoints.write_tensors

    def slow(*arguments: Any) -> None:
        assert may_write.wait(30)
        real(*arguments)

    monkeypatch.setattr(dfer.run.checkpoints, "write_tensors", slow)
    before: list[str] = []
    checkpoints.save(1, weights=WEIGHTS, optimizer={}, state={}, before=lambda: before.append("metrics are written"))
    assert checkpoints.latest() is None and not checkpoints.failed and not before
    may_write.set()
    checkpoints.finish()
    assert latest(checkpoints).step == 1 and before


def test_an_error_in_the_background_is_seen_and_raised_once(tmp_path: Path) -> None:
    checkpoints = started(tmp_path)

    def fail() -> None:
        raise StorageError("metrics.jsonl: expected room, got none. Make some.")

    checkpoints.save(1, weights=WEIGHTS, optimizer={}, state={}, before=fail)
    while not checkpoints.failed:
        pass
    with pytest.raises(StorageError, match=r"Make some. The same command continues from the last checkpoint"):
        checkpoints.save(2, weights=WEIGHTS, optimizer={}, state={})
    checkpoints.finish()
    assert checkpoints.latest() is None and checkpoints.folder.children() == []


# Two copies of one run


def test_an_older_copy_can_publish_nothing_more(home: Folder) -> None:
    older = started(home)
    save(older, 10)
    newer = started(home)
    with pytest.raises(FencedError) as caught:
        save(older, 11)
    text = str(caught.value)
    assert text.startswith(f"{home}: expected to be its only writer (lease g1-") and caught.value.exit_code == 8
    assert "got a newer copy at work there (process " in text and "This copy stops and has written nothing" in text
    assert steps(newer) == [10]
    save(newer, 11)
    assert latest(store(home)).folder.name.startswith("step_00000011-g2-")


def test_what_an_older_copy_was_just_publishing_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped between its last look at the leases and the commit, and wakes up when the newer one is at work."""
    older = started(tmp_path)
    save(older, 10)
    newer = started(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Fence, "check", lambda self: None)
        save(older, 12)
    assert steps(newer) == [10, 12]
    assert latest(store(tmp_path)).step == 10
    save(newer, 11)
    assert latest(store(tmp_path)).step == 11
    third = store(tmp_path)
    found = third.start(third.latest())
    assert found is not None and found.step == 11 and steps(third) == [10, 11], "the next start clears it away"


def test_a_start_goes_on_from_what_was_published_while_it_got_ready(tmp_path: Path) -> None:
    older = started(tmp_path)
    save(older, 10)
    newer = store(tmp_path)
    seen = newer.latest()
    save(older, 20)
    found = newer.start(seen)
    assert found is not None and found.step == 20
    leases = Leases(Folder(tmp_path))
    assert [leases.get(lease).step for lease in leases.ids()] == [0, 20]


def test_starting_over_from_an_older_checkpoint_leaves_the_damaged_one_out(tmp_path: Path) -> None:
    checkpoints = started(tmp_path)
    save(checkpoints, 1)
    broken = save(checkpoints, 2)
    _flip(local(broken) / "weights.safetensors")
    again = store(tmp_path)
    found = again.start(again.latest())
    assert found is not None and found.step == 1
    assert steps(again) == [1]


@pytest.mark.parametrize("best", [{}, [], 3, {"step": "x"}, {"step": None}])
def test_a_best_checkpoint_that_is_no_step_is_told(tmp_path: Path, best: Any) -> None:
    checkpoints = started(tmp_path)
    name = save(checkpoints, 1, note=1).name
    folder = tmp_path / "checkpoints" / name
    text = json.dumps({"best": best})
    (folder / "state.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"state\.json: expected the step of the best checkpoint, got none\."):
        store(tmp_path).best()
