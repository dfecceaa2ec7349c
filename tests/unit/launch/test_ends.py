"""How processes of a SLURM job end: requeued, tried again, or left alone."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import UncompletedJobError

from dfer.errors import DataError, FencedError, ProcessError, StoppedError
from dfer.exit import ProcessExit
from launch.slurm import retry as slurm_retry
from launch.slurm import task as slurm_task
from launch.slurm import tools as slurm_tools
from launch.slurm.task import PartTask, failed, failure_file, forget_failure, stopped
from tests.unit.launch.conftest import FakeSlurm, training

RUNNING = "JobId=31 ArrayJobId=30 ArrayTaskId=1 JobState=RUNNING Reason=None Restarts=2 Requeue=1"
# What SLURM answers to 30, the number of the whole array: every task.
OTHER = "JobId=32 ArrayJobId=30 ArrayTaskId=2 JobState=PENDING Reason=None Restarts=7 Requeue=1"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_slurm: FakeSlurm) -> FakeSlurm:
    """The first process of the third start of job 30_1."""
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(tmp_path),
        "SLURM_JOB_ID": "31",
        "SLURM_ARRAY_JOB_ID": "30",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_PROCID": "0",
        "SLURM_RESTART_COUNT": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    says(fake_slurm, RUNNING)
    return fake_slurm


def says(fake_slurm: FakeSlurm, job: str) -> None:
    """The bare number is that of the array when its last task has started."""
    fake_slurm.change(scontrol={"30_1": job, "31": f"{job}\n{OTHER}"})


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits that take no time: how long each would have been."""
    waits: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(slurm_tools.time, "sleep", sleep)
    monkeypatch.setattr(slurm_tools.time, "monotonic", lambda: clock[0])
    return waits


class Asked:
    """submitit's handler: notes that it was called, and ends the process as it does."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, list[int]()

    def __call__(self, number: int, _frame: Any) -> None:
        self.calls.append(number)
        raise self.error


@pytest.fixture
def process_exit(monkeypatch: pytest.MonkeyPatch) -> ProcessExit:
    """One that does not end the tests' process."""
    monkeypatch.setattr("dfer.exit.atexit.register", lambda _: None)
    return ProcessExit()


def test_after_saving_the_first_rank_lets_submitit_requeue(
    task: FakeSlurm, process_exit: ProcessExit, tmp_path: Path
) -> None:
    stale = tmp_path / "30_1_submitted.pkl.save_tmp"
    stale.touch()
    requeue = Asked(SystemExit(-1))
    with pytest.raises(SystemExit) as caught:
        stopped(StoppedError("saved"), requeue, process_exit)
    assert requeue.calls == [signal.SIGUSR2] and caught.value.code == -1 and not stale.exists()


@pytest.mark.parametrize("state", [RUNNING.replace("RUNNING", "COMPLETING"), RUNNING.replace("=2", "=3")])
def test_a_cancelled_job_and_an_orphan_are_not_requeued(task: FakeSlurm, process_exit: ProcessExit, state: str) -> None:
    says(task, state)
    requeue = Asked(SystemExit(-1))
    with pytest.raises(SystemExit) as caught:
        stopped(StoppedError("saved"), requeue, process_exit)
    assert requeue.calls == [] and caught.value.code == 9


