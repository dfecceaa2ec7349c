"""`dfer-launch slurm` on a real SLURM, shards and run folders in a real bucket: whatever happens on the way, a run ends
as the undisturbed one, bit for bit."""

import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.rendezvous import PORTS
from tests.cluster.commands import wait_until
from tests.cluster.launched import ROOT, STEPS, UNSAVED, ZERO, Run, Undisturbed, command, in_bucket, launch, within
from tests.cluster.slurm import SlurmBed
from tests.integration.commands import result
from tests.servers import S3, SECRET

pytestmark = pytest.mark.cluster(long=True)

CPU = ROOT / "configs" / "clusters" / "slurm_cpu.yaml"
# Two hosts, a process on each; a limit of some minutes.
PAIR = (
    "--cluster",
    CPU,
    "cluster.nodes=2",
    "cluster.processes_per_node=1",
    "cluster.cpus_per_process=1",
    "cluster.hours=0.2",
    "--only",
    "fold_1",
    *STEPS,
)
PROCESS = "^[^ ]*python[^ ]* -u -m submitit.core._submit"
# One process of the array's task of this number.
KILL_OF_TASK = """
for pid in $(pgrep -f "$1"); do
    tr '\\0' '\\n' < /proc/$pid/environ | grep -qx "SLURM_ARRAY_TASK_ID=$2" && kill -KILL $pid && exit
done
exit 1
"""
FOLDS = [f"fold_{number}" for number in range(1, 6)]


@pytest.fixture
def run(slurm: SlurmBed, s3: S3, tmp_path: Path) -> Run:
    return in_bucket(s3, tmp_path, slurm.env(), f"cluster.folder={tmp_path / 'scripts'}")


@pytest.fixture
def shared(slurm: SlurmBed, s3: S3, tmp_path: Path) -> Run:
    """A run on a disk that all hosts share."""
    return Run(url=str(tmp_path / "run"), files=tmp_path / "run", env={**slurm.env(), **s3.environment})


def hosts_of(slurm: SlurmBed, job: str) -> list[str]:
    return slurm.scontrol("show", "hostnames", slurm.job(job)["NodeList"]).split()


# --- disturbances, each on a run that is at work


def preempt(slurm: SlurmBed, job: str) -> None:
    slurm.preempt(hosts_of(slurm, job))


def power_off(slurm: SlurmBed, job: str) -> None:
    slurm.power_off(hosts_of(slurm, job)[1])


def power_off_the_first(slurm: SlurmBed, job: str) -> None:
    host = hosts_of(slurm, job)[0]
    slurm.power_off(host)
    slurm.mark_down(host)  # at once; `power_off` waits until SLURM finds out


def orphan(slurm: SlurmBed, job: str) -> None:
    host = hosts_of(slurm, job)[0]
    slurm.kill_slurmd(host)
    slurm.mark_down(host)  # at once, while the first copy lives on


def kill_a_process(slurm: SlurmBed, job: str) -> None:
    assert slurm.hosts[hosts_of(slurm, job)[1]].kill(PROCESS, whole_line=True)


@pytest.mark.parametrize("disturb", [preempt, power_off, power_off_the_first, orphan, kill_a_process])
def test_a_disturbed_run_ends_the_same(
    slurm: SlurmBed, run: Run, tiny: Path, undisturbed: Undisturbed, disturb: Callable[[SlurmBed, str], None]
) -> None:
    # Where a warning comes first, all is saved on demand. With worker processes, since it may go to every process.
    asked = disturb is preempt
    words = ZERO if asked else ()
    more = (*UNSAVED, "data.workers=1") if asked else ()
    run.launch("slurm", tiny, *PAIR, *words, *more, "cluster.partition=low")
    run.wait_steps(1 if asked else 40)  # a bucket shows them seconds later, and all take ten
    wait_until(lambda: asked or run.status()["checkpoint"], 60, "a checkpoint")
    row, seen = run.status(), run.steps()
    disturb(slurm, str(row["job"]))
    run.wait_finished()
    assert run.starts()[1]["step"] >= (seen if asked else row["checkpoint"])  # nothing else is lost
    run.assert_same(undisturbed(*words))


def test_an_orphan_that_wakes_up_writes_nothing(
    slurm: SlurmBed, run: Run, tiny: Path, undisturbed: Undisturbed
) -> None:
    """On a single host nobody tells the processes that their slurmd is dead and the job runs elsewhere."""
    run.launch("slurm", tiny, *PAIR, "cluster.nodes=1", "cluster.processes_per_node=2")
    job = run.job()
    run.wait_steps(40)
    name = hosts_of(slurm, job)[0]
    slurm.hosts[name].kill(PROCESS, whole_line=True, signal="STOP")
    slurm.kill_slurmd(name)
    slurm.mark_down(name)
    wait_until(lambda: len(run.starts()) == 2, 90, "the second start")
    slurm.hosts[name].kill(PROCESS, whole_line=True, signal="CONT")
    wait_until(lambda: "got a newer copy at work there" in run.ask("logs", "fold_1"), 60, "the orphan's last words")
    run.wait_finished()
    run.assert_same(undisturbed())


