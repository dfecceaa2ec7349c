"""Ray: what it is asked for, how a part ends, and a real one with two processes."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from ray.exceptions import RuntimeEnvSetupError

from dfer.errors import DataError, DferError, FencedError, ProcessError, StoppedError, StorageError, UsageError
from dfer.interruption import Stop
from dfer.storage import Folder
from launch import __main__ as cli
from launch.cluster import RayCluster, load_cluster
from launch.job import Job
from launch.ray import cluster as ray_cluster
from launch.ray import driver as ray_driver
from launch.ray import submit as module
from launch.ray import worker as ray_worker
from launch.ray.board import Board, Ending
from launch.ray.driver import Driver
from launch.ray.submit import Submission
from launch.ray.worker import Trial, run_part
from launch.records import Record, keep, records
from tests import fake_runs
from tests.unit.launch.conftest import training

ROOT = Path(__file__).parents[3]
NOBODY = (
    "Ray at auto: expected a cluster, got {}. "
    "Start one (`ray start --head`), set RAY_ADDRESS or cluster.address, or use `dfer-launch local`."
)
REFUSED = "Ray at auto: expected a connection to the cluster, got {}. Correct the cluster file or the installation."


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return training(tmp_path / "run", 1, 2)


def submission(job: Job, **cluster: Any) -> Submission:
    return Submission(job=job, cluster=RayCluster(**cluster))


# --- what Ray is asked for


def test_scaling_is_fixed_or_elastic(job: Job) -> None:
    fixed = submission(job, workers=4, gpu=True, cpus_per_worker=6).scaling()
    assert fixed == {"num_workers": 4, "use_gpu": True, "resources_per_worker": {"CPU": 6.0, "GPU": 1.0}}
    elastic = submission(job, workers=4, min_workers=2, grow_s=90, resources={"fast": 0.5}).scaling()
    assert elastic["num_workers"] == (2, 4) and elastic["elastic_resize_monitor_interval_s"] == 90
    assert elastic["resources_per_worker"] == {"CPU": 1.0, "fast": 0.5}


def test_the_code_goes_along_unless_the_job_brought_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    brought = submission(job, env_vars={"NCCL_DEBUG": "INFO"}).runtime_env()
    assert brought["py_modules"] == [str(ROOT / name) for name in ("dfer", "launch", "shards")]
    assert brought["env_vars"] == {"NCCL_DEBUG": "INFO"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_7"}}))
    monkeypatch.chdir(ROOT)
    assert submission(job).runtime_env() == {} and ray_cluster.submission_id() == "raysubmit_7"
    monkeypatch.chdir(tmp_path)
    assert "py_modules" in submission(job).runtime_env()


def in_job(folder: Path, monkeypatch: pytest.MonkeyPatch, *, working_dir: str | None) -> None:
    """As in a process that `ray job submit` started."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    config = {"runtime_env": {"working_dir": working_dir} if working_dir else {}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("run=runs/x", "data.shards=s3://b/x"), "run"),
        (("run=s3://b/run", "data.shards=data/x"), "data.shards"),
        (("run=s3://b/run", "data.shards=../elsewhere/../job/x"), "data.shards"),
    ],
)
def test_places_in_the_jobs_own_folder_are_refused(
    words: tuple[str, ...],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the shards are looked for, which are not there: git ignores data/, so Ray does not upload it."""
    in_job(tmp_path / "job", monkeypatch, working_dir="gcs://_ray_pkg_0123.zip")
    assert cli.main(["ray", str(ROOT / "configs/demo.yaml"), *words]) == 2
    said = (
        f"error: {key}: expected a folder that outlives the job, got one in its working folder. Give {key}=URL, or an"
    )
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("working_dir", "run"), [("gcs://_ray_pkg_0123.zip", "job2"), (None, "job/run"), ("local:///job", "job/run")]
)
def test_places_that_outlive_the_job_are_not(
    working_dir: str | None, run: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_job(tmp_path / "job", monkeypatch, working_dir=working_dir)
    ray_cluster.refuse_working_folder({"run": str(tmp_path / run), "data.shards": "s3://b/x"})


def test_a_driver_outside_a_job_may_use_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    ray_cluster.refuse_working_folder({"run": "run"})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Could not find any running Ray instance. More words.\nMany lines."), NOBODY),
        (RuntimeError("Failed to connect to GCS. Last connection error: Traceback\n ..."), NOBODY),
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9"), REFUSED),
        (ValueError("bad env_vars"), REFUSED),
        (RuntimeEnvSetupError("Package size (900 MiB) exceeds the maximum size"), REFUSED),
    ],
)
def test_no_cluster_and_one_that_refuses_are_told_apart(
    error: Exception, said: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PRINT_PATCH", raising=False)
    with pytest.raises(UsageError) as caught:
        submission(job).run()
    assert str(caught.value) == said.format(" ".join(str(error).split()).rstrip(". "))


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "[::1]:{}", "nobody.invalid:1", "127.0.0.1:123456"])
def test_an_address_at_which_nobody_answers_is_told_before_ray_tries(
    address: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries for a quarter of an hour"))
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PRINT_PATCH", raising=False)
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        there = address.format(free.getsockname()[1])
        with pytest.raises(UsageError) as caught:
            submission(job, address=there).run()
    assert str(caught.value).startswith(f"Ray at {there}: expected a cluster, got ")
    assert str(caught.value).endswith("RAY_ADDRESS or cluster.address, or use `dfer-launch local`.")


def hosts(*cpus: float) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": count}} for count in cpus]


@pytest.mark.parametrize(
    ("cpus", "cluster", "folds"),
    [
        ((4, 4), {"workers": 2}, 4),
        ((3, 3), {"workers": 2, "cpus_per_worker": 2}, 1),  # a process does not stretch over two hosts
        ((4,), {"workers": 8, "min_workers": 2}, 1),
        ((1,), {"workers": 2}, 0),
        ((4,), {"workers": 1, "gpu": True}, 0),
    ],
)
def test_folds_are_bounded_by_what_the_hosts_have(
    cpus: tuple[float, ...], cluster: dict[str, Any], folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [*hosts(*cpus), {"Alive": False, "Resources": {"CPU": 99.0}}])
    assert ray_cluster.room_in(RayCluster(**cluster)) == folds


def test_too_small_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    error = ray_cluster.too_small(RayCluster(workers=4, gpu=True))
    assert str(error).startswith("the Ray cluster: expected room for 4 processes of 1 CPU, 1 GPU, got 2 CPU, 0 GPU.")


def test_the_cluster_file_is_read() -> None:
    path = ROOT / "configs" / "clusters" / "ray.yaml"
    assert load_cluster(path, RayCluster, ["workers=3", "min_workers=2"]).worlds == [2, 3]
    with pytest.raises(UsageError, match="min_workers: expected at most workers=4, got 9"):
        load_cluster(path, RayCluster, ["min_workers=9"])


# --- how a part ends


class Actor:
    """A board that answers like an actor, without Ray."""

    def __init__(self) -> None:
        self.board = Board()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.board, name))


@pytest.fixture
def trial(job: Job, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(ray_worker.ray, "get", lambda value, **_: value)
    monkeypatch.setattr(ray_worker, "place", lambda _: None)
    return Trial(job=job, part=job.parts[1], gpu=False, interface=None, meet_s=5.0, board=Actor(), mark="")


@pytest.mark.parametrize("error", [DataError("bad clip"), FencedError("newer copy"), UsageError("wrong")])
def test_what_lasts_is_not_tried_again(trial: Trial, error: DferError, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def fail(*_: object) -> None:
        starts.append(1)
        raise error

    monkeypatch.setattr(ray_worker, "run_job", fail)
    with pytest.raises(type(error)):
        run_part(trial)
    run_part(trial)
    assert len(starts) == 1
    assert trial.board.board.endings().get("fold_2") == Ending(code=error.exit_code, text=str(error))
    assert trial.board.board.endings().get("fold_1") is None


def test_after_a_stop_there_is_nothing_to_start_again(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("saved")

    monkeypatch.setattr(ray_worker, "run_job", stop)
    run_part(trial)
    assert trial.board.board.endings() == {"fold_2": Ending(code=9, text="saved")}


@pytest.mark.parametrize("error", [ProcessError("partner lost"), StorageError("503")])
def test_what_may_pass_is(trial: Trial, error: DferError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ray_worker, "run_job", fail)
    for _ in range(2):
        with pytest.raises(type(error)):
            run_part(trial)
    assert trial.board.board.endings().get("fold_2") is None
    assert trial.board.board.news() == [f"fold_2: {error}"] * 2 and trial.board.board.news() == []


def test_a_fold_that_gets_room_after_the_stop_is_not_begun(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "run_job", lambda *_: pytest.fail("it was trained"))
    trial.board.board.request_stop("SIGTERM")
    run_part(trial)
    assert trial.board.board.endings().get("fold_2").code == StoppedError.exit_code


def test_silence_is_that_of_every_fold() -> None:
    board = Board()
    assert board.heartbeat("fold_3") == "" and board.since_heartbeat().keys() == {"fold_3"}
    time.sleep(0.05)
    board.heartbeat("fold_4")
    silence = board.since_heartbeat()
    assert silence["fold_3"] - silence["fold_4"] > 0.04


def test_the_first_ending_of_a_fold_stays() -> None:
    board = Board()
    board.end("fold_1", Ending(code=3, text="a"))
    board.end("fold_1", Ending(code=7, text="b"))
    assert board.endings().get("fold_1") == Ending(code=3, text="a")


def test_a_wish_reaches_the_training(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "POLL_STOP_S", 0.01)
    heard = threading.Event()

    def wait(_job: Job, _part: object, _place: object, stop: Stop) -> None:
        trial.board.board.request_stop("SIGTERM")
        trial.board.board.request_stop("later")
        while not stop.requested:
            threading.Event().wait(0.01)
        assert stop.reason == "SIGTERM"
        heard.set()

    monkeypatch.setattr(ray_worker, "run_job", wait)
    run_part(trial)
    assert heard.is_set()


def test_a_host_that_does_not_share_the_run_folder_is_named(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "MARK_S", 0.0)
    monkeypatch.setattr(ray_worker, "run_job", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(UsageError, match="without the driver's file"):
        run_part(replace(trial, mark="launch/.shared-1"))
    told = trial.board.board.endings().get("fold_2")
    assert told.code == UsageError.exit_code
    expected = f"host {socket.gethostname()}: expected the run folder {trial.job.run} as the driver's host has it, got"
    assert told.text.startswith(expected)
    assert told.text.endswith("Give run=FOLDER on storage that all hosts share, or a URL.")


def test_a_shared_run_folder_is_waited_for_a_little(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = threading.Event()
    monkeypatch.setattr(ray_worker, "run_job", lambda *_: trained.set())
    later = threading.Timer(0.3, Folder(trial.job.run).write, args=("launch/.shared-1", b""))
    later.start()
    run_part(replace(trial, mark="launch/.shared-1"))
    later.join()
    assert trained.is_set() and trial.board.board.endings().get("fold_2") is None


# --- the driver, with folds that are only functions


class Trainer:
    """What a fold does instead of starting Ray's processes: nothing, unless a test says more."""

    does: Callable[[str], None]
    marks: list[str]
    heard: bool

    def __init__(self, part: str, board: Any, mark: str) -> None:
        self.part, self.board = part, board
        Trainer.marks.append(mark)

    def fit(self) -> None:
        """Heard at its start, as the processes of a fold are."""
        if Trainer.heard:
            self.board.heartbeat.remote(self.part)
        Trainer.does(self.part)


@pytest.fixture
def driver(job: Job, monkeypatch: pytest.MonkeyPatch) -> Driver:
    import ray

    monkeypatch.setattr(ray, "get", lambda value, **_: value)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray_driver, "make_board", Actor)
    monkeypatch.setattr(ray_driver, "room_in", lambda _: 2)
    monkeypatch.setattr(ray_driver, "POLL_S", 0.01)
    monkeypatch.setattr(module, "trainer", lambda _submission, part, board, mark: Trainer(part.name, board, mark))
    monkeypatch.setattr(Trainer, "marks", [], raising=False)
    monkeypatch.setattr(Trainer, "does", lambda _: None, raising=False)
    monkeypatch.setattr(Trainer, "heard", True, raising=False)
    return make_driver(job)


