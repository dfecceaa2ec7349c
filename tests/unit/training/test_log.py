import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfer.distributed import World
from dfer.errors import FencedError, StorageError
from dfer.run import journal
from dfer.storage import Folder
from dfer.training import log as log_module
from dfer.training.engine import StepReport
from dfer.training.log import RunLog


class Clock:
    """time.monotonic in steps of our choosing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(log_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def report(loss: float = 0.5, *, applied: bool = True) -> StepReport:
    return StepReport(
        loss=loss,
        terms={"ce": loss},
        grad_norm=2.0 if applied else float("inf"),
        clips=8,
        applied=applied,
        lr={"image": 1e-5},
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_has_speed_waiting_and_time_left(tmp_path: Path, clock: Clock) -> None:
    out = io.StringIO()
    with RunLog(Folder(tmp_path), world=World(), total_steps=10, stream=out) as log:
        clock.now += 4
        log.train(report(), step=1, epoch=0, wait_seconds=1.0)
        clock.now += 2
        log.train(report(0.25), step=2, epoch=0, wait_seconds=1.5)
    first, second = lines(tmp_path)
    assert first.pop("time") > 1.7e9
    assert first == {
        "kind": "train",
        "step": 1,
        "epoch": 0,
        "loss": 0.5,
        "terms": {"ce": 0.5},
        "lr": {"image": 1e-5},
        "grad_norm": 2.0,
        "skipped_steps": 0,
        "loss_scale": None,
        "clips_per_s": 2.0,
        "data_wait": 0.25,
        "eta_s": 36.0,
    }
    assert (second["clips_per_s"], second["data_wait"], second["eta_s"]) == (4.0, 0.25, 16.0)
    assert out.getvalue().splitlines()[0] == "step 1/10 epoch 0: loss 0.5000 2.0 clips/s waiting 25% eta 0:00:36"


def test_time_spent_on_evaluation_does_not_slow_training(tmp_path: Path, clock: Clock) -> None:
    with RunLog(Folder(tmp_path), world=World(), total_steps=4, every=2, stream=io.StringIO()) as log:
        clock.now += 1
        log.train(report(), step=1, epoch=0, wait_seconds=0.0)
        clock.now += 500
        log.eval({"war": 0.5}, split="test", step=1, epoch=1)
        clock.now += 1
        log.train(report(), step=2, epoch=1, wait_seconds=0.0)
    evaluation, training = lines(tmp_path)
    assert (evaluation["kind"], evaluation["split"]) == ("eval", "test") and evaluation["war"] == 0.5
    assert training["clips_per_s"] == 8.0 and training["eta_s"] == 2.0


def test_every_nth_step_and_the_last_are_recorded(tmp_path: Path) -> None:
    with RunLog(Folder(tmp_path), world=World(), total_steps=7, every=3, stream=io.StringIO()) as log:
        for step in range(1, 8):
            log.train(report(), step=step, epoch=0, wait_seconds=0.0)
    assert [line["step"] for line in lines(tmp_path)] == [3, 6, 7]


def test_continuing_drops_what_will_be_done_again(tmp_path: Path) -> None:
    def run(start: int, stop: int) -> None:
        with RunLog(Folder(tmp_path), world=World(), total_steps=9, start_step=start, stream=io.StringIO()) as log:
            for step in range(start + 1, stop + 1):
                log.train(report(float(start)), step=step, epoch=0, wait_seconds=0.0)
                if step % 3 == 0:
                    log.eval({"war": 0.1}, split="test", step=step, epoch=step // 3)

    run(0, 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # cut short by a crash
    run(3, 9)
    got = [(line["kind"], line["step"]) for line in lines(tmp_path)]
    assert got == [
        (kind, step) for step in range(1, 10) for kind in ("train", "eval") if kind == "train" or step % 3 == 0
    ]
    assert [line["loss"] for line in lines(tmp_path) if line["kind"] == "train"] == [0.0] * 3 + [3.0] * 6


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    with RunLog(Folder(tmp_path), world=World(), total_steps=2, stream=io.StringIO()) as log:
        log.train(report(0.75), step=1, epoch=0, wait_seconds=0.0)
        log.train(report(0.25), step=2, epoch=0, wait_seconds=0.0)
        log.eval({"uar": 0.5}, split="validation", step=2, epoch=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.75), (2, 0.25)]
    assert [e.value for e in events.Scalars("eval/validation/uar")] == [0.5]
    assert {"train/lr.image", "train/terms.ce", "train/clips_per_s"} <= set(events.Tags()["scalars"])


def test_skipped_steps_are_counted_and_shown(tmp_path: Path) -> None:
    out = io.StringIO()
    with RunLog(Folder(tmp_path), world=World(), total_steps=3, every=2, stream=out) as log:
        for step, applied in ((1, False), (2, True), (3, False)):
            log.train(report(applied=applied), step=step, epoch=0, wait_seconds=0.0)
    second, third = lines(tmp_path)
    assert (second["skipped_steps"], second["grad_norm"]) == (1, 2.0)
    assert (third["skipped_steps"], third["grad_norm"]) == (2, None)
    assert out.getvalue().splitlines()[1].endswith("skipped 2")


def test_the_bar_shows_the_same_numbers(tmp_path: Path) -> None:
    out = io.StringIO()
    with RunLog(Folder(tmp_path), world=World(), total_steps=4, start_step=2, progress=True, stream=out) as log:
        log.train(report(), step=3, epoch=1, wait_seconds=0.0)
        log.eval({"war": 0.25}, split="test", step=3, epoch=1)
        log.train(report(), step=4, epoch=1, wait_seconds=0.0)
    text = out.getvalue()
    assert "4/4" in text and "loss 0.5000" in text and "clips/s waiting 0% eta" in text
    assert "step 3/4 epoch 1: eval on test clips: war 0.25" in text


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(Folder(tmp_path / "run"), world=World(rank=1, size=2), total_steps=1) as log:
        log.train(report(), step=1, epoch=0, wait_seconds=0.0)
        log.eval({"war": 1.0}, split="test", step=1, epoch=1)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        RunLog(Folder(tmp_path / "run"), world=World(), total_steps=1)
    assert str(caught.value) == (
        f"{tmp_path}/run/metrics.jsonl: expected to write it, got File exists. Check the path and its permissions."
    )
    assert caught.value.exit_code == 6


def test_tensorboard_is_given_up_where_it_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with RunLog(Folder(tmp_path), world=World(), total_steps=1, stream=io.StringIO()) as log:
        log.train(report(), step=1, epoch=0, wait_seconds=0.0)
        log.sync()
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert caplog.messages == [f"{tmp_path}/tensorboard: not written any more (File exists); see metrics.jsonl"]


# Elsewhere than on a disk


@pytest.fixture
def remote() -> Iterator[Folder]:
    yield Folder("memory://log-test/run")
    Folder("memory://log-test").remove_all()


def remote_lines(folder: Folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder.text("metrics.jsonl") or "").splitlines()]


def test_elsewhere_lines_are_sent_now_and_then_and_all_at_a_checkpoint(
    remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SEND_EVERY_S", 1e6)
    with RunLog(remote, world=World(), total_steps=9, stream=io.StringIO()) as log:
        for step in range(1, 6):
            log.train(report(), step=step, epoch=0, wait_seconds=0.0)
        log.sync()
        assert remote_lines(remote) == [1, 2, 3, 4, 5]
        assert len((remote / "tensorboard").children()) == 1
        log.train(report(), step=6, epoch=0, wait_seconds=0.0)
    assert remote_lines(remote) == [1, 2, 3, 4, 5, 6]
    with RunLog(remote, world=World(), total_steps=9, start_step=4, stream=io.StringIO()):
        assert remote_lines(remote) == [1, 2, 3, 4]


@pytest.mark.parametrize("local", [True, False])
def test_a_copy_that_may_not_write_keeps_its_reason_and_writes_no_more(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(journal, "SEND_EVERY_S", 0.01)
    fenced, folder = False, Folder(tmp_path) if local else remote

    def check() -> None:
        if fenced:
            raise FencedError("a newer one")

    with RunLog(folder, world=World(), total_steps=9, stream=io.StringIO(), check=check) as log:
        log.train(report(), step=1, epoch=0, wait_seconds=0.0)
        log.sync()
        fenced = True
        deadline = time.monotonic() + 30
        while log.problem is None and time.monotonic() < deadline:
            log.train(report(), step=2, epoch=0, wait_seconds=0.0)
        assert isinstance(log.problem, FencedError)
    assert remote_lines(folder) == [1]
