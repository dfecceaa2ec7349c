"""`dfer-launch slurm` on a real SLURM: whatever happens on the way, a run ends as the undisturbed one, bit for bit."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.launched import (
    STEPS,
    assert_same,
    launch,
    starts,
    status,
    wait_finished,
    wait_steps,
    within,
)
from tests.cluster.slurm import SlurmBed
from tests.integration.commands import result

pytestmark = pytest.mark.cluster(long=True)

CPU = Path(__file__).parents[2] / "configs" / "clusters" / "slurm_cpu.yaml"
# Two hosts, a process on each; a limit of some minutes.
PAIR = (
    "--cluster", CPU, "cluster.nodes=2", "cluster.processes_per_node=1", "cluster.cpus_per_process=1",
    "cluster.hours=0.2", "--folds", "1", *STEPS,
)  # fmt: skip
FOLDS = [f"fold_{number}" for number in range(1, 6)]


def hosts_of(slurm: SlurmBed, job: str) -> list[str]:
    return slurm.scontrol("show", "hostnames", slurm.job(job)["NodeList"]).split()


def job_of(env: dict[str, str], run: Path) -> str:
    return str(status(env, run)["job"])


# --- disturbances, each on a run that is at work


def preempt(slurm: SlurmBed, job: str) -> None:
    slurm.preempt(hosts_of(slurm, job))


def power_off(slurm: SlurmBed, job: str) -> None:
    slurm.power_off(hosts_of(slurm, job)[1])


def power_off_the_first(slurm: SlurmBed, job: str) -> None:
    slurm.power_off(hosts_of(slurm, job)[0])


def orphan(slurm: SlurmBed, job: str) -> None:
    host = hosts_of(slurm, job)[0]
    slurm.kill_slurmd(host)
    slurm.mark_down(host)  # at once, while the first copy lives on


def kill_a_process(slurm: SlurmBed, job: str) -> None:
    assert slurm.hosts[hosts_of(slurm, job)[1]].kill("python.*submitit.core._submit", whole_line=True)


@pytest.mark.parametrize("disturb", [preempt, power_off, power_off_the_first, orphan, kill_a_process])
def test_a_disturbed_run_ends_the_same(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, undisturbed: Path, disturb: Callable[[SlurmBed, str], None]
) -> None:
    run = tmp_path / "run"
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}", "cluster.partition=low")
    wait_steps(run, 40)
    disturb(slurm, job_of(slurm.env(), run))
    wait_finished(run)
    assert len(starts(run)) >= 2
    if disturb is preempt:  # asked first: nothing is done twice
        assert starts(run)[1]["step"] >= 40 and starts(run)[1]["step"] % 25
    assert_same(run, undisturbed)


def test_a_run_cut_by_its_time_limit_ends_the_same(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}", "cluster.hours=0.0167", "cluster.signal_s=45")
    wait_finished(run)
    assert len(starts(run)) >= 2
    assert_same(run, undisturbed)


def test_a_controller_that_restarts_is_not_noticed(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}")
    wait_steps(run, 20)
    slurm.restart_slurmctld()
    wait_finished(run)
    assert len(starts(run)) == 1
    assert_same(run, undisturbed)


def test_a_requeued_run_goes_on_with_fewer_hosts(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    # SLURM takes as many hosts as are idle at the moment.
    wait_until(lambda: set(slurm.states().values()) == {"idle"}, 30, "all hosts to be idle")
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}", "cluster.min_nodes=1", "cluster.exclude=node[3-4]")
    wait_steps(run, 40)
    power_off(slurm, job_of(slurm.env(), run))
    wait_finished(run)
    assert [start["processes"] for start in starts(run)] == [2, 1]
    assert_same(run, undisturbed, within=0.05)


# --- five folds


def test_five_folds_and_their_table(slurm: SlurmBed, tiny: Path, tmp_path: Path) -> None:
    """Safe to submit twice; the table of the dependent job is that of the same seeds on one machine."""
    local, run = tmp_path / "local" / "run", tmp_path / "run"
    words = ("slurm", tiny, "--cluster", CPU, f"run={run}", "cluster.cpus_per_process=1")
    launch(slurm.env(), *words)
    again = launch(slurm.env(), *words)
    assert "in the queue already: fold 5" in again and "submitted" not in again
    wait_until((run / "report" / "report.md").exists, 240, "the report")
    launch({}, "local", tiny, "--processes", 2, f"run={local}", timeout=300)
    assert [result(run / fold) for fold in FOLDS] == [result(local / fold) for fold in FOLDS]
    tables = [(folder / "report" / "report.md").read_text().replace(str(folder), "RUN") for folder in (run, local)]
    assert tables[0] == tables[1]
    wait_until(lambda: not slurm.squeue(), 30, "the end of all jobs")
    assert "mean" in launch(slurm.env(), "logs", run)
    assert "finished already: fold 1, 2, 3, 4, 5" in launch(slurm.env(), *words)


def test_a_cancelled_run_stops_saved_and_is_not_requeued(slurm: SlurmBed, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}")
    wait_steps(run, 30)
    launch(slurm.env(), "cancel", run)
    wait_until(lambda: not slurm.squeue(), 30, "the queue to be empty")
    row = status(slurm.env(), run)
    assert row["state"] == "stopped" and row["checkpoint"] == row["step"] and row["restarts"] == 0


# --- what cannot work says so in time


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cluster.interface=eth9", "expected network interface eth9, got lo 127.0.0.1, eth0"),
        ("cluster.interface=eth1", "expected all to reach each other, got node"),
    ],
)
def test_a_wrong_interface_is_told_within_a_minute(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, word: str, said: str
) -> None:
    for host in slurm.hosts.values():
        if host.run(["ip", "link", "show", "eth1"], check=False).returncode:
            host.add_dead_end("eth1")
    run, began = tmp_path / "run", time.monotonic()
    launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}", word, "cluster.max_failures=0")
    wait_until(lambda: said in str(status(slurm.env(), run)["why"]), 60, "the message")
    within(60, began)


def test_a_full_partition_is_told(slurm: SlurmBed, tiny: Path, tmp_path: Path) -> None:
    slurm.fill()
    run = tmp_path / "run"
    assert "note: 0 of 4 hosts of partition batch are idle" in launch(slurm.env(), "slurm", tiny, *PAIR, f"run={run}")
    row = status(slurm.env(), run)
    assert (row["state"], row["why"]) in {("waiting", "Resources"), ("waiting", "Priority")}


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("cluster.account=nobody", 2, "account: expected one of research, root, got nobody"),
        ("cluster.partition=closed", 2, "expected a partition that starts jobs, got one that is down"),
        ("cluster.partition=small", 2, "partition small: expected room for 2 hosts a fold, got at most 1"),
        ("data.shards=/nowhere", 3, "/nowhere/manifest.json: expected the manifest"),
    ],
)
def test_what_cannot_start_is_refused(
    slurm: SlurmBed, tiny: Path, tmp_path: Path, word: str, code: int, said: str
) -> None:
    assert said in launch(slurm.env(), "slurm", tiny, *PAIR, f"run={tmp_path / 'run'}", word, code=code)
    assert not slurm.squeue()
