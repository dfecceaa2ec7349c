"""One rank of tests/integration/test_methods.py: trains every method under every engine and writes its weights.

Usage, in every rank: method_worker.py OWN_FOLDER OTHER_FOLDER METHOD:ENGINE ...
Checkpoints go to OWN_FOLDER; of another world size are read from OTHER_FOLDER, if it has any. Results are the
weights after the last step, by case.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.distributed import World, barrier, from_environment, process_group
from dfer.errors import CheckpointError
from dfer.recognition import Progress
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.storage import Folder
from dfer.training.build import build_engine
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from dfer.training.engine import Engine
from dfer.training.loop import check_layout
from dfer.training.state import LAYOUT
from tests.methods import BATCH, METHODS, Method, share

STEPS, SAVED_AT, EPOCHS = 3, 2, 50
LOW = (range(1), range(STEPS - 1, STEPS))
"""Steps in bf16, before and after a stop: the first and the last."""
ENGINES = {"ddp": EngineConfig(name="ddp")} | {
    f"zero{stage}": EngineConfig(zero=stage)
    for stage in (0, 1, 2, 3)  # type: ignore[arg-type]
}


def engine_for(method: Method, name: str, world: World, precision: str = "fp32") -> Engine:
    learner = method.build()
    groups = {group: GroupConfig(lr=method.lr) for group in learner.param_groups()}
    config = EngineConfig(**{**vars(ENGINES[name]), "precision": precision})
    return build_engine(
        config,
        learner,
        optim=SgdConfig(groups=groups),
        world=world,
        global_batch=BATCH,
        micro_batch=method.micro_batch(world.size),
        seed=1,
    )


def train(engine: Engine, method: Method, world: World, steps: range) -> list[float]:
    """The loss of every step."""
    losses = []
    for number in steps:
        # The last step is near the end of training: no parameter may have lost its gradient by then.
        epoch = EPOCHS - 1 if number == STEPS - 1 else number * 10
        cut = share(method.batch(number), world=world, micro_batch=method.micro_batch(world.size))
        report = engine.step(cut, progress=Progress(epoch=epoch, step=number, fraction=epoch / EPOCHS))
        losses.append(report.loss)
    return losses


def save(engine: Engine, folder: Path, world: World) -> None:
    store = Checkpoints(Folder(folder), world=world)
    store.start(None)
    state = {LAYOUT: asdict(engine.layout)}
    store.save(SAVED_AT, weights=engine.weights(), optimizer=engine.optimizer_state(), state=state)
    store.finish()


def resume(
    method: Method,
    name: str,
    world: World,
    checkpoint: Checkpoint,
    precision: str = "fp32",
    steps: range = range(SAVED_AT, STEPS),
) -> dict[str, Tensor] | str:
    """The weights after the last step, continued from a checkpoint; the message if that is refused."""
    engine = engine_for(method, name, world, precision)
    try:
        check_layout(engine, checkpoint)
    except CheckpointError as error:
        return str(error)
    engine.load_weights(checkpoint.weights())
    engine.load_optimizer_state(checkpoint.optimizer())
    train(engine, method, world, steps)
    return engine.weights()


def low_cases(method: Method, name: str, world: World, folder: Path) -> Iterator[tuple[str, dict[str, Tensor] | str]]:
    """Losses and weights of a run in bf16, and the weights of one that was stopped after the first step."""
    engine = engine_for(method, name, world, "bf16")
    losses = train(engine, method, world, LOW[0])
    save(engine, folder, world)
    losses += train(engine, method, world, LOW[1])
    yield "bf16 losses", {"losses": torch.tensor(losses)}
    yield "bf16", engine.weights()
    found = Checkpoints(Folder(folder), world=world).latest()
    assert found is not None
    yield "bf16 resumed", resume(method, name, world, found, "bf16", LOW[1])


def cases(method_name: str, name: str, world: World, own: Path, other: Path) -> Iterator[tuple[str, Any]]:
    method = METHODS[method_name]
    moved = Checkpoints(Folder(other / f"{method_name}_{name}"), world=world).latest()
    if moved is not None:
        yield f"{method_name} {name} moved", resume(method, name, world, moved)
    if (own / f"{method_name}_{name}").exists():
        return  # the other cases ran before, when the other world size had saved nothing yet
    barrier()  # no rank may save before all have looked
    engine = engine_for(method, name, world)
    losses = train(engine, method, world, range(SAVED_AT))
    yield f"{method_name} {name} losses", {"losses": torch.tensor(losses)}
    save(engine, own / f"{method_name}_{name}", world)
    train(engine, method, world, range(SAVED_AT, STEPS))
    yield f"{method_name} {name}", engine.weights()
    found = Checkpoints(Folder(own / f"{method_name}_{name}"), world=world).latest()
    assert found is not None
    yield f"{method_name} {name} resumed", resume(method, name, world, found)
    for case, value in low_cases(method, name, world, own / f"{method_name}_{name}_bf16"):
        yield f"{method_name} {name} {case}", value


def run(world: World, own: Path, other: Path, wanted: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in wanted:
        name, _, engine = word.partition(":")
        try:
            found |= dict(cases(name, engine, world, own, other))
        except Exception:
            print(word, traceback.format_exc(), flush=True)  # the other ranks would wait for this one
            raise
    barrier()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    this = from_environment()
    with process_group(this, timeout_s=120):
        results = run(this, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    if this.is_first:
        words = {case: value for case, value in results.items() if isinstance(value, str)}
        tensors = {case: value for case, value in results.items() if not isinstance(value, str)}
        torch.save(tensors, Path(sys.argv[1]) / "weights.pt")
        (Path(sys.argv[1]) / "refused.json").write_text(json.dumps(words))
