"""A CNN as a run: batch statistics and dropout are the same after a stop; what they fix is refused; other networks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import load_file

from dfer.config import ConfigProblem
from dfer.data.config import DataConfig
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, DferError
from dfer.jobs.config import RunConfig
from dfer.jobs.train import train
from dfer.models.config import LinearProbeConfig
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.files import files, source
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from tests.unit.data.shardkit import Clip, write_shards

CLASSES = ("happiness", "sadness")


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stills of noise with a bright patch at one of two heights."""
    draw, folder = np.random.default_rng(8), tmp_path_factory.mktemp("faces")

    def still(number: int) -> Clip:
        face = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        face[(4, 20)[number % 2] :][:8, 8:24] += 120
        return Clip(key=f"{number:04d}", label=number % 2, frames=[simplejpeg.encode_jpeg(face, quality=95)])

    stills = [still(number) for number in range(64)]
    return write_shards(folder, {"train": [stills[:32]], "test": [stills[32:]]}, classes=CLASSES)


def config(home: Path, faces: Path, *, epochs: int, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "run": str(home),
        "epochs": epochs,
        "batch": 8,
        "micro_batch": 4,
        "data": DataConfig(shards=str(faces), workers=0, frames=1, size=32),
        "model": CnnConfig(net="resnet18", width=4),
        "engine": EngineConfig(name="ddp"),
        "optim": SgdConfig(groups={"network": GroupConfig(lr=0.01)}, weight_decay=5e-4),
    }
    return RunConfig(**{**values, **changes})


def weights_of(home: Path) -> dict[str, torch.Tensor]:
    return load_file(max((home / "checkpoints").glob("step_*")) / "weights.safetensors")


def test_a_run_that_goes_on_equals_one_that_never_stopped(tmp_path: Path, faces: Path, alone: World) -> None:
    """Bit for bit, with the statistics of batch norm and their counters."""
    train(config(tmp_path / "straight", faces, epochs=2), alone)
    train(config(tmp_path / "stopped", faces, epochs=1), alone)
    result = train(config(tmp_path / "stopped", faces, epochs=2), alone)
    assert (result.processes, result.micro_batch, result.layout) == (1, 4, "1 process with micro-batches of 4")
    straight, stopped = weights_of(tmp_path / "straight"), weights_of(tmp_path / "stopped")
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)
    assert straight["body.1.num_batches_tracked"] == 2 * 4 * 2  # epochs, steps, micro-batches
    assert result.protocol.normalisation == "none (frames scaled to 0..1)" and result.protocol.presentation == ""


def test_another_micro_batch_is_refused_on_resume(tmp_path: Path, faces: Path, alone: World) -> None:
    run = config(tmp_path / "run", faces, epochs=1)
    train(run, alone)
    with pytest.raises(DferError, match="micro_batch"):
        train(replace(run, epochs=2, micro_batch=8), alone)


def test_it_begins_from_a_run_of_the_same_network_alone(tmp_path: Path, faces: Path, alone: World) -> None:
    train(config(tmp_path / "first", faces, epochs=1), alone)
    start = str(tmp_path / "first")
    own = CnnConfig(net="resnet18", width=4, start=start)
    result = train(config(tmp_path / "second", faces, epochs=1, model=own), alone)
    assert result.start.startswith(start)
    for other, says in (
        (CnnConfig(net="vgg19", width=4, start=start), "the network vgg19 of width 4, got resnet18 of width 4"),
        (CnnConfig(net="resnet18", width=8, start=start), "the network resnet18 of width 8, got resnet18 of width 4"),
    ):
        with pytest.raises(CheckpointError, match=rf"{says}\. Set model\.net and model\.width"):
            train(config(tmp_path / "third", faces, epochs=1, model=other), alone)
    probe = LinearProbeConfig(towers=TowersConfig(arch="tiny-conv-64"), start=start)
    optim = SgdConfig(groups={"head": GroupConfig(lr=0.01)})
    with pytest.raises(CheckpointError, match=r"towers of tiny-conv-64, got cnn, which has none\. Begin from a run or"):
        train(config(tmp_path / "fourth", faces, epochs=1, model=probe, optim=optim), alone)


def test_it_names_no_file_and_reads_no_features() -> None:
    plain = CnnConfig()
    assert files(plain) == {} and source(plain) == "random weights"
    assert files(CnnConfig(start="runs/a")) == {"start": "runs/a"}
    with pytest.raises(ConfigProblem, match=r"expected a method with a frozen image tower.* got model\.name=cnn"):
        still = type(DataConfig(shards="s").augment)(crop=False, flip=0.0)
        data = DataConfig(shards="s", size=44, features="f", train_frames="middle", augment=still)
        config(Path("run"), Path("s"), epochs=1, data=data)
