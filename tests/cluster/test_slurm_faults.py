"""What SLURM does when hosts die or jobs have to make room, as the launchers must expect it."""

from pathlib import Path

import pytest
import submitit

from tests.cluster import jobs
from tests.cluster.commands import wait_until
from tests.cluster.slurm import SlurmBed

pytestmark = pytest.mark.cluster(long=True)

# Says five times a second who is alive; what the first copy of a job says must end when a second one starts.
BEAT = 'while sleep 0.2; do echo "$(hostname) ${SLURM_RESTART_COUNT:-0}" >> %s; done'


def beats(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_preempted_job_is_asked_for_a_checkpoint_and_continues(
    slurm: SlurmBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.use(monkeypatch)
    executor = submitit.AutoExecutor(tmp_path, slurm_max_num_timeout=3)
    executor.update_parameters(timeout_min=5, cpus_per_task=4, slurm_partition="low")
    job = executor.submit(jobs.Count(), 150, tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").exists(), 20, "the job's first line")
    slurm.preempt(list(slurm.hosts))
    start, end = job.result()
    assert (0 < start < 150, end) == (True, 150)
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    assert int(slurm.job(job.job_id)["Restarts"]) >= 1


def test_the_job_of_a_host_without_power_is_requeued(slurm: SlurmBed, tmp_path: Path) -> None:
    job = slurm.submit(BEAT % (tmp_path / "beats"), "--nodelist=node1")
    wait_until(lambda: beats(tmp_path / "beats"), 20, "the first copy")
    slurm.power_off("node1")
    slurm.wait_job(job, ("PENDING",), timeout=60)
    slurm.power_on("node1")
    wait_until(lambda: "node1 1" in beats(tmp_path / "beats"), 60, "the second copy")
    assert slurm.job(job)["Restarts"] == "1"


def test_the_job_of_an_unreachable_host_is_requeued_beside_a_living_orphan(slurm: SlurmBed, tmp_path: Path) -> None:
    path = tmp_path / "beats"
    job = slurm.submit(BEAT % path)
    wait_until(lambda: beats(path), 20, "the first copy")
    host = slurm.job(job)["NodeList"]
    slurm.black_hole(host)
    wait_until(lambda: any(line.endswith(" 1") for line in beats(path)), 90, "a second copy")
    _both_alive(path, host)


def test_the_job_of_a_dead_slurmd_is_requeued_beside_a_living_orphan(slurm: SlurmBed, tmp_path: Path) -> None:
    path = tmp_path / "beats"
    job = slurm.submit(BEAT % path)
    wait_until(lambda: beats(path), 20, "the first copy")
    host = slurm.job(job)["NodeList"]
    slurm.kill_slurmd(host)
    slurm.mark_down(host)
    wait_until(lambda: any(line.endswith(" 1") for line in beats(path)), 60, "a second copy")
    _both_alive(path, host)


def _both_alive(path: Path, first: str) -> None:
    seen = len(beats(path))
    wait_until(lambda: len(beats(path)) > seen + 10, 20, "more beats")
    recent = set(beats(path)[seen:])
    assert f"{first} 0" in recent
    assert len({line.split()[0] for line in recent}) == 2


def test_a_reset_ends_orphans_and_brings_hosts_back(slurm: SlurmBed, tmp_path: Path) -> None:
    path = tmp_path / "beats"
    host = slurm.wait_job(slurm.submit(BEAT % path), ("RUNNING",))["NodeList"]
    wait_until(lambda: beats(path), 20, "the first copy")
    slurm.kill_slurmd(host)
    others = [name for name in slurm.hosts if name != host]
    slurm.power_off(others[0])
    slurm.mark_down(others[0])
    slurm.black_hole(others[1])
    slurm.reset()
    assert "beats" not in slurm.run_on(host, ["ps", "-e", "-o", "args"]).stdout
    assert set(slurm.states().values()) == {"idle"}
    assert sorted(slurm.command(["srun", "--nodes=4", "hostname"], timeout=20).split()) == sorted(slurm.hosts)
