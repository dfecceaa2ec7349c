"""One rank of tests/integration/test_contracts.py: learners that are not a mean over independent clips.

Usage: torchrun contract_worker.py CASE OUT. The first rank writes what it measured to OUT as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfer.distributed import World, from_environment, gather_objects, gather_rows, process_group
from dfer.models.config import ProjectionConfig
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.recognition import FeatureBatch, Group, Learner, Progress
from dfer.training.build import build_engine
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from dfer.training.engine import Engine

BATCH, STEPS = 12, 6
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
        engine.step(
            pairs(step, world, micro_batch), progress=Progress(epoch=0, step=step, fraction=0.0), lr_factor=1.0
        ).loss
        for step in steps
    ]


def case_projection(name: str, world: World) -> dict[str, Any]:
    torch.manual_seed(1)
    learner = ProjectionHead(ProjectionConfig(temperature=0.1), student=8, teacher=16, gather=gather_rows)
    share = BATCH // world.size
    engine = engine_of(learner, name, world, share)
    losses = run(engine, world, range(STEPS), share)
    return {"losses": losses, "weight": engine.weights().get("mlp.weight", torch.zeros(0)).flatten().tolist()}


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


CASES = {"projection": case_projection, "noise": case_noise}

if __name__ == "__main__":
    torch.set_num_threads(1)
    this = from_environment()
    with process_group(this, timeout_s=120):
        found = {name: CASES[sys.argv[1]](name, this) for name in ENGINES}
    if this.is_first:
        Path(sys.argv[2]).write_text(json.dumps(found))
