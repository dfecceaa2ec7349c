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
from dfer.run.checkpoints import AVERAGE, BEST, Checkpoint, Checkpoints
from dfer.training.config import EarlyStopConfig, ScheduleConfig
from dfer.training.engine import Engine
from dfer.training.log import RunLog
from dfer.training.state import LAYOUT, TrainingState, refuse_other_layout

Split = Literal["validation", "test", "train"]

_GO_ON, _SAVE, _STOP, _FAIL = range(4)
"""Actions that a rank can propose between two steps; the largest proposal of all ranks is taken."""


class Loader(Protocol):
    """The interface of a loader for the loop: this rank's micro-batches, in an order that depends only on the epoch."""

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
    """The best evaluation so far. protocol: the data used for the selection; step: updates done at that time."""

    protocol: Selection
    metric: str
    value: float
    step: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to evaluate, and how to select the best checkpoint.

    run: computes metrics of the current weights, the same on every rank, over the data that `select` names, and calls
    its argument after every batch; metric: name of the metric compared (larger is better, the first of equals is kept);
    split: the evaluated clips, for the record; early_stop: when to end training before its last epoch, by `metric`."""

    run: Callable[[Callable[[], None]], dict[str, float]]
    every_epochs: int = 1
    select: Selection = "last"
    metric: str = "war"
    split: Split = "test"
    early_stop: EarlyStopConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Outcome of a run. metrics: of the last evaluation; step: of the final checkpoint; epochs: done; stopped_early:
    whether they are fewer than configured because of an early stop."""

    step: int
    epochs: int
    metrics: dict[str, float]
    best: Best | None
    stopped_early: bool = False


