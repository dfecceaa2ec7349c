"""One rank of tests/integration/test_contracts.py: learners that are not a mean over independent clips.

Usage, in every rank: contract_worker.py CASE OUT. The first rank writes what it measured to OUT as JSON.
       contract_worker.py train-LEARNER RUN: a training that continues what stands in RUN, for tests that kill it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfer.data.features import FeatureLoader, FeatureSet
from dfer.data.plan import Plan
from dfer.distributed import World, from_environment, gather_objects, gather_rows, process_group
from dfer.emotions import label_set
from dfer.errors import DferError
from dfer.models.build import build
from dfer.models.config import ContrastiveConfig, ProjectionConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.models.prompts import layout
from dfer.recognition import Batch, ClipBatch, FeatureBatch, Group, Learner, Progress
from dfer.run.checkpoints import Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.storage import Folder
from dfer.training import loop
from dfer.training.build import build_engine
from dfer.training.config import ConstantScheduleConfig, EngineConfig, GroupConfig, SgdConfig
from dfer.training.engine import Engine
from dfer.training.log import RunLog

BATCH, STEPS, EPOCHS = 12, 6, 10
ENGINES = {"ddp": EngineConfig(name="ddp"), "zero1": EngineConfig(zero=1)}
OPTIM = SgdConfig(groups={"head": GroupConfig(lr=0.5)})


def pairs(step: int, world: World, micro_batch: int) -> list[FeatureBatch]:
    """This rank's share of a step's pairs, in micro-batches."""
    draw = torch.Generator().manual_seed(step)
    student, teacher = torch.randn(BATCH, 8, generator=draw), torch.randn(BATCH, 16, generator=draw)
    size = BATCH // world.size
    starts = range(world.rank * size, (world.rank + 1) * size, micro_batch)
    return [
        FeatureBatch(
            index=torch.arange(at, at + micro_batch),
            features={STUDENT: student[at : at + micro_batch], TEACHER: teacher[at : at + micro_batch]},
        )
        for at in starts
    ]


class Noisy(Learner):
    """A linear layer behind batch norm and dropout; `masks` keeps what the dropout let through."""

    coupling = "micro_batch"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.masks: list[list[bool]] = []

    def forward(self, batch: FeatureBatch) -> Tensor:
        kept = self.dropout(torch.ones_like(batch.features[STUDENT]))
        self.masks.append((kept > 0).flatten().tolist())
        out: Tensor = self.head(self.norm(batch.features[STUDENT]) * kept)
        return out

    def loss(self, out: Tensor, batch: FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        return {"square": out.square().mean()}

    def param_groups(self) -> dict[str, Group]:
        return {"head": Group(params=list(self.parameters()))}


def engine_of(learner: Learner, name: str, world: World, micro_batch: int) -> Engine:
    return build_engine(
        ENGINES[name], learner, optim=OPTIM, world=world, global_batch=BATCH, micro_batch=micro_batch, seed=5
    )


def run(engine: Engine, world: World, steps: range, micro_batch: int) -> list[float]:
    return [
        engine.step(pairs(step, world, micro_batch), progress=Progress(epoch=0, step=step, fraction=0.0)).loss
        for step in steps
    ]


def case_projection(name: str, world: World) -> dict[str, Any]:
    torch.manual_seed(1)
    learner = ProjectionHead(ProjectionConfig(temperature=0.1), student=8, teacher=16, gather=gather_rows)
    share = BATCH // world.size
    engine = engine_of(learner, name, world, share)
    losses = run(engine, world, range(STEPS), share)
    weight = engine.weights().get("mlp.weight", torch.zeros(0)).flatten().tolist()
    return {"losses": losses, "weight": weight, "captions": captions_losses(name, world)}


def captions_losses(name: str, world: World) -> list[float]:
    """The losses of a small CLIP on clips and captions, some of which are equal."""
    rates = {key: GroupConfig(lr=0.01) for key in ("image", "text", "scale")}
    model = build(
        ContrastiveConfig(towers=TowersConfig(arch="tiny-conv-64")),
        label_set("basic7"),
        num_frames=1,
        seed=1,
        gather=gather_rows,
    )
    share = BATCH // world.size
    optim = SgdConfig(groups=rates)
    engine = build_engine(ENGINES[name], model, optim=optim, world=world, global_batch=BATCH, micro_batch=share, seed=5)
    draw, mine = torch.Generator().manual_seed(7), slice(world.rank * share, (world.rank + 1) * share)
    frames = torch.randint(0, 256, (BATCH, 1, 3, 64, 64), generator=draw, dtype=torch.uint8)[mine]
    words = ["anger", "fear", "joy", "joy", "calm", "awe", "fear", "hope", "envy", "calm", "joy", "pride"]
    text = layout(words, num_contexts=0, position="end", context_length=77).tokens[mine]
    batch = ClipBatch(frames=frames, index=torch.arange(BATCH)[mine], text=text)
    progress = Progress(epoch=0, step=0, fraction=0.0)
    return [engine.step([batch], progress=progress).loss for _ in range(4)]


def case_noise(name: str, world: World) -> dict[str, Any]:
    """Straight on, and stopped after two steps: the same bits. Masks and buffers of all ranks."""
    straight = Noisy()
    first = engine_of(straight, name, world, 2)
    losses = run(first, world, range(4), 2)
    begun = engine_of(Noisy(), name, world, 2)
    run(begun, world, range(2), 2)
    weights, state = gather_objects((begun.weights(), begun.optimizer_state()))[0]
    torch.manual_seed(99 + world.rank)  # another process has another generator
    resumed = engine_of(Noisy(), name, world, 2)
    resumed.load_weights(weights)
    resumed.load_optimizer_state(state)
    again = run(resumed, world, range(2, 4), 2)
    same = all(torch.equal(value, resumed.weights()[key]) for key, value in first.weights().items())
    masks = [tuple(mask) for rank in gather_objects(straight.masks) for mask in rank]
    buffers = gather_objects([b.tolist() for b in straight.buffers()])
    return {
        "losses": [losses[2:], again],
        "same": same,
        "masks": [len(masks), len(set(masks))],
        "buffers": all(b == buffers[0] for b in buffers),
        "moved": buffers[0][0] != [0.0] * 8,
    }


def learner_of(name: str) -> Learner:
    torch.manual_seed(1)
    if name == "noisy":
        return Noisy()
    return ProjectionHead(ProjectionConfig(temperature=0.1), student=8, teacher=16, gather=gather_rows)


def train_in(run_folder: Path, name: str, world: World) -> None:
    """Train on features of 36 clips, three steps an epoch, a checkpoint a step, as `dfer.jobs.train` does it."""
    draw = torch.Generator().manual_seed(2)
    made = {STUDENT: torch.randn(36, 8, generator=draw), TEACHER: torch.randn(36, 16, generator=draw)}
    rows = FeatureSet(features=made, keys=[str(row) for row in range(36)])
    micro_batch = 2 if name == "noisy" else BATCH // world.size
    plan = Plan(
        shard_of=np.zeros(36, np.int64), world=world, seed=3, train=True, global_batch=BATCH, micro_batch=micro_batch
    )
    loader = FeatureLoader(rows, plan)
    engine = engine_of(learner_of(name), "ddp", world, micro_batch)
    home = Folder(run_folder)
    checkpoints = Checkpoints(home, world=world, config=CheckpointConfig(every_steps=1, keep_last=2))
    start, best = loop.resume(engine, checkpoints.start(checkpoints.latest()), steps_per_epoch=loader.steps_per_epoch)
    total = EPOCHS * loader.steps_per_epoch

    def prepare(batch: Batch, epoch: int) -> Batch:
        time.sleep(0.01)  # a run that can be killed in its midst
        return batch

    with RunLog(home, world=world, total_steps=total, start_step=start.global_step, check=checkpoints.may_write) as log:
        loop.train(
            engine,
            loader=loader,
            prepare=prepare,
            schedule=ConstantScheduleConfig(),
            log=log,
            checkpoints=checkpoints,
            epochs=EPOCHS,
            start=start,
            best=best,
        )


CASES = {"projection": case_projection, "noise": case_noise}

if __name__ == "__main__":
    torch.set_num_threads(1)
    this = from_environment()
    if sys.argv[1].startswith("train-"):
        try:
            with process_group(this, timeout_s=120):
                train_in(Path(sys.argv[2]), sys.argv[1].removeprefix("train-"), this)
        except DferError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        sys.exit(0)
    with process_group(this, timeout_s=120):
        found = {name: CASES[sys.argv[1]](name, this) for name in ENGINES}
    if this.is_first:
        Path(sys.argv[2]).write_text(json.dumps(found))
