"""status, logs, cancel: read from run folders as training leaves them, and from SLURM's books."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfer.storage import Folder
from launch import __main__ as cli
from launch import control, status
from launch.records import Record, keep, tag
from launch.slurm.tools import comment_of
from launch.status import PartStatus
from tests import fake_runs
from tests.servers import S3, use
from tests.unit.launch.conftest import FakeSlurm

NOW = 1_770_000_100.0
COMMENT = "parts=fold_1,fold_2,fold_3,fold_4,fold_5"
LEASE = {"version": 1, "owner": {"host": "node1", "pid": 7}, "started": "2026-01-01T00:00:00+00:00"}


def train(folder: Path, *, step: int, checkpoint: int, starts: int) -> None:
    """A fold in the middle of its training."""
    (folder / "lease").mkdir(parents=True)
    for number in range(1, starts + 1):
        (folder / "lease" / f"{number:06d}-0123456{number}.json").write_text(json.dumps(LEASE))
    for saved in (checkpoint - 1, checkpoint, checkpoint + 1):
        (folder / "checkpoints" / f"step_{saved:08d}-g1-01234561").mkdir(parents=True)
        if saved <= checkpoint:  # the last one is still being written
            (folder / "checkpoints" / f"step_{saved:08d}-g1-01234561" / "manifest.json").touch()
    record = {"kind": "train", "step": step, "loss": 0.5, "clips_per_s": 80.0, "eta_s": 3725.0, "time": NOW - 4}
    lines = [json.dumps(record), json.dumps({"kind": "eval", "step": step, "war": 0.5}), '{"kind": "tr']
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def submitted(run: Path, **changes: Any) -> Record:
    facts = {
        "launcher": "slurm",
        "job": "30",
        "submitted": "2026-01-01",
        "revision": "abc",
        "report": "31",
        "folder": str(run / "launch" / "slurm"),
        "tasks": {f"fold_{fold}": f"30_{fold - 1}" for fold in range(1, 6)},
    }
    record = Record(**{**facts, **changes})
    keep(Folder(run), record)
    (run / "launch" / "slurm").mkdir(exist_ok=True)
    return record


def in_queue(fake_slurm: FakeSlurm, run: Path, **states: str) -> None:
    """Array 30 of a run; states by index, those not named are gone."""
    rows = {f"30_{index}": state for index, state in states.items()}
    job = {"id": "30", "job-name": f"dfer-{tag(str(run))}-parts", "array": "0-4%5", "comment": COMMENT}
    gone = [f"30_{index}" for index in range(5) if f"30_{index}" not in rows]
    fake_slurm.change(jobs=[job], states=rows, gone=gone)


@pytest.fixture
def run(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """Fold 1 finished, 2 trains after two restarts, 3 waits, 4 failed with a reason, 5 was cancelled."""
    run = tmp_path / "run"
    fake_runs.write_fold(run / "fold_1", fake_runs.result(fold=1), curves=False)
    train(run / "fold_2", step=120, checkpoint=100, starts=3)
    submitted(run)
    (run / "launch" / "slurm" / "30_3_failure.json").write_text(json.dumps({"code": 3, "text": "clip 7 is damaged"}))
    in_queue(fake_slurm, run, **{"1": "RUNNING", "2": "PENDING"})
    fake_slurm.change(sacct="30_4|CANCELLED by 0\n30_3|FAILED\n")
    return run


def test_every_fold_is_told(run: Path) -> None:
    rows = status.status(str(run), now=NOW)
    assert [row.state for row in rows] == ["finished", "running", "waiting", "failed", "stopped"]
    second = PartStatus(
        part="fold_2",
        state="running",
        why="Priority",
        step=120,
        loss=0.5,
        clips_per_s=80.0,
        eta_s=3725.0,
        age_s=4.0,
        checkpoint=100,
        restarts=2,
        hosts="node1",
        job="30_1",
    )
    assert rows[1] == second
    assert rows[0].uar == pytest.approx(fake_runs.result(fold=1).uar)
    assert rows[3].why == "clip 7 is damaged" and "the same command continues" in rows[4].why


def test_the_table_is_for_people_and_json_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "part state step loss clips/s ETA checkpoint restarts UAR job hosts"
    assert " ".join(lines[2].split()) == "fold_2 running 120 0.500 80.0 1:02:05 100 2 - 30_1 node1"
    assert "fold_4: clip 7 is damaged" in lines
    assert cli.main(["status", str(run), "--json"]) == 0
    assert [row["part"] for row in json.loads(capsys.readouterr().out)] == [f"fold_{k}" for k in range(1, 6)]


def test_without_slurm_the_folder_tells_what_it_knows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    rows = status.status(str(run), now=NOW)
    assert rows[0].state == "finished" and rows[1].step == 120
    assert rows[1].state == "unknown" and rows[1].why.endswith("there is no squeue on this machine")


def test_a_local_run_has_a_status_too(tmp_path: Path) -> None:
    train(tmp_path / "run" / "fold_1", step=3, checkpoint=2, starts=1)
    (row,) = status.status(str(tmp_path / "run"), now=NOW)
    assert (row.state, row.step, row.restarts, row.job) == ("begun", 3, 0, "")


@pytest.mark.parametrize(("age", "state"), [(5.0, "running"), (120.0, "lost")])
def test_a_ray_job_that_is_silent_is_lost(tmp_path: Path, age: float, state: str) -> None:
    states = {"fold_1": "running", "fold_2": "failed: out of luck"}
    submitted(tmp_path, launcher="ray", tasks=dict.fromkeys(states, "raysubmit_1"), states=states, beat=NOW - age)
    first, second = status.status(str(tmp_path), now=NOW)
    assert first.state == state and (second.state, second.why) == ("failed", "out of luck")


def test_a_folder_without_folds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path / "none")]) == 2
    assert "expected the run folder of a job, got no part in it. Correct" in capsys.readouterr().err


def test_a_damaged_record_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "launch" / "slurm-30.json").write_text("{")
    assert cli.main(["status", str(run)]) == 2
    assert "slurm-30.json: expected the record of a submission" in capsys.readouterr().err


def test_a_record_that_counts_folds_is_refused_with_what_to_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"version": 1, "launcher": "slurm", "job": "7", "submitted": "2025", "revision": "abc", "tasks": {"1": "7_0"}}
    (run / "launch" / "slurm-7.json").write_text(json.dumps(old))
    assert cli.main(["status", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}/launch/slurm-7.json: expected a record of version 2, got version 1, of an earlier dfer. "
        "Jobs of that version cannot go on: cancel those that wait or run, delete the file, submit again.\n"
    )


def test_parts_of_several_seeds_are_told_in_order(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    names = ["seed_10/fold_1", "seed_2/fold_1", "seed_2/fold_2"]
    for name in names[:2]:
        train(tmp_path / name, step=3, checkpoint=2, starts=1)
    submitted(tmp_path, tasks={name: f"30_{index}" for index, name in enumerate(names)})
    job = {"id": "30", "job-name": f"dfer-{tag(str(tmp_path))}-parts", "array": "0-2", "comment": comment_of(names)}
    fake_slurm.change(jobs=[job], states={"30_0": "RUNNING"}, gone=["30_1"], sacct="30_1|FAILED\n")
    rows = status.status(str(tmp_path), now=NOW)
    assert [(row.part, row.state, row.step) for row in rows] == [
        ("seed_2/fold_1", "failed", 3),
        ("seed_2/fold_2", "waiting", None),
        ("seed_10/fold_1", "running", 3),
    ]


def test_a_part_that_is_no_training_is_finished_when_slurm_says_so(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    submitted(tmp_path, tasks={"fold_1": "30_2", "worker_0": "30_0", "worker_1": "30_1"})
    train(tmp_path / "fold_1", step=3, checkpoint=2, starts=1)
    fake_slurm.change(sacct="30_0|COMPLETED\n30_1|FAILED\n30_2|COMPLETED\n")
    assert [row.state for row in status.status(str(tmp_path), now=NOW)] == ["failed", "finished", "failed"]


def test_logs_are_the_ends_of_what_each_process_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "launch" / "slurm"
    (folder / "30_1_0_log.out").write_text("".join(f"line {number}\n" for number in range(100)))
    (folder / "30_1_1_log.err").write_text("error: lost\n")
    (folder / "30_1_1_log.out").touch()
    (folder / "31_0_log.out").write_text("the table\n")
    assert cli.main(["logs", str(run), "fold_2", "--lines", "2"]) == 0
    out = capsys.readouterr().out
    assert "line 98\nline 99\n" in out and "line 97" not in out and "error: lost" in out and out.count("==>") == 2
    assert cli.main(["logs", str(run)]) == 0
    assert "the table" in capsys.readouterr().out
    assert cli.main(["logs", str(run), "fold_3"]) == 0
    assert "job 30_2 has written nothing yet" in capsys.readouterr().out
    assert cli.main(["logs", str(run), "fold_9"]) == 2
    assert "expected a submission of fold_9, got none" in capsys.readouterr().err


def test_cancel_ends_folds_and_report(run: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cancel", str(run)]) == 0
    assert ["scancel", "30"] in fake_slurm.calls and "cancelled job 30" in capsys.readouterr().out
    in_queue(fake_slurm, run)
    assert cli.main(["cancel", str(run)]) == 0
    assert "no job of this run is waiting or running" in capsys.readouterr().out


def test_jobs_are_found_by_their_names_without_a_record(
    run: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a submission that was interrupted; however the folder is spelled."""
    shutil.rmtree(run / "launch")
    (run.parent / "link").symlink_to(run)
    monkeypatch.chdir(run.parent)
    for spelling in (str(run), "run", "link", f"file://{run}"):
        assert [row.state for row in status.status(spelling, now=NOW)][1:3] == ["running", "waiting"]
    assert control.cancel("link") == ["cancelled job 30"] and ["scancel", "30"] in fake_slurm.calls


