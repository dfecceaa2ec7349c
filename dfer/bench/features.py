"""What stored features save: an epoch that computes them beside an epoch of a new process that only reads them."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dfer.data.config import AugmentConfig, DataConfig
from dfer.distributed import World, process_group
from dfer.jobs.config import RunConfig
from dfer.jobs.features import with_features
from dfer.jobs.fold_data import open_fold, train_loader
from dfer.jobs.initial import initial_model
from dfer.models.config import LinearProbeConfig, TowersConfig
from dfer.models.towers import Towers
from dfer.recognition import Progress
from dfer.training.build import build_engine
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Seconds of an epoch of training. features: until they were there; model: until it was built; steps: of them all.
    loss: of the last step."""

    features: float
    model: float
    steps: float
    loss: float

    @property
    def seconds(self) -> float:
        """From the shards to the last update."""
        return self.features + self.model + self.steps


def bench_features(
    shards: str, *, arch: str = "ViT-B-32-quickgelu", batch: int = 16, workers: int = 2
) -> dict[str, Any]:
    """Train a linear probe for an epoch that computes the features, remove the tower's weights, and train for an epoch
    in a new process. The weights are random ones, in a file. batch: clips of a step.
    workers: decoding processes.

    Returns:
        `computing`, `reading`: the two epochs; `ratio` of their seconds.
    """
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        file = Path(folder, "clip.safetensors")
        size = _write_weights(file, arch)
        config = _config(shards, folder, arch=arch, size=size, batch=batch, workers=workers)
        computing = _in_a_process(config)
        file.unlink()
        reading = _in_a_process(config)
    assert computing.loss == reading.loss, "the same step on the same features"
    ratio = computing.seconds / reading.seconds
    print(
        f"{arch}, {shards}: an epoch that computes the features {computing.seconds:.2f} s (features "
        f"{computing.features:.2f}), an epoch that reads them {reading.seconds:.3f} s (features "
        f"{reading.features:.3f}, model {reading.model:.3f}, steps {reading.steps:.3f}); {ratio:.0f} times faster"
    )
    return {"computing": asdict(computing), "reading": asdict(reading), "ratio": ratio}


def _write_weights(path: Path, arch: str) -> int:
    """Random weights in the names of open_clip; the pixels of a side of the tower's pictures."""
    towers = Towers(TowersConfig(arch=arch))
    named = {f"visual.{name}": value for name, value in towers.visual.state_dict().items()}
    named |= towers.text.state_dict()
    save_file({name: value.clone().contiguous() for name, value in named.items()}, path)
    return towers.image_size


def _config(shards: str, folder: str, *, arch: str, size: int, batch: int, workers: int) -> RunConfig:
    data = DataConfig(
        shards=shards,
        size=size,
        workers=workers,
        augment=AugmentConfig(crop=False, flip=0.0),
        train_frames="middle",
        features=f"{folder}/features",
    )
    return RunConfig(
        run=f"{folder}/run",
        epochs=1,
        batch=batch,
        data=data,
        model=LinearProbeConfig(towers=TowersConfig(arch=arch, pretrained=f"{folder}/clip.safetensors")),
        optim=SgdConfig(groups={"head": GroupConfig(lr=0.01)}),
        engine=EngineConfig(name="ddp"),
    )


def _in_a_process(config: RunConfig) -> Epoch:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_epoch, config).result()


def _epoch(config: RunConfig) -> Epoch:
    """Train for one epoch, without checkpoints and evaluation, which are the same in both."""
    world = World()
    with process_group(world):
        began = time.perf_counter()
        clips = with_features(config, open_fold(config), world, begun=None)
        there = time.perf_counter()
        loader = train_loader(config, clips, world)
        model = initial_model(config, clips, world).model
        engine = build_engine(
            config.engine,
            model,
            optim=config.optim,
            world=world,
            global_batch=config.batch,
            micro_batch=config.batch,
            seed=config.seed,
        )
        with closing(engine):
            built, batches, loss = time.perf_counter(), loader.epoch(0), 0.0
            for step in range(loader.steps_per_epoch):
                mine = [batch.to(world.device) for batch in islice(batches, engine.accumulation)]
                loss = engine.step(mine, progress=Progress(epoch=0, step=step, fraction=0.0)).loss
            ended = time.perf_counter()
    return Epoch(features=there - began, model=built - there, steps=ended - built, loss=loss)
