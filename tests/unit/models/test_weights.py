"""Weight files are read without running anything they name."""

import collections
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dfer.errors import CheckpointError
from dfer.models.foreign.weights import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


class Calls:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_reads_a_state_dict(tmp_path: Path, name: str) -> None:
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(STATE, tmp_path / name)
    assert same(read_weights(tmp_path / name), STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_takes_the_model_out_of_a_training_checkpoint(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    torch.save(
        {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}}, tmp_path / "c.pt"
    )
    assert same(read_weights(tmp_path / "c.pt"), STATE)


def test_reads_a_torchscript_archive_in_half_precision(tmp_path: Path) -> None:
    """OpenAI publishes its CLIPs as such archives."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    net = Net().half()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against writing new ones
        torch.jit.script(net).save(str(tmp_path / "clip.pt"))
    assert same(read_weights(tmp_path / "clip.pt"), net.state_dict())


@pytest.mark.parametrize("command", [os.system, subprocess.check_call, eval, exec])
def test_a_call_hidden_in_a_checkpoint_never_runs(tmp_path: Path, command: Any) -> None:
    """What the file names is bound to nothing; the mark is never made."""
    mark = tmp_path / "mark"
    text = f"__import__('pathlib').Path({str(mark)!r}).touch()" if command in (eval, exec) else f"touch {mark}"
    arguments = (["touch", str(mark)],) if command is subprocess.check_call else (text,)
    torch.save({"state_dict": STATE, "recorder": Calls(command, *arguments)}, tmp_path / "bad.pth")
    assert same(read_weights(tmp_path / "bad.pth"), STATE)
    assert not mark.exists()
    # The file would have run it: the test is worth something.
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert mark.exists()


def test_what_stands_in_for_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Calls(eval, "1")}}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="expected tensors by name"):
        read_weights(tmp_path / "bad.pth")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(STATE, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=name) as caught:
        read_weights(tmp_path / name)
    assert caught.value.exit_code == 5
    assert "Copy it again" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"gone\.pt: expected a file of weights, got no such file\. Check the path"
    ):
        read_weights(tmp_path / "gone.pt")


class Python2:
    """Pickles a mapping as Python 2 did: an OrderedDict of a list of pairs."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return collections.OrderedDict, ([[name, value] for name, value in STATE.items()],)


@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_old_versions_of_torch_and_python(tmp_path: Path, legacy: bool) -> None:
    for name, state in (("net", STATE), ("net", Python2()), ("state_dict", Python2())):
        whole = {name: state, "acc": torch.tensor(73.1), "epoch": 3}
        torch.save(whole, tmp_path / "model.t7", _use_new_zipfile_serialization=not legacy)
        assert same(read_weights(tmp_path / "model.t7"), STATE)


def test_views_of_one_storage_in_a_legacy_file(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"row": whole[1], "turned": whole.T, "half": torch.ones(2).half(), "number": torch.tensor(7)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = read_weights(tmp_path / "w.pth")
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())


def test_a_damaged_legacy_file_is_named_and_never_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "old.pth"
    torch.save({"net": STATE, "x": Calls(os.system, f"touch {mark}")}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert same(read_weights(path), STATE)
    for data in (whole[:-1], whole + b"x", whole[:100], whole.replace(b"FloatStorage", b"EvilStorage_"[:12])):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"the safe reader refuses .* Copy it again .* convert it: python -c"):
            read_weights(path)
    assert not mark.exists()
