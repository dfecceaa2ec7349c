"""`dfer-launch ray` on a real Ray cluster: lost processes and hosts, a job submitted twice, elastic folds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.launched import ROOT, STEPS, assert_same, launch, starts, status, steps, wait_finished, wait_steps
from tests.cluster.ray_bed import RayBed

pytestmark = pytest.mark.cluster(long=True)

# A worker takes a host's two cores, so that two of them stand on two hosts.
PAIR = ("cluster.gpu=false", "cluster.workers=2", "cluster.cpus_per_worker=2", "--folds", "1", *STEPS)
EXCLUDES = [".venv", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", "demo"]


def submit(ray: RayBed, name: str, tiny: Path, run: Path, *words: str) -> None:
    """`ray job submit` with this checkout as the job's working folder."""
    environment = {"env_vars": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}, "excludes": EXCLUDES}
    options = ["--no-wait", f"--submission-id={name}", f"--working-dir={ROOT}"]
    command = [sys.executable, "-m", "launch", "ray", str(tiny), f"run={run}", *PAIR, *words]
    ray.ray("job", "submit", *options, f"--runtime-env-json={json.dumps(environment)}", "--", *command, timeout=120)


def state_of(ray: RayBed, name: str) -> str:
    return str(ray.get(f"/api/jobs/{name}")["status"])


def wait_job(ray: RayBed, name: str, state: str = "SUCCEEDED", timeout: float = 240) -> None:
    wait_until(lambda: state_of(ray, name) in ("SUCCEEDED", "FAILED", "STOPPED"), timeout, f"the end of job {name}")
    assert state_of(ray, name) == state, ray.ray("job", "logs", name)[-4000:]


def worker_hosts(ray: RayBed) -> list[str]:
    """Hosts on which processes of a fold run, those that can be lost first."""
    pattern = ["pgrep", "-f", "^ray::RayTrainWorker"]
    found = [name for name, host in ray.hosts.items() if not host.run(pattern, check=False).returncode]
    return sorted(found, key=lambda name: name == "head")


def kill_a_process(ray: RayBed) -> None:
    assert ray.kill_worker(worker_hosts(ray)[0], "^ray::RayTrainWorker")


def power_off(ray: RayBed) -> None:
    ray.power_off(worker_hosts(ray)[0])


@pytest.mark.parametrize("disturb", [kill_a_process, power_off])
def test_a_disturbed_run_ends_the_same(
    ray: RayBed, tiny: Path, tmp_path: Path, undisturbed: Path, disturb: Callable[[RayBed], None]
) -> None:
    run = tmp_path / "run"
    submit(ray, f"{disturb.__name__}-{run.parent.name}", tiny, run)
    wait_steps(run, 40)
    disturb(ray)
    wait_job(ray, f"{disturb.__name__}-{run.parent.name}")
    assert len(starts(run)) == 2
    assert_same(run, undisturbed)
    assert status({}, run)["state"] == "finished"


def test_a_job_submitted_twice_gives_one_result(ray: RayBed, tiny: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    words = ("cluster.cpus_per_worker=1",)
    submit(ray, "first", tiny, run, *words)
    wait_steps(run, 10)
    submit(ray, "second", tiny, run, *words)
    wait_job(ray, "second")
    wait_until(lambda: state_of(ray, "first") in ("SUCCEEDED", "FAILED"), 60, "the end of the first job")
    if state_of(ray, "first") == "FAILED":
        assert "got a newer copy at work there" in ray.ray("job", "logs", "first")
    assert_same(run, undisturbed)


def test_a_fold_goes_on_with_fewer_processes(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(ray, "elastic", tiny, run, "cluster.workers=3", "cluster.min_workers=2", "batch=12", "epochs=150")
    wait_until(lambda: steps(run) >= 20, 120, "step 20")
    power_off(ray)
    wait_job(ray, "elastic", timeout=360)
    assert [start["processes"] for start in starts(run)] == [3, 2]


def test_folds_beside_each_other_and_their_table(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(ray, "folds", tiny, run, "cluster.cpus_per_worker=1", "--folds", "1,2,3", "epochs=3")
    wait_finished(run, 3)
    wait_job(ray, "folds", timeout=120)
    assert "3 of 5 folds" in ray.ray("job", "logs", "folds")
    assert "SUCCEEDED" not in launch(ray.env(), "logs", run, 1) and "step" in launch(ray.env(), "logs", run, 1)


def test_a_wrong_interface_is_told_and_not_tried_again(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(ray, "interface", tiny, run, "cluster.interface=eth9")
    wait_job(ray, "interface", "FAILED", timeout=120)
    logs = ray.ray("job", "logs", "interface")
    assert "expected network interface eth9" in logs and "FailurePolicy] RAISE" not in logs
    assert status({}, run)["state"] == "failed"


def test_a_driver_takes_the_code_along(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    """From a host of the cluster, without `ray job submit`."""
    run = tmp_path / "run"
    words = [sys.executable, "-m", "launch", "ray", str(tiny), f"run={run}", *PAIR, "epochs=3"]
    done = ray.run_on("head", words, timeout=240)
    assert "1 of 5 folds" in done.stdout and steps(run) == 9


def test_too_small_a_cluster_is_told(ray: RayBed, tiny: Path, tmp_path: Path) -> None:
    submit(ray, "small", tiny, tmp_path / "run", "cluster.workers=8", "cluster.wait_s=2")
    wait_job(ray, "small", "FAILED", timeout=90)
    assert "the Ray cluster: expected room for 8 processes of 2 CPU, got 6 CPU" in ray.ray("job", "logs", "small")
