"""The whole loop in one process with a tiny recognizer: resume, selection, what is saved and logged."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, DataError, FencedError, NonFiniteLossError, StoppedError
from dfer.interruption import Stop
from dfer.recognition import BadClip, ClipBatch, Group, Learner, Progress, Recognition
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.run.lease import Fence
from dfer.storage import Folder
from dfer.training.build import build_engine
from dfer.training.config import EarlyStopConfig, EngineConfig, GroupConfig, SgdConfig, StepScheduleConfig
from dfer.training.engine import Engine
from dfer.training.log import RunLog, as_line
from dfer.training.loop import Evaluation, Summary, resume, train
from dfer.training.state import TrainingState, refuse_other_layout
from tests.unit.training.stubs import TinyRecognizer, clips, part

PER_EPOCH, EPOCHS, MICRO = 5, 3, 2
SGD = SgdConfig(groups={"trunk": GroupConfig(lr=0.05), "head": GroupConfig(lr=0.3)})


class StubLoader:
    """Micro-batches that depend on (epoch, step) alone; `stop_at` ends the process, so to speak, before a step."""

    steps_per_epoch = PER_EPOCH
    wait_seconds = 0.0
    max_bad = 2

    def take_bad(self) -> list[BadClip]:
        return []

    def __init__(self, *, stop_at: int | None = None, broken: int | None = None) -> None:
        self._stop_at, self._broken = stop_at, broken
        self.served: list[int] = []

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
        for step in range(start_step, PER_EPOCH):
            number = epoch * PER_EPOCH + step
            if number == self._stop_at:
                raise KeyboardInterrupt
            batch = clips(2 * MICRO, seed=number)
            if number == self._broken:
                batch.frames[:] = 255
            self.served.append(number)
            yield part(batch, 0, MICRO)
            yield part(batch, MICRO, 2 * MICRO)


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group(World()):
        yield


def engine(ema: float | None = None) -> Engine:
    return build_engine(
        EngineConfig(name="ddp", clip_norm=1.0),
        TinyRecognizer(wide=8),
        optim=SGD,
        world=World(),
        global_batch=2 * MICRO,
        micro_batch=MICRO,
        seed=1,
        ema=ema,
    )


def run(
    folder: Path,
    loader: StubLoader,
    *,
    evaluation: Evaluation | None = None,
    epochs: int = EPOCHS,
    stop: Stop | None = None,
    clips_of: Callable[[Sequence[int]], list[int]] | None = None,
    ema: float | None = None,
    **save: Any,
) -> tuple[Summary, Engine]:
    """What dfer.jobs.train does: build, resume what is there, train."""
    config = CheckpointConfig(**save)
    checkpoints = Checkpoints(Folder(folder), world=World(), config=config)
    built = engine(ema)
    start, best = resume(built, checkpoints.start(checkpoints.latest()), steps_per_epoch=PER_EPOCH)
    with RunLog(
        Folder(folder),
        world=World(),
        total_steps=epochs * PER_EPOCH,
        start_step=start.global_step,
        stream=io.StringIO(),
        check=checkpoints.may_write,
    ) as log:
        summary = train(
            built,
            loader=loader,
            prepare=lambda batch, epoch: batch,
            schedule=StepScheduleConfig(milestones=(1, 2), gamma=0.5),
            log=log,
            checkpoints=checkpoints,
            epochs=epochs,
            evaluation=evaluation,
            start=start,
            best=best,
            extra_state={"seed": 7},
            stop=stop,
            clips_of=clips_of,
        )
    return summary, built


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stops", [[7], [5], [1, 4, 13], [3, 3, 14]])
def test_a_run_in_pieces_equals_a_run_in_one(stops: list[int], tmp_path: Path) -> None:
    """Stopped mid-epoch, at its end, and twice in the same place; saving every 2 steps and every epoch."""
    whole, straight = run(tmp_path / "whole", StubLoader(), every_steps=2)
    folder = tmp_path / "pieces"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(folder, StubLoader(stop_at=stop), every_steps=2)
    last = StubLoader()
    pieces, resumed = run(folder, last, every_steps=2)
    assert last.served[0] == max(s for s in (0, *range(0, 15, 2), 5, 10) if s <= stops[-1])
    assert same(straight.weights(), resumed.weights())
    assert same(straight.optimizer_state(), resumed.optimizer_state())
    assert (pieces.step, pieces.epochs) == (whole.step, whole.epochs) == (15, 3)
    untimed = [
        [{k: r[k] for k in ("kind", "step", "epoch", "loss", "lr", "grad_norm")} for r in records(f)]
        for f in (tmp_path / "whole", folder)
    ]
    assert untimed[0] == untimed[1]
    assert [r["step"] for r in untimed[0]] == list(range(1, 16))


def test_rates_follow_the_schedule_and_state_the_position(tmp_path: Path) -> None:
    run(tmp_path, StubLoader())
    rates = [r["lr"]["head"] for r in records(tmp_path)]
    assert rates == pytest.approx([0.3] * 5 + [0.15] * 5 + [0.075] * 5)
    (last,) = tmp_path.glob("checkpoints/step_00000015-*")
    position = {
        "epoch": 3,
        "step": 0,
        "global_step": 15,
        "evaluate": False,
        "bad_clips": [],
        "record": None,
        "stale": 0,
    }
    assert json.loads((last / "state.json").read_text()) == {
        "seed": 7,
        "training": position,
        "best": None,
        "layout": {"ranks": 1, "micro_batch": 2},
        "average": None,
    }


def test_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    _, before = run(tmp_path, StubLoader())
    loader = StubLoader()
    summary, after = run(tmp_path, loader)
    assert loader.served == [] and summary.step == 15
    assert same(before.weights(), after.weights())


def test_the_best_checkpoint_is_kept_and_named(tmp_path: Path) -> None:
    scores = iter([0.5, 0.7, 0.6])
    evaluation = Evaluation(run=lambda _: {"war": next(scores), "uar": 0.1}, select="best_on_test")
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation, keep_last=1)
    assert summary.metrics == {"war": 0.6, "uar": 0.1}
    assert summary.best is not None
    assert (summary.best.step, summary.best.epoch, summary.best.value) == (10, 2, 0.7)
    assert (summary.best.protocol, summary.best.metric) == ("best_on_test", "war")
    checkpoints = Checkpoints(Folder(tmp_path), world=World())
    assert [name.partition("-")[0] for name in checkpoints.folder.children()] == ["step_00000010", "step_00000015"]
    best = checkpoints.best()
    assert best is not None and best.step == 10
    assert [(r["step"], r["epoch"], r["war"]) for r in records(tmp_path) if r["kind"] == "eval"] == [
        (5, 1, 0.5),
        (10, 2, 0.7),
        (15, 3, 0.6),
    ]


def test_the_best_so_far_survives_a_stop_and_ties_stay_with_the_first(tmp_path: Path) -> None:
    evaluation = Evaluation(run=lambda _: {"uar": 0.4}, select="best_on_val", metric="uar")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, StubLoader(stop_at=8), evaluation=evaluation)
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation)
    assert summary.best is not None and summary.best.step == 5


def test_evaluation_every_second_epoch_and_at_the_end(tmp_path: Path) -> None:
    evaluation = Evaluation(run=lambda _: {"war": 0.2}, every_epochs=2)
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation)
    assert [r["epoch"] for r in records(tmp_path) if r["kind"] == "eval"] == [2, 3]
    assert summary.best is None


def test_a_broken_batch_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 7 \(epoch 1\): expected a finite loss"):
        run(tmp_path, StubLoader(broken=7))
    latest = Checkpoints(Folder(tmp_path), world=World()).latest()
    assert latest is not None and latest.step == 5
    assert [r["step"] for r in records(tmp_path)] == list(range(1, 8))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path, StubLoader(), epochs=1)
    checkpoint = Checkpoints(Folder(tmp_path), world=World()).latest()
    with pytest.raises(CheckpointError, match="expected a position in epochs of 4 steps, got epoch 1, step 0"):
        resume(engine(), checkpoint, steps_per_epoch=4)


# Early stop

RULE = EarlyStopConfig(patience=2, min_delta=0.001)


class Scores:
    """Scores in percent, one for each epoch, whatever the weights are; `calls` counts the evaluations."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.calls = scores, 0

    def evaluation(self, loader: StubLoader) -> Evaluation:
        def score(between: Any) -> dict[str, float]:
            self.calls += 1
            return {"war": self.scores[loader.served[-1] // PER_EPOCH] / 100}

        return Evaluation(run=score, select="best_on_test", early_stop=RULE)


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ((50.0, 49.0, 50.0, 51.0, 60.0, 60.0), 3),  # an equal one counts
        ((50.0, 50.0005, 50.0009, 60.0, 60.0, 60.0), 3),  # so do those above the record by less than 0.001
        ((50.0, 50.0005, 50.0011, 49.0, 49.0, 60.0), 5),  # the record is that of epoch 3
        ((50.0, 49.0, 51.0, 50.0, 52.0, 51.0), 6),
    ],
)
def test_training_ends_when_the_score_rises_no_more(tmp_path: Path, scores: tuple[float, ...], epochs: int) -> None:
    loader = StubLoader()
    evaluation = Scores(*scores).evaluation(loader)
    summary, _ = run(tmp_path, loader, evaluation=evaluation, epochs=6, every_epochs=None)
    assert loader.served == list(range(epochs * PER_EPOCH))
    assert (summary.epochs, summary.stopped_early) == (epochs, epochs < 6)
    latest = Checkpoints(Folder(tmp_path), world=World()).latest()
    assert latest is not None and latest.step == epochs * PER_EPOCH
    told = [(r["step"], r["epoch"], r["stale"]) for r in records(tmp_path) if r["kind"] == "early_stop"]
    assert told == ([(epochs * PER_EPOCH, epochs, 2)] if epochs < 6 else [])


