"""SLURM over virtual hosts does what a user's cluster does: steps, arrays, refusals, queues, a restarted controller."""

import sys
from pathlib import Path

import pytest
import submitit

from tests.cluster import jobs
from tests.cluster.commands import BedError
from tests.cluster.slurm import SlurmBed

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def test_a_step_runs_once_on_each_of_four_hosts(slurm: SlurmBed) -> None:
    show = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
    out = slurm.command(["srun", "--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=2", "sh", "-c", show])
    rows = [line.split() for line in out.splitlines()]
    assert sorted(rows) == [[f"node{n}", str(n - 1), "0,1"] for n in range(1, 5)]


def test_commands_work_on_a_host_too(slurm: SlurmBed) -> None:
    out = slurm.run_on("node2", ["srun", "--nodes=2", "--nodelist=node1,node4", "hostname"]).stdout
    assert sorted(out.split()) == ["node1", "node4"]


def test_gloo_reduces_over_four_hosts(slurm: SlurmBed) -> None:
    words = ["srun", "--nodes=4", "--ntasks-per-node=1", f"--chdir={ROOT}", sys.executable, "-m", "tests.cluster.jobs"]
    out = slurm.command([*words, slurm.hosts["node1"].address], timeout=90)
    assert sorted(out.splitlines()) == [f"node{n} {n - 1} 6.0" for n in range(1, 5)]


def test_submitit_maps_an_array(slurm: SlurmBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.use(monkeypatch)
    executor = submitit.AutoExecutor(tmp_path)
    # submitit asks for a signal 90 s before the limit, and SLURM may send it a minute earlier still.
    executor.update_parameters(timeout_min=5, cpus_per_task=2, slurm_array_parallelism=5)
    found = [job.result() for job in executor.map_array(jobs.where, range(5))]
    assert [double for double, _ in found] == [0, 2, 4, 6, 8]
    assert {host for _, host in found} <= set(slurm.hosts)


def test_an_unknown_account_is_refused(slurm: SlurmBed) -> None:
    with pytest.raises(BedError, match="Invalid account or account/partition combination"):
        slurm.submit("true", "--account=nobody")
    job = slurm.submit("true", "--account=research")
    assert slurm.wait_job(job)["Account"] == "research"


def test_a_full_partition_lets_jobs_wait_and_a_closed_one_starts_none(slurm: SlurmBed) -> None:
    closed = slurm.submit("true", "--partition=closed")
    assert slurm.job(closed)["Reason"] == "PartitionDown"
    filler, waiting = slurm.fill("batch"), slurm.submit("true")
    assert slurm.wait_job(waiting, ("PENDING",))["Reason"] in ("Resources", "Priority", "None")
    slurm.command(["scancel", filler])
    slurm.wait_job(waiting)
    assert slurm.job(closed)["JobState"] == "PENDING"


def test_a_job_outlives_the_controller(slurm: SlurmBed) -> None:
    job = slurm.submit("sleep 2")
    slurm.wait_job(job, ("RUNNING",))
    slurm.restart_slurmctld()
    assert slurm.wait_job(job)["Restarts"] == "0"
