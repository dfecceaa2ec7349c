"""`dfer-launch ray` on a real Ray cluster, shards and run folders in a real bucket: lost processes and hosts, a job
submitted twice, elastic folds."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.launched import STEPS, TOTAL, UNSAVED, ZERO, Run, Undisturbed, in_bucket, sequence, within
from tests.cluster.ray_bed import RayBed
from tests.cluster.ray_jobs import submit_job, wait_job
from tests.servers import S3, SECRET

pytestmark = pytest.mark.cluster(long=True)

# A worker takes a host's two cores, so that two of them stand on two hosts.
PAIR = ("cluster.gpu=false", "cluster.workers=2", "cluster.cpus_per_worker=2", "--only", "fold_1", *STEPS)
PROCESS = "^ray::RayTrainWorker"
NEWER = "expected this to be the newest job of the run"
DRIVER = "^[^ ]*python[^ ]* [^ ]*/dfer-launch ray"


@pytest.fixture
def run(ray: RayBed, s3: S3, tmp_path: Path) -> Run:
    return in_bucket(s3, tmp_path, ray.env())


def submit(ray: RayBed, name: str, tiny: Path, run: Run, *words: str, env_vars: dict[str, str] | None = None) -> None:
    submit_job(ray, name, tiny, f"run={run.url}", *PAIR, *words, env_vars=env_vars)


def worker_hosts(ray: RayBed) -> list[str]:
    """Hosts on which processes of a fold run, those that can be lost first."""
    found = [name for name, host in ray.hosts.items() if not host.run(["pgrep", "-f", PROCESS], check=False).returncode]
    return sorted(found, key=lambda name: name == "head")


def kill_a_process(ray: RayBed) -> None:
    assert ray.kill_worker(worker_hosts(ray)[0], PROCESS)


def power_off(ray: RayBed) -> None:
    ray.power_off(worker_hosts(ray)[0])


def test_a_fold_under_deepspeed_goes_on_with_fewer_processes(ray: RayBed, run: Run, tiny: Path) -> None:
    """The first test, since Ray holds the room of a driver that was killed for three minutes, and an elastic fold takes
    what is left."""
    words = (
        "cluster.workers=3",
        "cluster.min_workers=2",
        "batch=12",
        "epochs=150",
        "engine={name: deepspeed, zero: 1}",
    )
    submit(ray, "elastic", tiny, run, *words)
    run.wait_steps(20)
    power_off(ray)
    wait_job(ray, "elastic", timeout=300)
    assert [start["processes"] for start in run.starts()] == [3, 2]


@pytest.mark.parametrize("disturb", [kill_a_process, power_off])
def test_a_disturbed_run_ends_the_same(
    ray: RayBed, run: Run, tiny: Path, undisturbed: Undisturbed, disturb: Callable[[RayBed], None]
) -> None:
    words = ZERO if disturb is kill_a_process else ()
    submit(ray, disturb.__name__, tiny, run, *words)
    run.wait_steps(40)
    disturb(ray)
    assert SECRET not in wait_job(ray, disturb.__name__)
    assert len(run.starts()) == 2 and run.starts()[1]["step"] >= 25
    run.assert_same(undisturbed(*words))
    assert run.status()["state"] == "finished"
    assert not [path for path in run.files.glob("**/*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_job_submitted_again_takes_over_on_a_full_cluster(ray: RayBed, run: Run, tiny: Path) -> None:
    """The first one has two of three hosts. It hears of the second, saves and makes room, so that nothing is lost.

    Ray takes up to half a minute to start a job; the first one has steps for longer.
    """
    words = (*UNSAVED, "epochs=400")
    submit(ray, "once", tiny, run, *words)
    run.wait_steps(40)
    seen = run.steps()
    submit(ray, "again", tiny, run, *words)
    assert f"{NEWER}, got again, submitted after it" in wait_job(ray, "once", "FAILED")
    wait_job(ray, "again")
    assert len(run.starts()) == 2 and run.starts()[1]["step"] >= seen
    assert [step for step, _ in sequence(run.files / "fold_1")] == list(range(1, 4 * TOTAL + 1))


def test_a_newer_job_takes_over_from_one_that_hangs(
    ray: RayBed, run: Run, tiny: Path, undisturbed: Undisturbed
) -> None:
    """All of the first one sleeps. Awake again it finds the run folder taken, writes nothing and says so."""
    submit(ray, "first", tiny, run, "cluster.cpus_per_worker=1")
    run.wait_steps(40)
    asleep = [("head", DRIVER), *((host, PROCESS) for host in worker_hosts(ray))]
    assert all(ray.kill_worker(host, what, signal="STOP") for host, what in asleep)
    submit(ray, "second", tiny, run, "cluster.cpus_per_worker=1")
    wait_until(lambda: len(run.starts()) == 2, 120, "the second job at work")
    for host, what in asleep:
        ray.kill_worker(host, what, signal="CONT")
    wait_job(ray, "second")
    told = wait_job(ray, "first", "FAILED")
    assert "got a newer copy at work there" in told or f"{NEWER}, got second" in told
    assert "Segmentation fault" not in told
    assert len(run.starts()) == 2
    run.assert_same(undisturbed())


def test_a_cancelled_job_saves_and_stops(ray: RayBed, run: Run, tiny: Path) -> None:
    submit(ray, "cancelled", tiny, run, *UNSAVED, "epochs=200", env_vars={"RAY_JOB_STOP_WAIT_TIME_S": "60"})
    run.wait_steps(40)
    assert "stopped Ray job cancelled" in run.ask("cancel")
    wait_job(ray, "cancelled", "STOPPED", timeout=90)
    row = run.status()
    assert row["state"] == "stopped" and row["checkpoint"] == row["step"] >= 40


def test_folds_beside_each_other_and_their_table(ray: RayBed, run: Run, tiny: Path, tmp_path: Path) -> None:
    words = ("cluster.cpus_per_worker=1", "--only", "fold_1,fold_2,fold_3", "epochs=3")
    submit(ray, "folds", tiny, run, *words, env_vars={"TMPDIR": str(tmp_path)})
    run.wait_finished(3)
    assert "3 of 5 folds" in wait_job(ray, "folds", timeout=120)
    told = run.ask("logs", "fold_1")
    assert "SUCCEEDED" not in told and "step" in told
    assert not list(tmp_path.glob("*checkpoint*"))  # Ray ends its processes without their last words


def test_a_driver_takes_the_code_along(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    """From a host of the cluster, without `ray job submit`; the run on a disk that all hosts share."""
    run = tmp_path / "run"
    words = [sys.executable, "-m", "launch", "ray", str(tiny), f"run={run}", *PAIR, "epochs=3"]
    done = ray.run_on("head", words, timeout=240)
    assert "1 of 5 folds" in done.stdout
    assert (run / "report" / "report.md").exists()


# --- what cannot work says so in time


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("interface", "cluster.interface=eth9", "expected network interface eth9"),
        ("small", "cluster.workers=8", "the Ray cluster: expected room for 8 processes of 2 CPU, got 6 CPU"),
        ("nowhere", "data.shards=s3://data/nowhere", "s3://data/nowhere/manifest.json: expected the manifest"),
    ],
)
def test_what_cannot_start_is_told_within_a_minute_and_not_tried_again(
    ray: RayBed, run: Run, tiny: Path, name: str, word: str, said: str
) -> None:
    began = time.monotonic()
    submit(ray, name, tiny, run, word, "cluster.wait_s=2")
    logs = wait_job(ray, name, "FAILED", timeout=90)
    within(60, began)
    assert said in logs and "FailurePolicy] RAISE" not in logs


def test_a_store_that_does_not_answer_is_told_within_a_minute(ray: RayBed, run: Run, tiny: Path) -> None:
    with socket.create_server((ray.network.gateway, 0)) as nobody:
        silent = S3(f"http://{ray.network.gateway}:{nobody.getsockname()[1]}").environment
        began = time.monotonic()
        submit(ray, "silent", tiny, run, env_vars={"AWS_ENDPOINT_URL_S3": silent["AWS_ENDPOINT_URL_S3"]})
        logs = wait_job(ray, "silent", "FAILED", timeout=90)
        within(60, began)
    assert "shards: expected an answer within 25 s, got none" in logs  # they are asked first
