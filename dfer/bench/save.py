"""Measure what a background save costs training: steps during which a checkpoint is written, against usual steps."""

import statistics
import tempfile
import time
from contextlib import closing
from typing import Any

from dfer.bench.step import RATES, clips_of_noise
from dfer.config import ConfigProblem
from dfer.distributed import World, process_group
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import DferClipConfig, TowersConfig
from dfer.models.dfer_clip import DferClip
from dfer.recognition import Progress
from dfer.run.checkpoints import Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.storage import Folder
from dfer.training.build import build_engine
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from dfer.training.engine import Engine


def bench_save(
    *, arch: str = "ViT-B-32-quickgelu", clips: int = 2, frames: int = 16, saves: int = 5, out: str | None = None
) -> dict[str, Any]:
    """Time usual steps, steps that start a save, and the steps after them, in turn.

    A step that starts a save includes the copy out of device memory; hashing and writing continue during the next
    steps. out: folder or URL to save to, by default a temporary folder.

    Returns:
        `usual`, `saving`, `after`: seconds of the steps; `written`: seconds until each checkpoint was committed;
        `ratio`: the slower of saving and after, divided by usual, by their medians; `bytes` of a checkpoint.
    """
    if min(clips, frames, saves) < 1:
        raise ConfigProblem("bench save: clips, frames and saves are at least 1.")
    model = build(DferClipConfig(towers=TowersConfig(arch=arch)), label_set("basic7"), num_frames=frames, seed=0)
    assert isinstance(model, DferClip)
    rates = {name: GroupConfig(lr=rate) for name, rate in RATES.items()}
    world = World()
    with process_group(world), tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        engine = build_engine(
            EngineConfig(name="ddp"),
            model,
            optim=SgdConfig(groups=rates),
            world=world,
            global_batch=clips,
            micro_batch=clips,
            seed=1,
        )
        with closing(engine):
            checkpoints = Checkpoints(Folder(out or folder), world=world, config=CheckpointConfig(keep_last=1))
            checkpoints.start(checkpoints.latest())
            batch = clips_of_noise(clips, frames, model.image_size, world.device)
            found = _times(engine, checkpoints, batch, saves)
        newest = checkpoints.latest()
        size = sum(newest.folder.size(name) or 0 for name in newest.folder.children()) if newest else 0
    usual, saving, after = (statistics.median(found[kind]) for kind in ("usual", "saving", "after"))
    print(
        f"{arch}, {clips} clips: usual step {usual:.2f} s, with a save {saving:.2f} s, after it {after:.2f} s "
        f"({max(saving, after) / usual:.2f} times); {size / 2**20:.0f} MiB stood after "
        f"{statistics.median(found['written']):.2f} s"
    )
    return {**found, "ratio": max(saving, after) / usual, "bytes": size}


def _times(engine: Engine, checkpoints: Checkpoints, batch: Any, saves: int) -> dict[str, list[float]]:
    def step() -> None:
        engine.step([batch], progress=Progress(epoch=0, step=0, fraction=0.0))

    found: dict[str, list[float]] = {"usual": [], "saving": [], "after": [], "written": []}
    step()
    for number in range(1, saves + 1):
        found["usual"] += [_seconds(step)]
        began = time.perf_counter()
        step()
        checkpoints.save(number, weights=engine.weights(), optimizer=engine.optimizer_state(), state={})
        found["saving"] += [time.perf_counter() - began]
        saved_at = time.perf_counter()
        found["after"] += [_seconds(step)]
        checkpoints.finish()
        found["written"] += [time.perf_counter() - saved_at]
        found["usual"] += [_seconds(step)]
    return found


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
