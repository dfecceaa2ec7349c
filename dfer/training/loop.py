"""The training loop. It receives built objects and knows no method, data set or configuration file."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, Protocol

from dfer.checkpoint import BEST, Checkpoint, Checkpoints
from dfer.config import from_plain
from dfer.recognition import ClipBatch, Progress
from dfer.training.engine import Engine
from dfer.training.log import RunLog
from dfer.training.optim import ScheduleConfig
from dfer.training.state import TrainingState

Select = Literal["last", "best_on_val", "best_on_test"]


class Loader(Protocol):
    """What the loop needs of a loader: this rank's micro-batches, in an order that depends on the epoch alone."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def wait_seconds(self) -> float: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]: ...


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far. protocol: on which data it was chosen; step: updates done at that time."""

    protocol: Select
    metric: str
    value: float
    step: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to evaluate, and what chooses the best checkpoint.

    run: metrics of the current weights, the same on every rank, over the data `select` names; metric: which of them
    is compared (larger is better, the first of equals stays)."""

    run: Callable[[], dict[str, float]]
    every_epochs: int = 1
    select: Select = "last"
    metric: str = "war"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended. metrics: of the last evaluation; step: of the final checkpoint."""

    step: int
    epochs: int
    metrics: dict[str, float]
    best: Best | None


def resume(engine: Engine, checkpoint: Checkpoint | None, *, steps_per_epoch: int) -> tuple[TrainingState, Best | None]:
    """Take over a checkpoint's weights, optimizer state and position; the start when there is none.

    Raises:
        CheckpointError: names, shapes or position that do not fit this model and data.
    """
    if checkpoint is None:
        return TrainingState(), None
    position = checkpoint.state.get("training")
    state = TrainingState.from_json(position, where=checkpoint.folder, steps_per_epoch=steps_per_epoch)
    engine.load_weights(checkpoint.weights())
    engine.load_optimizer_state(checkpoint.optimizer())
    best = checkpoint.state.get(BEST)
    return state, from_plain(Best, best) if best else None


def train(
    engine: Engine,
    *,
    loader: Loader,
    prepare: Callable[[ClipBatch, int], ClipBatch],
    schedule: ScheduleConfig,
    log: RunLog,
    checkpoints: Checkpoints,
    epochs: int,
    evaluation: Evaluation | None = None,
    start: TrainingState | None = None,
    best: Best | None = None,
    extra_state: dict[str, Any] | None = None,
) -> Summary:
    """Train from `start` to the end of `epochs`; all ranks call it.

    prepare: moves a micro-batch of an epoch to the device and augments it; extra_state: more for state.json.

    Raises:
        NonFiniteLossError, StorageError: on all ranks; the last checkpoint stands.
    """
    state, per_epoch = start or TrainingState(), loader.steps_per_epoch
    total, metrics = epochs * per_epoch, dict[str, float]()
    while state.global_step < total:
        epoch, batches = state.epoch, loader.epoch(state.epoch, state.step)
        while state.epoch == epoch:
            micro_batches = [prepare(batch, epoch) for batch in islice(batches, engine.accumulation)]
            step = state.global_step
            factor = schedule.factor(step, steps_per_epoch=per_epoch, total_steps=total)
            progress = Progress(epoch=epoch, step=step, fraction=step / total)
            report = engine.step(micro_batches, progress=progress, lr_factor=factor)
            state = state.after_step(steps_per_epoch=per_epoch)
            log.train(report, step=state.global_step, epoch=epoch, wait_seconds=loader.wait_seconds)
            epochs_done = state.epoch if state.epoch > epoch else None
            is_best = False
            if evaluation and epochs_done and (epochs_done % evaluation.every_epochs == 0 or epochs_done == epochs):
                metrics = evaluation.run()
                log.eval(metrics, step=state.global_step, epoch=epochs_done)
                better = _better(best, metrics, evaluation, step=state.global_step, epoch=epochs_done)
                best, is_best = better or best, better is not None
            if is_best or state.global_step == total or checkpoints.due(state.global_step, epochs_done=epochs_done):
                _save(checkpoints, engine, state, best, extra_state)
    return Summary(step=state.global_step, epochs=state.epoch, metrics=metrics, best=best)


def _better(
    best: Best | None, metrics: dict[str, float], evaluation: Evaluation, *, step: int, epoch: int
) -> Best | None:
    """The new best when `metrics` beat it under a selecting protocol."""
    if evaluation.select == "last":
        return None
    value = metrics[evaluation.metric]
    if best is not None and value <= best.value:
        return None
    return Best(protocol=evaluation.select, metric=evaluation.metric, value=value, step=step, epoch=epoch)


def _save(
    checkpoints: Checkpoints, engine: Engine, state: TrainingState, best: Best | None, extra: dict[str, Any] | None
) -> None:
    plain = {**(extra or {}), "training": state.to_json(), BEST: asdict(best) if best else None}
    checkpoints.save(state.global_step, weights=engine.weights(), optimizer=engine.optimizer_state(), state=plain)