def make_driver(job: Job, **cluster: Any) -> Driver:
    mine = submission(job, **cluster)
    return Driver(
        mine.cluster, Folder(job.run), [part.name for part in job.parts], mine._fit, address="", revision="abc"
    )


def states(job: Job) -> dict[str, str]:
    return records(Folder(job.run))[-1].states


def states_of(driver: Driver) -> dict[str, str]:
    return driver._record.states


def test_the_record_says_how_every_fold_ended(driver: Driver, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def do(part: str) -> None:
        assert states(job).keys() == {"fold_1", "fold_2"}
        if part == "fold_2":
            raise RuntimeError("lost")

    monkeypatch.setattr(Trainer, "does", do)
    assert driver.run() == ProcessError.exit_code
    assert states(job)["fold_1"] == "finished"
    assert states(job)["fold_2"].startswith(
        "failed: fold_2: expected at most 3 lost processes, got RuntimeError: lost. The"
    )


@pytest.fixture
def joined(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Submission.run` needs of a cluster."""
    monkeypatch.setattr(module, "connected", lambda *_: nullcontext(""))


@pytest.mark.usefixtures("joined")
def test_a_failed_fold_leaves_a_report_of_the_others(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(part: str) -> None:
        if part == "fold_2":
            raise RuntimeError("lost")
        fake_runs.write_fold(Path(job.run) / "fold_1", fake_runs.result(fold=1), curves=False)

    monkeypatch.setattr(Trainer, "does", do)
    assert submission(job).run() == ProcessError.exit_code
    out, err = capsys.readouterr()
    assert "1 of 5 folds" in out and "expected a result of every part, got none of fold_2" in err


@pytest.mark.usefixtures("joined")
def test_a_stop_leaves_none(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def do(_: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        raise RuntimeError("killed before it could save")

    monkeypatch.setattr(Trainer, "does", do)
    assert submission(job).run() == ProcessError.exit_code
    assert "expected a result" not in capsys.readouterr().err


def test_an_outage_of_the_store_ends_no_fold_and_is_told_once(
    driver: Driver, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writes: list[Record] = []
    away, back = threading.Event(), threading.Event()

    def write(home: Folder, record: Record) -> None:
        writes.append(record)
        if 2 <= len(writes) <= 4:
            away.set()
            raise StorageError("s3://b/run: expected to write it, got 503. Wait.")
        if len(writes) > 4:
            back.set()
        keep(home, record)

    monkeypatch.setattr(ray_driver, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(ray_driver, "keep", write)
    monkeypatch.setattr(Trainer, "does", lambda _: away.wait(20) and back.wait(20))
    assert driver.run() == 0 and away.is_set() and back.is_set()
    assert states(job) == {"fold_1": "finished", "fold_2": "finished"}
    note = "note: the parts go on, but `dfer-launch status` is behind: s3://b/run: expected to write it, got 503. Wait."
    assert capsys.readouterr().err.splitlines() == [note]


def test_a_run_folder_that_cannot_be_written_is_told_before_a_fold_starts(
    driver: Driver, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(job.run).write_text("a file")
    monkeypatch.setattr(Trainer, "does", lambda _: pytest.fail("a fold was started"))
    with pytest.raises(StorageError, match="expected to write it"):
        driver.run()


def test_the_drivers_file_is_in_a_folder_on_a_disk_while_folds_run(
    driver: Driver, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(Trainer, "does", lambda _: seen.append((Path(job.run) / Trainer.marks[0]).exists()))
    driver.run()
    assert seen == [True, True] and Trainer.marks[0].startswith("launch/.shared-")
    assert len(set(Trainer.marks)) == 1 and not (Path(job.run) / Trainer.marks[0]).exists()


@pytest.mark.usefixtures("driver")
def test_a_store_is_shared_by_its_nature(job: Job) -> None:
    other = training("memory://bucket/run", 1, 2)
    make_driver(other).run()
    assert Trainer.marks == ["", ""]


def test_a_fold_without_room_waits_and_says_for_what(
    driver: Driver, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs once one of its processes is heard, not when Ray is asked for them."""
    why = "no process of it has started or answers; it takes 1 process of 1 CPU, free are 1 CPU"
    seen: dict[str, list[str]] = {"fold_1": [], "fold_2": []}

    def until(part: str, state: str) -> None:
        deadline = time.monotonic() + 20
        while not states(job)[part].startswith(state):
            assert time.monotonic() < deadline, states(job)
            time.sleep(0.01)
        seen[part].append(states(job)[part])

    def do(part: str) -> None:
        until(part, f"waiting: {why}")
        driver._board.heartbeat.remote(part)
        until(part, "running")

    monkeypatch.setattr(ray_driver, "NOTE_S", 0.05)
    monkeypatch.setattr(ray_driver, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(Trainer, "heard", False)
    monkeypatch.setattr(Trainer, "does", do)
    assert driver.run() == 0
    assert seen == {"fold_1": [f"waiting: {why}", "running"], "fold_2": [f"waiting: {why}", "running"]}
    told = [f"note: {part}: {why}. `ray status` shows what uses the resources." for part in ("fold_1", "fold_2")]
    assert sorted(capsys.readouterr().err.splitlines()) == told


def test_a_driver_that_is_stopped_does_not_wait_for_folds_without_a_process(
    job: Job, driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for one that has no room, nor for one it has not asked Ray for, nor for one whose processes hang."""
    never = threading.Event()
    monkeypatch.setattr(Trainer, "heard", False)
    monkeypatch.setattr(Trainer, "does", lambda _: os.kill(os.getpid(), signal.SIGTERM) or never.wait(60))
    monkeypatch.setattr(ray_driver, "room_in", lambda _: 1)
    driver._board.board._heartbeats["fold_1"] = time.monotonic() - ray_driver.HEARTBEAT_TIMEOUT_S
    assert driver.run() == StoppedError.exit_code and driver.abandoned == ["fold_1"]
    never.set()
    said = "expected a running process that can save before the stop (SIGTERM), got none. The same command continues"
    assert [states(job)[part].startswith(f"stopped: {part}: {said}") for part in ("fold_1", "fold_2")] == [True, True]
    assert capsys.readouterr().err.count(said) == 2


def test_a_second_interruption_ends_at_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def interrupt(part: str) -> None:
        if part == "fold_1":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        never.wait(60)

    def exit(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(ray_driver, "exit_now", exit)
    monkeypatch.setattr(Trainer, "does", interrupt)
    with pytest.raises(SystemExit) as caught:
        driver.run()
    assert caught.value.code == 130 and driver.closed == "SIGINT"
    driver.abandoned = ["fold_1", "fold_2"]
    never.set()


@pytest.mark.usefixtures("joined")
def test_ray_is_not_left_while_threads_wait_in_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would crash: the process ends as it is, before the cluster is left."""
    never = threading.Event()
    left: list[str] = []

    @contextmanager
    def connected(*_: object) -> Iterator[str]:
        yield ""
        left.append("by Ray's own way")

    def exit(code: int) -> None:
        left.append("at once")
        raise SystemExit(code)

    monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(module, "exit_now", exit)
    monkeypatch.setattr(Trainer, "heard", False)
    monkeypatch.setattr(Trainer, "does", lambda _: os.kill(os.getpid(), signal.SIGTERM) or never.wait(60))
    with pytest.raises(SystemExit) as caught:
        submission(job).run()
    never.set()
    assert left == ["at once"] and caught.value.code == StoppedError.exit_code


@pytest.mark.usefixtures("joined")
def test_a_fold_that_has_ended_is_not_waited_for(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray starts its processes again, which has to wait for room. What ended it stands, and the report is made."""
    never = threading.Event()

    def fit(_self: object, part: str, board: Any, _mark: str) -> None:
        if part == "fold_1":
            board.end.remote(part, Ending(code=3, text="bad clip"))
            never.wait(60)
        fake_runs.write_fold(Path(job.run) / "fold_2", fake_runs.result(fold=2), curves=False)

    def exit(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(Submission, "_fit", fit)
    monkeypatch.setattr(module, "exit_now", exit)
    with pytest.raises(SystemExit) as caught:
        submission(job).run()
    never.set()
    assert caught.value.code == 3 and states(job) == {"fold_1": "failed: bad clip", "fold_2": "finished"}
    out, err = capsys.readouterr()
    assert "1 of 5 folds" in out and err.splitlines()[0] == "error: bad clip"


@pytest.mark.usefixtures("joined")
def test_a_record_that_cannot_be_read_is_told_once(
    job: Job, driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(job.run) / "launch").mkdir(parents=True)
    (Path(job.run) / "launch" / "other.json").write_text("{")
    monkeypatch.setattr(ray_driver, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(Trainer, "does", lambda _: time.sleep(0.1))
    assert driver.run() == 0
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("note: newer jobs of this run cannot be looked for: ") and "other.json: expected the" in told


def newer(job: Job, *, states: dict[str, str], launcher: Literal["slurm", "ray"] = "ray") -> None:
    """Another job's record."""
    keep(
        Folder(job.run),
        Record(launcher=launcher, job=f"other-{time.time_ns()}", submitted="2000", revision="abc", states=states),
    )


def test_a_job_that_was_submitted_again_gives_way(
    job: Job, driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the hosts' clocks say: newer is what was not there before. Its folds get the wish and save."""
    newer(job, states={"fold_1": "running"})

    def do(part: str) -> None:
        if part == "fold_1":
            newer(job, states={"fold_1": "waiting", "fold_2": "running"})
        while not driver._board.heartbeat.remote(part):
            time.sleep(0.01)
        driver._board.end.remote(part, Ending(code=9, text=f"{part}: saved"))

    monkeypatch.setattr(ray_driver, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(Trainer, "does", do)
    assert driver.run() == FencedError.exit_code
    assert driver.closed == "a newer job of this run was submitted"
    err = capsys.readouterr().err
    assert f"error: {job.run}: expected this to be the newest job of the run, got other-" in err
    assert states_of(driver) == {"fold_1": "stopped: fold_1: saved", "fold_2": "stopped: fold_2: saved"}


@pytest.mark.parametrize(
    ("states", "launcher"),
    [
        ({"fold_1": "finished", "fold_2": "finished"}, "ray"),
        ({"fold_1": "waiting", "fold_3": "running"}, "ray"),  # who would train fold 2?
        ({"fold_1": "running", "fold_2": "running"}, "slurm"),
    ],
)
def test_a_newer_record_that_does_not_want_all_of_its_folds_does_not_disturb(
    job: Job, driver: Driver, monkeypatch: pytest.MonkeyPatch, states: dict[str, str], launcher: Literal["slurm", "ray"]
) -> None:
    looked = threading.Event()
    there: list[int] = []

    def look(home: Folder) -> list[Record]:
        found = records(home)
        there.append(len(found))
        if there[-1] == 2 and there.count(2) > 2:
            looked.set()
        return found

    def do(part: str) -> None:
        if part == "fold_1":
            newer(job, states=states, launcher=launcher)
        assert looked.wait(20)

    monkeypatch.setattr(ray_driver, "records", look)
    monkeypatch.setattr(ray_driver, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(Trainer, "does", do)
    assert driver.run() == 0 and not driver.closed


def test_no_state_is_lost_among_threads(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(record: Record, **changes: Any) -> Record:
        time.sleep(0.01)
        return replace(record, **changes)

    monkeypatch.setattr(ray_driver, "replace", slow)
    threads = [threading.Thread(target=driver._say, args=(f"worker_{number}", "running")) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [driver._renewed().states[f"worker_{number}"] for number in range(10)] == ["running"] * 10


def test_the_cause_is_told_in_few_words() -> None:
    inner = RuntimeError("Traceback ...\n  many lines\nActorDiedError: killed")
    outer = Exception("page")
    outer.worker_failures = {1: inner}  # type: ignore[attr-defined]
    assert ray_driver._first_line(outer) == "RuntimeError: 'ActorDiedError: killed'"


def test_a_dry_run_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: Job
) -> None:
    monkeypatch.setattr("launch.job.make_job", lambda *_, **__: job)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    assert cli.main(["ray", "configs/demo.yaml", "--dry-run", "cluster.workers=3", "cluster.gpu=false"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["scaling"]["num_workers"] == 3 and plan["parts"] == ["fold_1", "fold_2"]
    assert os.environ["RAY_ADDRESS"] == "nowhere:1"
