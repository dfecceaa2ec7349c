"""The whole loop in one process with a tiny recognizer: resume, selection, what is saved and logged."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfer.checkpoint import CheckpointConfig, Checkpoints
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, NonFiniteLossError
from dfer.recognition import ClipBatch
from dfer.training.engine import Engine, EngineConfig, build_engine
from dfer.training.log import RunLog
from dfer.training.loop import Evaluation, Summary, resume, train
from dfer.training.optim import GroupConfig, SgdConfig, StepScheduleConfig
from tests.unit.training.stubs import TinyRecognizer, clips, part

PER_EPOCH, EPOCHS, MICRO = 5, 3, 2
SGD = SgdConfig(groups={"trunk": GroupConfig(lr=0.05), "head": GroupConfig(lr=0.3)})


class StubLoader:
    """Micro-batches that depend on (epoch, step) alone; `stop_at` ends the process, so to speak, before a step."""

    steps_per_epoch = PER_EPOCH
    wait_seconds = 0.0

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


def engine() -> Engine:
    return build_engine(
        EngineConfig(name="ddp", clip_norm=1.0), TinyRecognizer(wide=8), optim=SGD, world=World(),
        global_batch=2 * MICRO, micro_batch=MICRO,
    )  # fmt: skip


def run(folder: Path, loader: StubLoader, *, every_steps: int | None = None, evaluation: Evaluation | None = None,
        keep_last: int = 2, epochs: int = EPOCHS) -> tuple[Summary, Engine]:  # fmt: skip
    """What dfer.run does: build, resume what is there, train."""
    config = CheckpointConfig(every_steps=every_steps, keep_last=keep_last)
    checkpoints = Checkpoints(folder / "checkpoints", world=World(), config=config)
    built = engine()
    start, best = resume(built, checkpoints.latest(), steps_per_epoch=PER_EPOCH)
    with RunLog(
        folder, world=World(), total_steps=epochs * PER_EPOCH, start_step=start.global_step, stream=io.StringIO()
    ) as log:
        summary = train(
            built, loader=loader, prepare=lambda batch, epoch: batch,
            schedule=StepScheduleConfig(milestones=(1, 2), gamma=0.5), log=log, checkpoints=checkpoints, epochs=epochs,
            evaluation=evaluation, start=start, best=best, extra_state={"seed": 7},
        )  # fmt: skip
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
    state = json.loads((tmp_path / "checkpoints/step_00000015/state.json").read_text())
    assert state == {"seed": 7, "training": {"epoch": 3, "step": 0, "global_step": 15}, "best": None}


def test_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    _, before = run(tmp_path, StubLoader())
    loader = StubLoader()
    summary, after = run(tmp_path, loader)
    assert loader.served == [] and summary.step == 15
    assert same(before.weights(), after.weights())


def test_the_best_checkpoint_is_kept_and_named(tmp_path: Path) -> None:
    scores = iter([0.5, 0.7, 0.6])
    evaluation = Evaluation(run=lambda: {"war": next(scores), "uar": 0.1}, select="best_on_test")
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation, keep_last=1)
    assert summary.metrics == {"war": 0.6, "uar": 0.1}
    assert summary.best is not None
    assert (summary.best.step, summary.best.epoch, summary.best.value) == (10, 2, 0.7)
    assert (summary.best.protocol, summary.best.metric) == ("best_on_test", "war")
    checkpoints = Checkpoints(tmp_path / "checkpoints", world=World())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step_00000010", "step_00000015"]
    best = checkpoints.best()
    assert best is not None and best.step == 10
    assert [(r["step"], r["epoch"], r["war"]) for r in records(tmp_path) if r["kind"] == "eval"] == [
        (5, 1, 0.5), (10, 2, 0.7), (15, 3, 0.6),
    ]  # fmt: skip


def test_the_best_so_far_survives_a_stop_and_ties_stay_with_the_first(tmp_path: Path) -> None:
    evaluation = Evaluation(run=lambda: {"uar": 0.4}, select="best_on_val", metric="uar")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, StubLoader(stop_at=8), evaluation=evaluation)
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation)
    assert summary.best is not None and summary.best.step == 5


def test_evaluation_every_second_epoch_and_at_the_end(tmp_path: Path) -> None:
    evaluation = Evaluation(run=lambda: {"war": 0.2}, every_epochs=2)
    summary, _ = run(tmp_path, StubLoader(), evaluation=evaluation)
    assert [r["epoch"] for r in records(tmp_path) if r["kind"] == "eval"] == [2, 3]
    assert summary.best is None


def test_a_broken_batch_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 7 \(epoch 1\): expected a finite loss"):
        run(tmp_path, StubLoader(broken=7))
    latest = Checkpoints(tmp_path / "checkpoints", world=World()).latest()
    assert latest is not None and latest.step == 5
    assert [r["step"] for r in records(tmp_path)] == list(range(1, 8))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path, StubLoader(), epochs=1)
    checkpoint = Checkpoints(tmp_path / "checkpoints", world=World()).latest()
    with pytest.raises(CheckpointError, match="expected a position in epochs of 4 steps, got epoch 1, step 0"):
        resume(engine(), checkpoint, steps_per_epoch=4)