def test_a_run_cut_by_its_time_limit_ends_the_same(
    slurm: SlurmBed, run: Run, tiny: Path, undisturbed: Undisturbed
) -> None:
    run.launch("slurm", tiny, *PAIR, "cluster.hours=0.0167", "cluster.signal_s=10")
    job = run.job()
    run.wait_steps(40)
    # A minute is SLURM's shortest limit. One process sleeps until SLURM asks, for which it wakes all of them.
    for name in hosts_of(slurm, job)[1:]:  # none where SLURM has asked already
        slurm.hosts[name].kill(PROCESS, whole_line=True, signal="STOP")
    wait_until(lambda: len(run.starts()) > 1, 150, "the second start")
    run.wait_finished()
    # Asked first, so nothing is lost; SLURM may ask up to a minute too early, and then more than once.
    assert len(run.starts()) >= 2 and run.starts()[-1]["step"] >= 40
    run.assert_same(undisturbed())


def test_a_controller_that_restarts_is_not_noticed(
    slurm: SlurmBed, run: Run, tiny: Path, undisturbed: Undisturbed
) -> None:
    run.launch("slurm", tiny, *PAIR)
    run.wait_steps(20)
    slurm.restart_slurmctld()
    run.wait_finished()
    assert len(run.starts()) == 1
    run.assert_same(undisturbed())


def test_a_requeued_run_goes_on_with_fewer_hosts(
    slurm: SlurmBed, run: Run, tiny: Path, undisturbed: Undisturbed
) -> None:
    run.launch("slurm", tiny, *PAIR, *ZERO, "cluster.min_nodes=1", "cluster.exclude=node[3-4]")
    run.wait_steps(40)
    lost = hosts_of(slurm, run.job())[1]
    slurm.power_off(lost)
    slurm.mark_down(lost)
    run.wait_finished()
    assert [start["processes"] for start in run.starts()] == [2, 1]
    run.assert_same(undisturbed(*ZERO), within=1e-4)


# The short part: it also runs without being asked for.
@pytest.mark.cluster
def test_a_cancelled_run_on_a_shared_disk_stops_saved_and_is_not_requeued(
    slurm: SlurmBed, shared: Run, tiny: Path
) -> None:
    """Whoever among its processes gets the signal: SLURM may send it to each, also to those that only read data."""
    shared.launch("slurm", tiny, *PAIR, *UNSAVED, "data.workers=1")
    shared.wait_steps(30)
    shared.ask("cancel")
    wait_until(lambda: not slurm.squeue(), 30, "the queue to be empty")
    row = shared.status()
    assert row["state"] == "stopped" and row["checkpoint"] == row["step"] and row["restarts"] == 0


# --- five folds

# The published configuration in small: of its method, splits and report nothing is changed.
SMALL = (
    "model.towers={arch: tiny-conv-64, pretrained: null}",
    "model.num_contexts=2",
    "batch=8",
    "eval_batch=4",
    "epochs=40",
    "eval_every=null",
    "data.frames=4",
    "data.size=64",
    "data.workers=0",
    "checkpoint.every_steps=20",
    "model.temporal={depth: 1, heads: 2, head_dim: 16, mlp_dim: 64}",
)


