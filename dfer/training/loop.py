"""The training loop. It receives built objects and knows no method, data set or configuration file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NoReturn, Protocol

from dfer.choices import Selection
from dfer.config import ConfigProblem, from_plain
from dfer.distributed import gather_objects, highest, on_first
from dfer.errors import CheckpointError, DataError, StoppedError, message
from dfer.interruption import Stop
from dfer.recognition import BadClip, Batch, Progress
from dfer.run.checkpoints import BEST, Checkpoint, Checkpoints
from dfer.training.config import ScheduleConfig
from dfer.training.engine import Engine
from dfer.training.log import RunLog
from dfer.training.state import LAYOUT, TrainingState, refuse_other_layout

Split = Literal["validation", "test"]

_GO_ON, _SAVE, _STOP, _FAIL = range(4)
"""What a rank can want between two steps; the largest counts."""


class Loader(Protocol):
    """What the loop needs of a loader: this rank's micro-batches, in an order that depends on the epoch alone."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def wait_seconds(self) -> float: ...

    @property
    def max_bad(self) -> int: ...

    def take_bad(self) -> list[BadClip]: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far. protocol: on which data it was chosen; step: updates done at that time."""

    protocol: Selection
    metric: str
    value: float
    step: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to evaluate, and what chooses the best checkpoint.

    run: metrics of the current weights, the same on every rank, over the data `select` names, with a call of what it is
    given after every batch; metric: which of them is compared (larger is better, the first of equals stays); split: on
    which clips, for the record."""

    run: Callable[[Callable[[], None]], dict[str, float]]
    every_epochs: int = 1
    select: Selection = "last"
    metric: str = "war"
    split: Split = "test"


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
        CheckpointError: names, shapes or position that do not fit this model and data; another layout where the
            method fixes it.
    """
    if checkpoint is None:
        return TrainingState(), None
    check_layout(engine, checkpoint)
    position = checkpoint.state.get("training")
    state = TrainingState.from_json(position, where=checkpoint.folder, steps_per_epoch=steps_per_epoch)
    engine.load_weights(checkpoint.weights())
    engine.load_optimizer_state(checkpoint.optimizer())
    best = checkpoint.state.get(BEST)
    try:
        return state, from_plain(Best, best) if best else None
    except ConfigProblem as problem:
        raise CheckpointError(f"{checkpoint.folder}: no best checkpoint in its state ({problem}).") from problem


def check_layout(engine: Engine, checkpoint: Checkpoint | None) -> None:
    """Raise CheckpointError when the steps before a checkpoint were cut otherwise, and the method does not allow it."""
    if checkpoint is not None:
        coupling = engine.task.learner.coupling
        refuse_other_layout(coupling, engine.layout, checkpoint.state, where=checkpoint.folder)


def train(
    engine: Engine,
    *,
    loader: Loader,
    prepare: Callable[[Batch, int], Batch],
    schedule: ScheduleConfig,
    log: RunLog,
    checkpoints: Checkpoints,
    epochs: int,
    evaluation: Evaluation | None = None,
    start: TrainingState | None = None,
    best: Best | None = None,
    extra_state: dict[str, Any] | None = None,
    stop: Stop | None = None,
    record_clips: bool = False,
) -> Summary:
    """Train from `start` to the end of `epochs`; all ranks call it.

    prepare: moves a micro-batch of an epoch to the device and augments it; extra_state: more for state.json;
    stop: looked at between two steps and between two batches of an evaluation, on all ranks together;
    record_clips: write which clips made up each step.

    Raises:
        NonFiniteLossError, StorageError: on all ranks; the last checkpoint stands.
        DataError: on all ranks; more clips had to be replaced than is allowed.
        FencedError: on all ranks; a newer copy has taken the run folder over.
        StoppedError: on all ranks; a stop was asked for, and everything up to here is saved.
    """
    training = _Training(
        engine=engine, loader=loader, prepare=prepare, schedule=schedule, log=log, checkpoints=checkpoints,
        epochs=epochs, evaluation=evaluation, extra_state=extra_state or {}, stop=stop or Stop(),
        record_clips=record_clips,
    )  # fmt: skip
    training.state, training.best = start or TrainingState(), best
    try:
        return training.run()
    finally:
        checkpoints.settle()  # what was being saved when an error came is worth having


class _StopWantedError(Exception):
    """Leads out of an evaluation."""


@dataclass(kw_only=True)
class _Training:
    """A run in progress: what `train` was given, and where it stands."""

    engine: Engine
    loader: Loader
    prepare: Callable[[Batch, int], Batch]
    schedule: ScheduleConfig
    log: RunLog
    checkpoints: Checkpoints
    epochs: int
    evaluation: Evaluation | None
    extra_state: dict[str, Any]
    stop: Stop
    record_clips: bool
    state: TrainingState = field(default_factory=TrainingState)
    best: Best | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.loader.steps_per_epoch

    def run(self) -> Summary:
        """To the end of the last epoch."""
        if self._vote() == _STOP:
            self._stopped()
        if self.state.evaluate and self.evaluation:  # not where eval_every was taken away
            self._evaluate()
            self._save()
        self.state = replace(self.state, evaluate=False)
        while self.state.global_step < self.total:
            self._epoch()
        self.checkpoints.finish()
        return Summary(step=self.state.global_step, epochs=self.state.epoch, metrics=self.metrics, best=self.best)

    def _epoch(self) -> None:
        epoch = self.state.epoch
        batches = self.loader.epoch(epoch, self.state.step)
        while self.state.epoch == epoch:
            self._step([self.prepare(batch, epoch) for batch in islice(batches, self.engine.accumulation)])
            self._after_step(epoch)

    def _step(self, micro_batches: list[Batch]) -> None:
        per_epoch, step, epoch = self.loader.steps_per_epoch, self.state.global_step, self.state.epoch
        factor = self.schedule.factor(step, steps_per_epoch=per_epoch, total_steps=self.total)
        progress = Progress(epoch=epoch, step=step, fraction=step / self.total)
        report = self.engine.step(micro_batches, progress=progress, lr_factor=factor)
        self.state = self.state.after_step(steps_per_epoch=per_epoch)
        self.log.train(
            report, step=self.state.global_step, epoch=epoch, wait_seconds=self.loader.wait_seconds
        )  # fmt: skip
        if self.record_clips:
            mine = [index for batch in micro_batches for index in batch.index.tolist()]
            ids = [index for rank in gather_objects(mine) for index in rank]
            self.log.clips(ids, step=self.state.global_step, epoch=epoch)

    def _after_step(self, epoch: int) -> None:
        """Evaluate and save where it is time to, and heed what any rank wants."""
        done = self.state.epoch if self.state.epoch > epoch else None
        every = self.evaluation.every_epochs if self.evaluation else 0
        if every and done and (done % every == 0 or done == self.epochs):
            self.state = replace(self.state, evaluate=True)
        wanted = self._vote(self.loader.take_bad())
        if wanted == _STOP:
            self._save_and_stop()
        is_best = self._evaluate() if self.state.evaluate else False
        due = self.checkpoints.due(self.state.global_step, epochs_done=done)
        if is_best or due or wanted == _SAVE or self.state.global_step == self.total:
            self._save()

    def _evaluate(self) -> bool:
        """Whether the current weights are the best so far."""
        evaluation = self.evaluation
        assert evaluation is not None, "only asked for where there is one"
        try:
            self.metrics = evaluation.run(self._between)
        except _StopWantedError:
            self._save_and_stop()
        step, epoch = self.state.global_step, self.state.epoch
        self.log.eval(self.metrics, split=evaluation.split, step=step, epoch=epoch)
        better = _better(self.best, self.metrics, evaluation, step=step, epoch=epoch)
        self.state, self.best = replace(self.state, evaluate=False), better or self.best
        return better is not None

    def _between(self) -> None:
        if self._vote() == _STOP:
            raise _StopWantedError

    def _vote(self, bad: Sequence[BadClip] = ()) -> int:
        """What the ranks want most: to go on, save, stop; raises the first rank's failure on all of them.

        bad: clips that this rank had to replace; any rank's are recorded.
        """
        mine = _STOP if self.stop.requested else _SAVE if self.checkpoints.overdue else _GO_ON
        if self.checkpoints.failed or self.log.problem is not None:
            mine = _FAIL
        wanted, replaced = highest([mine, len(bad)])
        if replaced:
            self._note_bad([clip for rank in gather_objects(list(bad)) for clip in rank])
        if wanted == _FAIL:
            on_first(self._raise_failure, self.engine.world)
        return wanted

    def _note_bad(self, found: list[BadClip]) -> None:
        """Record replaced clips; raises DataError on all ranks when there are more of them than allowed."""
        for clip in found:
            self.log.bad_clip(asdict(clip), step=self.state.global_step)
        bad = tuple(sorted({*self.state.bad_clips, *(clip.key for clip in found)}))
        self.state = replace(self.state, bad_clips=bad)
        if len(bad) > self.loader.max_bad:
            got = f"{len(bad)} ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}; the last: {found[-1].cause})"
            expected = f"at most {self.loader.max_bad} bad clips, as data.max_bad_share allows"
            do = "metrics.jsonl lists them; mend the shards, or allow more."
            raise DataError(message("training clips", expected=expected, got=got, do=do))

    def _raise_failure(self) -> None:
        if self.log.problem is not None:
            raise self.log.problem
        self.checkpoints.raise_failure()

    def _save(self) -> None:
        best = asdict(self.best) if self.best else None
        self.checkpoints.save(
            self.state.global_step, weights=self.engine.weights(), optimizer=self.engine.optimizer_state(),
            state={
                **self.extra_state, "training": self.state.to_json(), BEST: best, LAYOUT: asdict(self.engine.layout),
            },
            before=self.log.sync,
        )  # fmt: skip

    def _save_and_stop(self) -> NoReturn:
        self._save()
        self._stopped()

    def _stopped(self) -> NoReturn:
        self.checkpoints.finish()
        raise stopped(self.stop, at=f"step {self.state.global_step} of {self.total}")


def stopped(stop: Stop, *, at: str) -> StoppedError:
    """The error that ends a process in which a stop was asked for, the same on all ranks, which all call it."""
    reason = next((reason for reason in gather_objects(stop.reason) if reason), "a wish to stop")
    do = "All is saved; the same command continues."
    return StoppedError(message(at, expected="to go on", got=reason, do=do))


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