def test_an_early_stop_counts_over_a_kill_and_is_not_trained_past(tmp_path: Path) -> None:
    given = Scores(50.0, 49.0, 50.0005, 60.0)

    def piece(folder: Path, loader: StubLoader) -> tuple[Summary, Engine]:
        return run(folder, loader, evaluation=given.evaluation(loader), epochs=4, every_steps=1)

    straight = piece(tmp_path / "whole", StubLoader())[1]
    for stop in (7, 12):  # within the second and the third epoch
        with pytest.raises(KeyboardInterrupt):
            piece(tmp_path / "run", StubLoader(stop_at=stop))
    ended, resumed = piece(tmp_path / "run", StubLoader())
    assert ended.stopped_early and ended.epochs == 3 and same(straight.weights(), resumed.weights())
    again = StubLoader()
    assert piece(tmp_path / "run", again)[0].stopped_early and again.served == [] and given.calls == 6


def test_the_line_on_an_early_stop() -> None:
    record = {"kind": "early_stop", "step": 15, "epoch": 3, "record": 50.0, "stale": 2}
    assert as_line(record, total=30) == (
        "step 15/30 epoch 3: training ends early: 2 evaluations without more than 50.00 %"
    )


# The average of the weights


def test_an_average_in_pieces_is_that_of_a_run_in_one_and_is_evaluated(tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {"whole": [], "run": []}

    def evaluation(name: str, built: list[Engine]) -> Evaluation:
        def score(between: Any) -> dict[str, float]:
            seen[name].append(built[0].weights()["head.weight"])
            return {"war": 0.5}

        return Evaluation(run=score, select="best_on_val")

    engines: list[Engine] = []
    real = build_engine

    def noted(*args: Any, **options: Any) -> Engine:
        engines[:] = [real(*args, **options)]
        return engines[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "build_engine", noted)
        _, straight = run(tmp_path / "whole", StubLoader(), evaluation=evaluation("whole", engines), ema=0.9)
        for stop in (3, 8):
            with pytest.raises(KeyboardInterrupt):
                run(
                    tmp_path / "run",
                    StubLoader(stop_at=stop),
                    evaluation=evaluation("run", engines),
                    ema=0.9,
                    every_steps=1,
                )
        _, resumed = run(tmp_path / "run", StubLoader(), evaluation=evaluation("run", engines), ema=0.9)
    assert same(straight.weights(), resumed.weights()) and same(straight.optimizer_state(), resumed.optimizer_state())
    assert len(seen["whole"]) == len(seen["run"]) == 3 and all(map(torch.equal, seen["whole"], seen["run"]))
    latest = Checkpoints(Folder(tmp_path / "run"), world=World()).latest()
    assert latest is not None
    evaluated, trained = latest.evaluated(), latest.weights()
    assert torch.equal(evaluated["head.weight"], seen["run"][-1]) and evaluated.keys() == trained.keys()
    assert not torch.equal(evaluated["head.weight"], trained["head.weight"])
    assert torch.equal(evaluated["frozen.weight"], trained["frozen.weight"])


def test_an_average_follows_the_weights_by_its_decay() -> None:
    built = engine(ema=0.75)
    expected = {name: value.double() for name, value in built.weights().items()}
    for number in range(3):
        steps(built, 1, start=number)
        expected = {name: 0.75 * expected[name] + 0.25 * value.double() for name, value in built.weights().items()}
    found = {
        name.removesuffix("/average"): value for name, value in built.optimizer_state().items() if "average" in name
    }
    assert found.keys() == {name for name, p in built.task.learner.named_parameters() if p.requires_grad}
    assert all(torch.allclose(value.double(), expected[name], atol=1e-6) for name, value in found.items())
    trained = built.weights()
    built.show_average()
    shown = built.weights()
    assert all(torch.equal(shown[name], value) for name, value in found.items())
    built.show_trained()
    assert same(built.weights(), trained)


def test_averages_of_another_model_are_refused(tmp_path: Path) -> None:
    built = engine(ema=0.9)
    steps(built, 1)
    state = {name: value for name, value in built.optimizer_state().items() if name != "head.bias/average"}
    with pytest.raises(CheckpointError, match=r"checkpoint average of the weights: .* got missing head.bias/average"):
        built.load_optimizer_state(state)


# What ties the clips of a batch together


def test_mixing_couples_the_micro_batches_of_any_method(tmp_path: Path) -> None:
    def mixing(micro_batch: int) -> Engine:
        return build_engine(
            EngineConfig(name="ddp"),
            TinyRecognizer(wide=8),
            optim=SGD,
            world=World(),
            global_batch=2 * MICRO,
            micro_batch=micro_batch,
            seed=1,
            mixes=True,
        )

    first = mixing(MICRO)
    steps(first, 1)
    checkpoint = saved_by(first, tmp_path)
    with pytest.raises(
        CheckpointError, match="expected 1 rank with micro-batches of 2, as it was started on, got 1 rank"
    ):
        resume(mixing(2 * MICRO), checkpoint, steps_per_epoch=PER_EPOCH)
    assert resume(mixing(MICRO), checkpoint, steps_per_epoch=PER_EPOCH)[0].global_step == 1


class Coupled(TinyRecognizer):
    """Batch norm over a micro-batch's clips."""

    coupling = "micro_batch"

    def __init__(self) -> None:
        super().__init__(wide=8)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, batch: ClipBatch) -> Recognition:
        x = self.norm(self.frozen(batch.frames.float().div(255).mean(1).flatten(1)))
        return Recognition(logits=self.head(self.trunk(x)) * self.temperature, aux={"spread": x.std(1)})

    def param_groups(self) -> dict[str, Group]:
        groups = super().param_groups()
        groups["trunk"].params.extend(self.norm.parameters())
        return groups