def test_other_ranks_leave_it_to_the_first(
    task: FakeSlurm, process_exit: ProcessExit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    requeue = Asked(SystemExit(-1))
    with pytest.raises(SystemExit) as caught:
        stopped(StoppedError("saved"), requeue, process_exit)
    assert requeue.calls == [] and caught.value.code == 9 and capsys.readouterr().err == ""


def test_too_many_stretches_are_told(
    task: FakeSlurm, process_exit: ProcessExit, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        stopped(StoppedError("saved"), Asked(UncompletedJobError("timed-out too many times")), process_exit)
    assert caught.value.code == 9
    assert "expected to be requeued by submitit, got timed-out too many times. Submit again" in capsys.readouterr().err


def test_a_requeue_that_fails_is_tried_again(task: FakeSlurm, process_exit: ProcessExit) -> None:
    with pytest.raises(SystemExit):
        stopped(StoppedError("saved"), Asked(subprocess.CalledProcessError(1, "scontrol")), process_exit)
    assert ["scontrol", "requeue", "30_1"] in task.calls


def test_a_job_that_cannot_be_requeued_is_told(
    task: FakeSlurm, process_exit: ProcessExit, patient: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container without SLURM's commands."""
    task.change(broken={"scontrol requeue": "no munge"})
    with pytest.raises(SystemExit):
        stopped(StoppedError("saved"), Asked(FileNotFoundError("scontrol")), process_exit)
    assert "error: not requeued: scontrol: expected an answer of SLURM, got no munge" in capsys.readouterr().err
    assert sum(patient) >= 60


def test_a_controller_that_restarts_is_waited_for(task: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    task.change(broken={"scontrol": "Unable to contact slurm controller"})
    monkeypatch.setattr(slurm_tools.time, "sleep", lambda _: task.change(broken={}))
    assert slurm_task.is_wanted()


def test_an_own_reason_is_kept_and_a_new_start_forgets_it(
    task: FakeSlurm, process_exit: ProcessExit, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (DataError("first"), DataError("second")):
        with pytest.raises(SystemExit) as caught:
            failed(error, process_exit)
        assert caught.value.code == 3
    assert json.loads(failure_file().read_text()) == {"code": 3, "text": "first", "start": 2}
    assert capsys.readouterr().err == "error: first\nerror: second\n"
    forget_failure()
    assert not failure_file().exists()


def test_anothers_reason_is_below_all_own_ones(task: FakeSlurm, process_exit: ProcessExit) -> None:
    with pytest.raises(SystemExit) as caught:
        failed(ProcessError("another stopped"), process_exit)
    assert caught.value.code == 1 and json.loads(failure_file().read_text())["code"] == 7
    with pytest.raises(SystemExit):
        failed(DataError("bad clip"), process_exit)
    with pytest.raises(SystemExit):
        failed(ProcessError("another stopped"), process_exit)
    assert json.loads(failure_file().read_text())["text"] == "bad clip"


def test_what_nobody_has_foreseen_is_kept_and_raised(
    task: FakeSlurm, process_exit: ProcessExit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's log gets the traceback, `status` the reason; partners that only noticed do not cover it."""

    def broken(*_: object) -> None:
        with pytest.raises(SystemExit):
            failed(ProcessError("another stopped"), process_exit)
        raise KeyError("nothing\nof this kind")

    monkeypatch.setattr(slurm_task, "ProcessExit", lambda: process_exit)
    monkeypatch.setattr(slurm_task, "place", lambda _: None)
    monkeypatch.setattr(slurm_task, "run_job", broken)
    job = training("runs/x", 1)
    with pytest.raises(KeyError):
        PartTask(job=job, part=job.parts[0], cpus=1, gpu=False, interface=None, meet_s=1.0)()
    said = json.loads(failure_file().read_text())
    assert (said["code"], said["start"]) == (1, 2)
    assert said["text"].startswith("fold_1: expected no unexpected error, got KeyError: 'nothing")
    assert said["text"].endswith("`dfer-launch logs runs/x fold_1` shows where it occurred; please report it.")


def test_what_an_earlier_start_left_is_replaced(task: FakeSlurm, process_exit: ProcessExit) -> None:
    failure_file().write_text(json.dumps({"code": 8, "text": "a newer copy", "start": 1}))
    with pytest.raises(SystemExit):
        failed(DataError("bad clip"), process_exit)
    assert json.loads(failure_file().read_text())["text"] == "bad clip"


@pytest.mark.parametrize(("now", "kept"), [("=2", True), ("=3", False)])
def test_an_orphan_says_nothing_in_the_name_of_the_newer_start(
    task: FakeSlurm, process_exit: ProcessExit, now: str, kept: bool
) -> None:
    says(task, RUNNING.replace("=2", now))
    with pytest.raises(SystemExit) as caught:
        failed(FencedError("a newer copy"), process_exit)
    assert caught.value.code == 8 and failure_file().exists() is kept


# --- trying again


def retried(task: FakeSlurm, folder: Path, code: int, most: int = 3) -> bool:
    before = len(task.calls)
    assert slurm_retry.main(folder, most, code) == code
    return ["scontrol", "requeue", "30_1"] in task.calls[before:]


@pytest.mark.parametrize(("code", "again"), [(1, True), (137, True), (134, True), (0, False), (9, False), (255, False)])
def test_lost_processes_are_tried_again(task: FakeSlurm, tmp_path: Path, code: int, again: bool) -> None:
    assert retried(task, tmp_path, code) is again


@pytest.mark.parametrize(
    ("own", "again"), [(1, True), (2, False), (3, False), (8, False), (10, False), (6, True), (7, True)]
)
def test_a_reason_that_lasts_is_not(task: FakeSlurm, tmp_path: Path, own: int, again: bool) -> None:
    (tmp_path / "30_1_failure.json").write_text(json.dumps({"code": own, "text": "x", "start": 2}))
    assert retried(task, tmp_path, 137) is again


def test_the_reason_of_an_earlier_start_does_not_count(task: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "30_1_failure.json").write_text(json.dumps({"code": 8, "text": "x", "start": 1}))
    assert retried(task, tmp_path, 137)


def test_there_is_an_end_to_it(task: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [retried(task, tmp_path, 137, most=2) for _ in range(3)] == [True, True, False]
    assert "2 restarts after failures: not tried again" in capsys.readouterr().err


def test_an_orphan_does_not_disturb_the_newer_start(task: FakeSlurm, tmp_path: Path) -> None:
    says(task, RUNNING.replace("Restarts=2", "Restarts=3"))
    assert not retried(task, tmp_path, 1)


@pytest.mark.parametrize("silent", ["scontrol", "scontrol requeue"])
def test_a_controller_that_stays_silent_is_told_and_counts_no_restart(
    task: FakeSlurm, tmp_path: Path, patient: list[float], capsys: pytest.CaptureFixture[str], silent: str
) -> None:
    task.change(broken={silent: "down"})
    assert slurm_retry.main(tmp_path, 3, 1) == 1
    assert "error: not requeued: scontrol: expected an answer" in capsys.readouterr().err and sum(patient) >= 60
    assert (tmp_path / "30_1_failures").read_text() == "0"


def test_a_controller_that_restarts_is_waited_for_before_a_restart(
    task: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.change(broken={"scontrol": "Unable to contact slurm controller"})
    monkeypatch.setattr(slurm_tools.time, "sleep", lambda _: task.change(broken={}))
    assert retried(task, tmp_path, 137)


# --- exit


@pytest.mark.parametrize("code", [0, 9])
def test_what_happens_after_pythons_end_does_not_change_the_code(code: int) -> None:
    """`late` stands for a library whose threads abort the process; it was imported, so registered, after us."""
    text = f"""
import atexit, os, sys
from dfer.exit import ProcessExit
process_exit = ProcessExit()
class Late:
    def __del__(self): os.abort()
sys.late = Late()
atexit.register(lambda: print("tidied up"))
print("done")
process_exit.exit_with({code})
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "done\ntidied up\n")


def test_without_a_code_a_process_ends_as_always() -> None:
    text = "from dfer.exit import ProcessExit; ProcessExit(); raise SystemExit(4)"
    assert subprocess.run([sys.executable, "-c", text], timeout=60, check=False).returncode == 4