def resume(engine: Engine, checkpoint: Checkpoint | None, *, steps_per_epoch: int) -> tuple[TrainingState, Best | None]:
    """Load a checkpoint's weights, optimizer state and position; without one, return the start position. COLLECTIVE.

    Raises:
        CheckpointError: names, shapes or position do not fit this model and data, or the method fixes the layout and
            this is another one.
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
        refuse_other_layout(engine.coupling, engine.layout, checkpoint.state, where=checkpoint.folder)


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
    clips_of: Callable[[Sequence[int]], list[int]] | None = None,
) -> Summary:
    """Train from `start` to the end of `epochs`. COLLECTIVE.

    prepare: moves a micro-batch of an epoch to the device and augments it; extra_state: further entries of state.json;
    stop: checked by all ranks together between two steps and between two batches of an evaluation;
    clips_of: gives the clips of the rows of a step, which are then recorded; None records nothing.

    Raises:
        NonFiniteLossError, StorageError: on all ranks; the last checkpoint stays valid.
        DataError: on all ranks; more clips had to be replaced than is allowed.
        FencedError: on all ranks; a newer copy has taken over the run folder.
        StoppedError: on all ranks; a stop was requested, and everything up to this step is saved.
    """
    training = _Training(
        engine=engine,
        loader=loader,
        prepare=prepare,
        schedule=schedule,
        log=log,
        checkpoints=checkpoints,
        epochs=epochs,
        evaluation=evaluation,
        extra_state=extra_state or {},
        stop=stop or Stop(),
        clips_of=clips_of,
    )
    training.state, training.best = start or TrainingState(), best
    try:
        return training.run()
    finally:
        checkpoints.wait_for_save()  # when an error unwinds, a save in progress is still completed


class _StopRequestedError(Exception):
    """Raised to leave an evaluation when a stop is requested."""


@dataclass(kw_only=True)
class _Training:
    """A run in progress: the arguments of `train`, and the position."""

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
    clips_of: Callable[[Sequence[int]], list[int]] | None
    state: TrainingState = field(default_factory=TrainingState)
    best: Best | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.loader.steps_per_epoch

    @property
    def stopped_early(self) -> bool:
        """Whether an early stop has ended training before its last epoch."""
        rule = self.evaluation.early_stop if self.evaluation else None
        return rule is not None and self.state.stale >= rule.patience and self.state.global_step < self.total

    @property
    def ended(self) -> bool:
        """Whether no further step is taken."""
        return self.stopped_early or self.state.global_step == self.total

    def run(self) -> Summary:
        """Train to the end of the last epoch."""
        if self._agree_on_action() == _STOP:
            self._stopped()
        if self.state.evaluate and self.evaluation:  # None if eval_every was removed before this resume
            self._evaluate()
            self._save()
        self.state = replace(self.state, evaluate=False)
        while not self.ended:
            self._epoch()
        self.checkpoints.finish()
        return Summary(
            step=self.state.global_step,
            epochs=self.state.epoch,
            metrics=self.metrics,
            best=self.best,
            stopped_early=self.stopped_early,
        )

    def _epoch(self) -> None:
        epoch = self.state.epoch
        batches = self.loader.epoch(epoch, self.state.step)
        while self.state.epoch == epoch:
            self._step([self.prepare(batch, epoch) for batch in islice(batches, self.engine.accumulation)])
            self._after_step(epoch)

    def _step(self, micro_batches: list[Batch]) -> None:
        per_epoch, step, epoch = self.loader.steps_per_epoch, self.state.global_step, self.state.epoch
        rates = self.schedule.rates(step, steps_per_epoch=per_epoch, total_steps=self.total)
        progress = Progress(epoch=epoch, step=step, fraction=step / self.total)
        report = self.engine.step(micro_batches, progress=progress, rates=rates)
        self.state = self.state.after_step(steps_per_epoch=per_epoch)
        self.log.train(report, step=self.state.global_step, epoch=epoch, wait_seconds=self.loader.wait_seconds)
        if self.clips_of:
            mine = [row for batch in micro_batches for row in batch.index.tolist()]
            rows = [row for rank in gather_objects(mine) for row in rank]
            self.log.clips(self.clips_of(rows), step=self.state.global_step, epoch=epoch)

    def _after_step(self, epoch: int) -> None:
        """Evaluate and save when due, and take the action that the ranks agree on."""
        done = self.state.epoch if self.state.epoch > epoch else None
        every = self.evaluation.every_epochs if self.evaluation else 0
        if every and done and (done % every == 0 or done == self.epochs):
            self.state = replace(self.state, evaluate=True)
        wanted = self._agree_on_action(self.loader.take_bad())
        if wanted == _STOP:
            self._save_and_stop()
        is_best = self._evaluate() if self.state.evaluate else False
        due = self.checkpoints.due(self.state.global_step, epochs_done=done)
        if is_best or due or wanted == _SAVE or self.ended:
            self._save()

    def _evaluate(self) -> bool:
        """Evaluate the current weights, or their average; returns whether they are the best so far."""
        evaluation = self.evaluation
        assert evaluation is not None, "callers check that there is one"
        self.engine.show_average()
        try:
            self.metrics = evaluation.run(self._between_batches)
        except _StopRequestedError:
            self.engine.show_trained()
            self._save_and_stop()
        self.engine.show_trained()
        step, epoch = self.state.global_step, self.state.epoch
        self.log.eval(self.metrics, split=evaluation.split, step=step, epoch=epoch)
        better = _better(self.best, self.metrics, evaluation, step=step, epoch=epoch)
        state = self.state.judged(100 * self.metrics[evaluation.metric], evaluation.early_stop)
        self.state, self.best = replace(state, evaluate=False), better or self.best
        if self.stopped_early:
            self.log.early_stop(record=self.state.record, stale=self.state.stale, step=step, epoch=epoch)
        return better is not None

    def _between_batches(self) -> None:
        if self._agree_on_action() == _STOP:
            raise _StopRequestedError

    def _agree_on_action(self, bad: Sequence[BadClip] = ()) -> int:
        """Agree on the next action (_GO_ON, _SAVE, _STOP); raises the first rank's failure on all. COLLECTIVE.

        bad: clips that this rank had to replace; those of all ranks are recorded.
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
            do = "metrics.jsonl lists them; repair the shards, or allow more."
            raise DataError(message("training clips", expected=expected, got=got, do=do))

    def _raise_failure(self) -> None:
        if self.log.problem is not None:
            raise self.log.problem
        self.checkpoints.raise_failure()

    def _save(self) -> None:
        best = asdict(self.best) if self.best else None
        self.checkpoints.save(
            self.state.global_step,
            weights=self.engine.weights(),
            optimizer=self.engine.optimizer_state(),
            state={
                **self.extra_state,
                "training": self.state.to_json(),
                BEST: best,
                LAYOUT: asdict(self.engine.layout),
                AVERAGE: self.engine.decay,
            },
            before=self.log.sync,
        )

    def _save_and_stop(self) -> NoReturn:
        self._save()
        self._stopped()

    def _stopped(self) -> NoReturn:
        self.checkpoints.finish()
        raise stopped(self.stop, at=f"step {self.state.global_step} of {self.total}")


def stopped(stop: Stop, *, at: str) -> StoppedError:
    """Make the error that ends a process after a stop request, with the same reason on all ranks. COLLECTIVE."""
    reason = next((reason for reason in gather_objects(stop.reason) if reason), "a stop request")
    do = "All is saved; the same command continues."
    return StoppedError(message(at, expected="to go on", got=reason, do=do))


def _better(
    best: Best | None, metrics: dict[str, float], evaluation: Evaluation, *, step: int, epoch: int
) -> Best | None:
    """Return the new best if the protocol selects one and `metrics` beat the old; else None."""
    if evaluation.select == "last":
        return None
    value = metrics[evaluation.metric]
    if best is not None and value <= best.value:
        return None
    return Best(protocol=evaluation.select, metric=evaluation.metric, value=value, step=step, epoch=epoch)