class Contrastive(TinyRecognizer):
    """Every clip of a step meets all others."""

    coupling = "step"


def coupled(learner: Learner, *, micro_batch: int = MICRO) -> Engine:
    return build_engine(
        EngineConfig(name="ddp"),
        learner,
        optim=SGD,
        world=World(),
        global_batch=2 * MICRO,
        micro_batch=micro_batch,
        seed=1,
    )


def steps(built: Engine, count: int, start: int = 0) -> None:
    size = built.layout.micro_batch
    for number in range(start, start + count):
        batch = clips(2 * MICRO, seed=number)
        parts = [part(batch, at, at + size) for at in range(0, 2 * MICRO, size)]
        built.step(parts, progress=Progress(epoch=0, step=number, fraction=0.0))


def saved_by(built: Engine, folder: Path, **changes: Any) -> Checkpoint:
    """What the loop writes of an engine after one step."""
    checkpoints = Checkpoints(Folder(folder), world=World(), config=CheckpointConfig())
    checkpoints.start(None)
    position = TrainingState(step=1, global_step=1).to_json()
    state = {"training": position, "layout": asdict(built.layout), **changes}
    checkpoints.save(1, weights=built.weights(), optimizer=built.optimizer_state(), state=state)
    checkpoints.finish()
    found = checkpoints.latest()
    assert found is not None
    return found