@pytest.mark.usefixtures("tiny")  # it puts the shards into the bucket
def test_the_script_leaves_the_table_behind(slurm: SlurmBed, s3: S3, run: Run, shards: Path, tmp_path: Path) -> None:
    """`launch/slurm_dfew.sh`, given twice; all folds are preempted at once and a process of the last is killed: the
    dependent job's table is that of the same seeds on this machine. Keys reach the hosts by inheritance and stand in no
    script, log, record or result."""
    env = {**run.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["bash", ROOT / "launch" / "slurm_dfew.sh", "-c", CPU, f"run={run.url}", *run.words, *SMALL]
    words += [f"data.shards={s3.url}/shards", "cluster.partition=low", "cluster.processes_per_node=1"]
    command(env, *words)
    again = command(env, *words)
    assert "in the queue already: fold_5" in again and "submitted" not in again
    wait_until(lambda: all(run.steps(fold) >= 20 for fold in range(1, 6)), 120, "step 20 of every fold")
    slurm.preempt(slurm.names)
    wait_until(lambda: all(len(run.starts(fold)) == 2 for fold in range(1, 6)), 120, "the second start of every fold")
    # The last task of an array bears the number of the whole array: it must speak of itself alone.
    host = slurm.hosts[hosts_of(slurm, str(run.status(5)["job"]))[0]]
    host.run(["bash", "-c", KILL_OF_TASK, "bash", PROCESS, "4"])
    wait_until((run.files / "report" / "report.md").exists, 240, "the report")
    assert [len(run.starts(fold)) for fold in range(1, 6)] == [2, 2, 2, 2, 3]

    local = tmp_path / "local" / run.files.name
    here = [f"run={local}", f"data.shards={shards}", *SMALL]
    joined = [ROOT / "configs/methods/dfer_clip.yaml", ROOT / "configs/sets/dfew.yaml"]
    launch({}, "local", *joined, "--parallel", 2, *here, timeout=300)
    assert [result(run.files / fold) for fold in FOLDS] == [result(local / fold) for fold in FOLDS]
    tables = [(folder / "report" / "report.md").read_text() for folder in (run.files, local)]
    assert tables[0].replace(run.url, "RUN") == tables[1].replace(str(local), "RUN")
    wait_until(lambda: not slurm.squeue(), 30, "the end of all jobs")
    assert "mean" in run.ask("logs")
    assert "finished already: fold_1, fold_2, fold_3, fold_4, fold_5" in command(env, *words)
    places = [*run.files.glob("**/*"), *(tmp_path / "scripts").glob("**/*")]
    assert not [path for path in places if path.is_file() and SECRET.encode() in path.read_bytes()]


# --- what cannot work says so in time


def no_interface(slurm: SlurmBed) -> str:
    return "expected network interface eth9, got lo 127.0.0.1, eth0"


def dead_interface(slurm: SlurmBed) -> str:
    for host in slurm.hosts.values():
        if host.run(["ip", "link", "show", "eth1"], check=False).returncode:
            host.add_dead_end("eth1")
    return "expected all to reach each other, got node"


def closed_ports(slurm: SlurmBed) -> str:
    """A firewall that lets SLURM through and nothing else."""
    for host in slurm.hosts.values():
        host.close_ports(*PORTS)
    return "cannot be reached from"


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (no_interface, ["cluster.interface=eth9"]),
        (dead_interface, ["cluster.interface=eth1"]),
        (closed_ports, []),
    ],
)
def test_hosts_that_do_not_meet_are_told_within_a_minute(
    slurm: SlurmBed, shared: Run, tiny: Path, obstacle: Callable[[SlurmBed], str], words: list[str]
) -> None:
    said = obstacle(slurm)
    began = time.monotonic()
    shared.launch("slurm", tiny, *PAIR, *words, "cluster.max_failures=0")
    wait_until(lambda: said in str(shared.status()["why"]), 60, "the message")
    within(60, began)


def test_a_full_partition_is_told(slurm: SlurmBed, shared: Run, tiny: Path) -> None:
    slurm.fill()
    assert "note: 0 of 4 hosts of partition batch are idle" in shared.launch("slurm", tiny, *PAIR)
    row = shared.status()
    assert (row["state"], row["why"]) in {("waiting", "Resources"), ("waiting", "Priority")}


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("cluster.account=nobody", 2, "account: expected one of research, root, got nobody"),
        ("cluster.partition=closed", 2, "expected a partition that starts jobs, got one that is down"),
        ("cluster.partition=small", 2, "partition small: expected room for 2 hosts a part, got at most 1"),
        ("data.shards=/nowhere", 3, "/nowhere/manifest.json: expected the manifest"),
        ("data.shards=s3://data/nowhere", 3, "s3://data/nowhere/manifest.json: expected the manifest"),
        ("data.shards=s3://nobody/shards", 3, "s3://nobody/shards/manifest.json: expected the manifest"),
    ],
)
def test_what_cannot_start_is_refused(
    slurm: SlurmBed, shared: Run, tiny: Path, word: str, code: int, said: str
) -> None:
    assert said in shared.launch("slurm", tiny, *PAIR, word, code=code)
    assert not slurm.squeue()


def test_a_job_without_its_gpus_is_told(shared: Run, tiny: Path) -> None:
    """The bed's GPUs are pretended, as on a host with too old a driver."""
    gpus = ("cluster.nodes=1", "cluster.gpus_per_node=2", "cluster.max_failures=0")
    shared.launch("slurm", tiny, *PAIR, *gpus)
    said = "expected a GPU for each of 2 processes, got 0"
    wait_until(lambda: said in str(shared.status()["why"]), 60, "the message")


def test_a_store_that_does_not_answer_is_told_within_a_minute(
    slurm: SlurmBed, shards: Path, tmp_path: Path, tiny: Path
) -> None:
    """Of the shards and of the run, beside each other, since both have to wait."""
    with socket.create_server(("127.0.0.1", 0)) as nobody, ThreadPoolExecutor() as pool:
        env = {**slurm.env(), **S3(f"http://127.0.0.1:{nobody.getsockname()[1]}").environment}

        def told(silent: str) -> str:
            places = {"data.shards": str(shards), "run": str(tmp_path / "run"), silent: "s3://data/there"}
            words = [f"{key}={value}" for key, value in places.items()]
            began = time.monotonic()
            found = launch(env, "slurm", tiny, *PAIR, *words, f"cluster.folder={tmp_path}", code=6, timeout=90)
            within(60, began)
            return found

        all_told = [*pool.map(told, ["data.shards", "run"])]
    assert all("s3://data/there: expected an answer within" in text for text in all_told) and not slurm.squeue()
