"""Weight files are read without running anything they name."""

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