def test_coupled_micro_batches_are_fixed_and_the_refusal_says_why(tmp_path: Path) -> None:
    first = coupled(Coupled())
    steps(first, 1)
    checkpoint = saved_by(first, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        resume(coupled(Coupled(), micro_batch=2 * MICRO), checkpoint, steps_per_epoch=PER_EPOCH)
    assert str(caught.value) == (
        f"{checkpoint.folder}: expected 1 rank with micro-batches of 2, as it was started on, got 1 rank with "
        "micro-batches of 4. The clips of a micro-batch share statistics or partners in this run, so others "
        "compute something else. Start it on 1 rank with micro-batches of 2, or a new run with run=FOLDER."
    )
    state = {"layout": {"ranks": 2, "micro_batch": MICRO}}
    with pytest.raises(CheckpointError, match="expected 2 ranks with micro-batches of 2, as it was started on, got 1"):
        refuse_other_layout("micro_batch", first.layout, state, where="run")
    with pytest.raises(CheckpointError, match=r"run: no layout of a step in its state \(.*micro_batch"):
        refuse_other_layout("micro_batch", first.layout, {"layout": {"ranks": 2}}, where="run")
    resumed = coupled(Coupled())
    resume(resumed, checkpoint, steps_per_epoch=PER_EPOCH)
    for built in (first, resumed):
        steps(built, 3, start=1)
    assert same(first.weights(), resumed.weights())


@pytest.mark.parametrize("learner", [TinyRecognizer, Contrastive])
def test_others_go_on_with_another_layout(tmp_path: Path, learner: type[TinyRecognizer]) -> None:
    checkpoint = saved_by(coupled(learner(), micro_batch=2 * MICRO), tmp_path, layout={"ranks": 4, "micro_batch": 1})
    state, _ = resume(coupled(learner(), micro_batch=2 * MICRO), checkpoint, steps_per_epoch=PER_EPOCH)
    assert state.global_step == 1


def test_a_step_whose_clips_all_meet_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        coupled(Contrastive(), micro_batch=MICRO)
    assert str(caught.value) == (
        "micro_batch: expected none or 4, a rank's whole part of a step, got 2. Leave it out: this method contrasts "
        "every clip of a step with all others."
    )


# Stopped on request


class StoppingLoader(StubLoader):
    """Somebody asks for a stop while this step is computed."""

    def __init__(self, stop: Stop, *, at: int) -> None:
        super().__init__()
        self._stop, self._at = stop, at

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
        for batch in super().epoch(epoch, start_step):
            if self.served[-1] == self._at:
                self._stop.request("SIGTERM")
            yield batch


@pytest.mark.parametrize("at", [0, 6, 9, 13])
def test_a_stop_saves_after_the_step_it_came_in(tmp_path: Path, at: int) -> None:
    straight = run(tmp_path / "whole", StubLoader())[1]
    stop = Stop()
    with pytest.raises(StoppedError) as caught:
        run(tmp_path / "run", StoppingLoader(stop, at=at), stop=stop, every_epochs=None)
    assert str(caught.value) == (
        f"step {at + 1} of 15: expected to go on, got SIGTERM. All is saved; the same command continues."
    )
    assert caught.value.exit_code == 9
    rest = StubLoader()
    resumed = run(tmp_path / "run", rest, every_epochs=None)[1]
    assert rest.served == list(range(at + 1, 15))
    assert same(straight.weights(), resumed.weights())


def test_a_stop_before_the_first_step_takes_none(tmp_path: Path) -> None:
    stop, loader = Stop(), StubLoader()
    stop.request("SIGUSR2")
    with pytest.raises(StoppedError, match="step 0 of 15: expected to go on, got SIGUSR2"):
        run(tmp_path, loader, stop=stop)
    assert loader.served == [] and Checkpoints(Folder(tmp_path), world=World()).latest() is None


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_in_an_evaluation_repeats_it_and_no_step(tmp_path: Path, last: bool) -> None:
    """Between two of its batches; the checkpoint says that this evaluation is still to come."""
    stop, calls = Stop(), 0

    def evaluate(between: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == (3 if last else 2):
            stop.request("SIGTERM")
        between()
        return {"war": 0.3 if calls < 3 else 0.9}

    evaluation = Evaluation(run=evaluate, select="best_on_val")
    with pytest.raises(StoppedError, match=f"step {15 if last else 10} of 15"):
        run(tmp_path, StubLoader(), evaluation=evaluation, stop=stop)
    rest = StubLoader()
    summary = run(tmp_path, rest, evaluation=evaluation)[0]
    assert rest.served == ([] if last else list(range(10, 15))) and calls == 4
    assert summary.best is not None and summary.best.step == (15 if last else 10)
    assert [(r["step"], r["war"]) for r in records(tmp_path) if r["kind"] == "eval"] == [
        (5, 0.3),
        (10, 0.3 if last else 0.9),
        (15, 0.9),
    ]
    best = Checkpoints(Folder(tmp_path), world=World()).best()
    assert best is not None and best.step == summary.best.step


# A newer copy


def test_a_copy_that_was_thought_dead_stops_and_changes_nothing(tmp_path: Path) -> None:
    """A newer copy starts while this one is in the middle of step 8, with the save of step 5 behind it."""
    checkpoints = Checkpoints(Folder(tmp_path), world=World())

    class Overtaken(StubLoader):
        def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
            for batch in super().epoch(epoch, start_step):
                if self.served[-1] == 8 and len(self.served) == 9:
                    saved_by = time.monotonic() + 30
                    while checkpoints.latest() is None and time.monotonic() < saved_by:
                        time.sleep(0.01)
                    Fence.take(Folder(tmp_path)).record_base("whatever it found", 5)
                    self.seen = (tmp_path / "metrics.jsonl").read_text()
                    self.served.append(-1)
                yield batch

    loader = Overtaken()
    with pytest.raises(FencedError, match=r"got a newer copy at work there"):
        run(tmp_path, loader)
    assert loader.served == [*range(9), -1], "it stops after the step it was in"
    assert (tmp_path / "metrics.jsonl").read_text() == loader.seen
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 5


# When to save, what is recorded


def test_saving_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overdue after steps 4 and 11 by this rank's clock."""
    monkeypatch.setattr(Checkpoints, "overdue", property(lambda self: served[-1:] in ([3], [10])))
    loader = StubLoader()
    served = loader.served
    run(tmp_path, loader, every_epochs=None, keep_last=9)
    steps = [int(name[5:13]) for name in Checkpoints(Folder(tmp_path), world=World()).folder.folders()]
    assert steps == [4, 11, 15]


def test_the_clips_of_every_step_are_recorded_on_request(tmp_path: Path) -> None:
    run(tmp_path, StubLoader(), clips_of=lambda rows: [10 + row for row in rows], epochs=1)
    told = [(r["step"], r["epoch"], r["clips"]) for r in records(tmp_path) if r["kind"] == "clips"]
    assert told == [(step, 0, [10, 11, 12, 13]) for step in range(1, 6)]


# Clips that had to be replaced


class SpoiltLoader(StubLoader):
    """At some steps a clip had to be replaced."""

    def __init__(self, bad: dict[int, str], **more: Any) -> None:
        super().__init__(**more)
        self._bad = bad

    def take_bad(self) -> list[BadClip]:
        key = self._bad.get(self.served[-1])
        return [BadClip(key=key, epoch=0, cause="not a JPEG", replaced_by="z")] if key else []


def test_replaced_clips_are_recorded_and_counted_once_over_a_stop(tmp_path: Path) -> None:
    bad = {1: "a", 6: "a", 8: "b"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SpoiltLoader(bad, stop_at=7), every_steps=1)
    run(tmp_path, SpoiltLoader(bad), every_steps=1)
    told = [(r["step"], r["key"], r["replaced_by"], r["cause"]) for r in records(tmp_path) if r["kind"] == "bad_clip"]
    assert told == [(2, "a", "z", "not a JPEG"), (7, "a", "z", "not a JPEG"), (9, "b", "z", "not a JPEG")]
    latest = Checkpoints(Folder(tmp_path), world=World()).latest()
    assert latest is not None and latest.state["training"]["bad_clips"] == ["a", "b"]


def test_more_replaced_clips_than_allowed_stop_the_run(tmp_path: Path) -> None:
    """The third one comes after a stop: those before it count."""
    bad = {1: "a", 3: "b", 7: "c"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, SpoiltLoader(bad, stop_at=5), every_steps=1)
    loader = SpoiltLoader(bad)
    with pytest.raises(DataError) as caught:
        run(tmp_path, loader, every_steps=1)
    assert loader.served == [5, 6, 7]
    assert str(caught.value) == (
        "training clips: expected at most 2 bad clips, as data.max_bad_share allows, got 3 (a, b, c; the last: "
        "not a JPEG). metrics.jsonl lists them; repair the shards, or allow more."
    )