def test_cancel_tells_a_driver_on_this_host_and_no_other_process(tmp_path: Path) -> None:
    """A record is only a file, and the driver's number may be somebody else's by now."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, "launch", "ray"]) as driver, subprocess.Popen(sleep) as other:
        facts = {"launcher": "ray", "tasks": {"fold_1": "driver"}, "states": {"fold_1": "running"}}
        for pid, said in (
            (driver.pid, "sent a stop request to process {}"),
            (other.pid, "the driver, process {}, has ended"),
        ):
            submitted(tmp_path, **facts, pid=pid, host=socket.gethostname())
            assert control.cancel(str(tmp_path)) == [said.format(pid)]
            shutil.rmtree(tmp_path / "launch")
        assert driver.wait(timeout=30) == -signal.SIGTERM and other.poll() is None
        other.kill()
    submitted(tmp_path, **facts, pid=4242, host="elsewhere")
    assert cli.main(["cancel", str(tmp_path)]) == 2


def test_cancel_of_what_was_never_submitted_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cancel", str(tmp_path / "typo")]) == 2
    assert "typo: expected a submission to SLURM or Ray, got none. Correct the address" in capsys.readouterr().err


def test_the_ends_of_long_files_are_read_alone(tmp_path: Path) -> None:
    """Of more than memory holds: a file of holes."""
    file = tmp_path / "log"
    with file.open("wb") as opened:
        opened.seek(2**40)
        opened.write(b"\nlast\n")
    assert control.end_of(file, 1) == "last"


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_store_that_does_not_answer_is_told(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.records.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        use(S3(f"http://127.0.0.1:{nobody.getsockname()[1]}"), monkeypatch)
        assert cli.main([command, "s3://data/run"]) == 6
    assert "s3://data/run: expected an answer within 0.5 s, got none. Check the URL" in capsys.readouterr().err


def test_an_evaluation_in_between_does_not_make_a_fold_finished(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for fold, changes in ((1, {}), (2, {"complete": False}), (3, {"epochs": 40})):
        fake_runs.write_fold(run / f"fold_{fold}", fake_runs.result(fold=fold, **changes), curves=False)
    (run / "fold_4" / "results").mkdir(parents=True)
    (run / "fold_4" / "results" / "test.json").write_text("[]")
    rows = status.status(str(run), now=NOW)
    assert [row.state for row in rows] == ["finished", "begun", "begun", "unknown"]
    assert [row.uar is None for row in rows] == [False, True, True, True]
    assert rows[3].why.endswith("results/test.json: expected a JSON object, got list. Delete it and evaluate again.")
