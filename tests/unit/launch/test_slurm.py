"""SLURM: what is submitted, once; what is refused before; whose environment a process reads."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dfer.errors import CheckpointError, StorageError, UsageError
from launch.cluster import SlurmCluster, load_cluster
from launch.job import Job
from launch.slurm import submit as module
from launch.slurm import tools as slurm_tools
from launch.slurm.submit import Submission
from launch.slurm.task import PartTask, ReportTask, place
from launch.slurm.tools import comment_of, minutes_of, names_of, partitions
from tests import fake_runs
from tests.unit.launch.conftest import SINFO, FakeSlurm, training

SECRET = "AKIA-do-not-tell"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return training(tmp_path / "run", 1, 2, 3)


def submission(job: Job, **cluster: object) -> Submission:
    return Submission(job=job, cluster=SlurmCluster(**cluster))  # type: ignore[arg-type]


def flags(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


# --- what is submitted


def test_the_folds_are_an_array_and_the_report_comes_after_any_end(
    fake_slurm: FakeSlurm, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = submission(
        job,
        partition="gpu",
        account="vision",
        nodes=2,
        min_nodes=1,
        gpus_per_node=4,
        cpus_per_process=6,
        hours=1.5,
        signal_s=60,
        parallel_parts=2,
        memory_gb=1.5,
        setup=("set -e", "module load cuda"),
        options={"mail-type": "END"},
        constraint="a100",
        exclude="node9",
        qos="gpu",
        report={"partition": "small"},
    )
    assert chosen.submit() == 0
    folds, after = (flags(each["script"]) for each in fake_slurm.jobs)
    wanted = {
        "array": "0-2%2",
        "nodes": "1-2",
        "mincpus": "24",
        "gpus-per-node": "4",
        "cpus-per-task": "6",
        "time": "90",
        "signal": "USR2@60",
        "partition": "gpu",
        "account": "vision",
        "mem": "1536M",
        "comment": "parts=fold_1,fold_2,fold_3",
        "mail-type": "END",
        "requeue": "",
        "open-mode": "append",
        "constraint": "a100",
        "exclude": "node9",
        "qos": "gpu",
    }
    assert {key: folds[key] for key in wanted} == wanted
    assert (after["dependency"], after["partition"], after["nodes"]) == ("afterany:1", "small", "1")
    assert after["account"] == "vision" and not after.keys() & {"constraint", "exclude", "qos"}
    script = fake_slurm.jobs[0]["script"]
    assert (
        script.index("module load cuda")
        < script.index("\nset +e\n")
        < script.index("srun ")
        < script.index("launch.slurm.retry")
    )
    assert "--ntasks-per-node=4 --cpus-per-task=6 --kill-on-bad-exit=0 --wait=60" in script
    assert "ntasks-per-node" not in folds  # SLURM would then give the least number of hosts
    assert "submitted fold_1, fold_2, fold_3 as job 1, the report as job 2" in capsys.readouterr().out


def test_the_cluster_file_counts_before_sbatchs_variables(
    fake_slurm: FakeSlurm, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SBATCH_ACCOUNT", "SBATCH_JOB_NAME", "SBATCH_QOS"):
        monkeypatch.setenv(name, "mine")
    submission(job, account="vision").submit()
    assert "note: the cluster file counts, not SBATCH_ACCOUNT, SBATCH_JOB_NAME\n" in capsys.readouterr().err
    assert [each["sbatch_variables"] for each in fake_slurm.jobs] == [["SBATCH_QOS"]] * 2
    assert os.environ["SBATCH_ACCOUNT"] == "mine"


def test_what_is_pickled_is_the_resolved_job(fake_slurm: FakeSlurm, job: Job) -> None:
    submission(job, interface="ib0").submit()
    folder = Path(job.run) / "launch" / "slurm"
    for number, part in enumerate(job.parts):
        delayed = pickle.loads((folder / f"1_{number}_submitted.pkl").read_bytes())
        assert delayed.function == PartTask(job=job, part=part, cpus=1, gpu=False, interface="ib0", meet_s=30.0)
        assert delayed.function.checkpoint().function == delayed.function
    assert pickle.loads((folder / "2_submitted.pkl").read_bytes()).function == ReportTask(job=job)


def test_credentials_go_into_no_file(
    fake_slurm: FakeSlurm, job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    submission(job).submit()
    files = [path for path in Path(job.run).rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())


def test_a_fixed_number_of_hosts_names_its_tasks(fake_slurm: FakeSlurm, job: Job) -> None:
    submission(job, nodes=2, processes_per_node=3).submit()
    folds = flags(fake_slurm.jobs[0]["script"])
    assert (folds["nodes"], folds["ntasks-per-node"]) == ("2", "3") and "mincpus" not in folds


def test_a_single_fold_is_no_array(fake_slurm: FakeSlurm, job: Job) -> None:
    submission(training(job.run, 2)).submit()
    assert "array" not in flags(fake_slurm.jobs[0]["script"])
    (record,) = (Path(job.run) / "launch").glob("slurm-*.json")
    plain = json.loads(record.read_text())
    assert plain["tasks"] == {"fold_2": "1"} and plain["report"] == "2"


def test_a_second_time_only_what_is_missing_is_submitted(
    fake_slurm: FakeSlurm, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    submission(job).submit()
    capsys.readouterr()
    submission(job).submit()
    assert len(fake_slurm.jobs) == 2
    out = capsys.readouterr().out
    assert "in the queue already: fold_2 as job 1_1, pending" in out and "dfer-launch status" in out
    # Only the report was cancelled, or the first submission did not come so far.
    fake_slurm.change(gone=["2"])
    submission(job).submit()
    assert flags(fake_slurm.jobs[2]["script"])["dependency"] == "afterany:1"
    assert "submitted the report as job 3" in capsys.readouterr().out
    # Fold 1 finished, fold 3 ended without a result; fold 2 still waits.
    fake_slurm.change(gone=["1_0", "1_2", "3"])
    fake_runs.write_fold(Path(job.run) / "fold_1", fake_runs.result(fold=1))
    submission(job).submit()
    last, after = (flags(each["script"]) for each in fake_slurm.jobs[3:])
    assert last["comment"] == "parts=fold_3" and after["dependency"] == "afterany:1:4"
    assert "finished already: fold_1\n" in capsys.readouterr().out


@pytest.mark.usefixtures("no_drawing")
def test_when_all_is_finished_the_report_is_written_here(
    fake_slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.write_crossval(tmp_path / "run")
    submission(training(tmp_path / "run", 1, 2, 3, 4, 5)).submit()
    assert fake_slurm.jobs == [] and (tmp_path / "run" / "report" / "index.html").exists()
    assert "finished already: fold_1, fold_2, fold_3, fold_4, fold_5\n" in capsys.readouterr().out


@pytest.mark.usefixtures("no_drawing")
def test_the_report_says_which_folds_are_missing(tmp_path: Path) -> None:
    fake_runs.write_crossval(tmp_path / "run", done=(1, 3))
    with pytest.raises(
        CheckpointError, match=r"expected a result of every part, got none of fold_2. `dfer-launch status"
    ):
        module.report(training(tmp_path / "run", 1, 2, 3))
    assert (tmp_path / "run" / "report" / "report.md").exists()


def test_a_dry_run_needs_no_slurm(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    text = submission(job).dry_run()
    assert "#SBATCH --array=0-2%3" in text and "afterany:PARTS" in text and "launch.slurm.retry" in text


def test_a_run_in_an_object_store_needs_a_folder_for_logs(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    far = training("memory://bucket/run", 1, 2, 3)
    with pytest.raises(UsageError, match=r"folder: expected a shared folder for scripts and logs, got a run in memory"):
        submission(far).submit()
    submission(far, folder=str(tmp_path / "logs")).submit()
    assert list((tmp_path / "logs").glob("*/1_0_submitted.pkl"))


# --- what is refused before anything is submitted


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"partition": "gpux"}, "partition: expected one of closed, gpu, small, got gpux. Correct `partition:`"),
        (
            {"partition": "closed"},
            "expected a partition that starts jobs, got one that is down. .* Up: gpu, small",
        ),
        (
            {"partition": "gpu", "nodes": 7},
            "partition gpu: expected room for 7 hosts a part, got at most 6. Lower",
        ),
        ({"partition": "small", "nodes": 3}, "partition small: expected room for 3 hosts a part, got at most 2"),
        (
            {"partition": "small", "hours": 30.0},
            "expected a time limit of 1800 minutes, got at most 1590. Low",
        ),
        ({"gpus_per_node": 9}, "partition gpu: expected 9 GPUs a host, got at most 8. Lower `gpus_per_node:`"),
        ({"account": "wrong"}, "account: expected one of research, vision, got wrong. Correct `account:`"),
    ],
)
def test_what_could_never_start_is_refused(
    fake_slurm: FakeSlurm, job: Job, cluster: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        submission(job, **cluster).submit()
    assert fake_slurm.jobs == []


def test_a_full_partition_is_told(fake_slurm: FakeSlurm, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    submission(job, partition="small", nodes=2).submit()
    assert "note:" not in capsys.readouterr().out
    fake_slurm.change(gone=["1"], sinfo="small*|up|4|4/0/0/4|infinite|1-infinite|(null)\n")
    submission(job, nodes=2).submit()
    assert "note: 0 of 4 hosts of partition small are idle, a part needs 2: jobs wait" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "account: expected one of research, vision, got none .*Invalid account",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "sbatch: expected SLURM to take the job, got .*Requested node configuration is not available. Correct the",
        ),
    ],
)
def test_what_sbatch_refuses_is_explained(fake_slurm: FakeSlurm, job: Job, says: str, said: str) -> None:
    fake_slurm.change(broken={"sbatch": says})
    with pytest.raises(UsageError, match=said):
        submission(job).submit()


def test_a_report_that_is_refused_takes_the_folds_back(fake_slurm: FakeSlurm, job: Job) -> None:
    fake_slurm.change(refuses=submission(job).name("report"))
    with pytest.raises(
        UsageError,
        match=r"expected SLURM to take the report's job, got .*time limit.*: the parts submitted with it",
    ):
        submission(job).submit()
    assert len(fake_slurm.jobs) == 1 and fake_slurm.gone == ["1"]


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (
            {"partition": "cpux"},
            "partition: expected one of closed, gpu, small, got cpux. Correct `report: {partition}",
        ),
        ({"partition": "closed"}, "report: expected a partition that starts jobs, got closed, which is down. Choose"),
    ],
)
def test_where_no_report_could_start_nothing_is_submitted(
    fake_slurm: FakeSlurm, job: Job, report: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        submission(job, report=report).submit()
    assert fake_slurm.jobs == []


def test_the_report_keeps_to_the_limit_of_its_partition(fake_slurm: FakeSlurm, job: Job) -> None:
    fake_slurm.change(sinfo=SINFO + "debug|up|1|0/1/0/1|10:00|1|(null)\n")
    submission(job, report={"partition": "debug"}).submit()
    assert [flags(each["script"])["time"] for each in fake_slurm.jobs] == ["1440", "10"]


def test_one_of_several_partitions_is_enough(fake_slurm: FakeSlurm, job: Job) -> None:
    submission(job, partition="closed,small", nodes=2).submit()
    assert flags(fake_slurm.jobs[0]["script"])["partition"] == "closed,small"
    with pytest.raises(UsageError, match=r"expected one of closed, gpu, small, got x. Correct `partition:`"):
        submission(job, partition="small,x").submit()


def test_a_fold_that_is_just_ending_is_waited_for(
    fake_slurm: FakeSlurm, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission(job).submit()
    fake_slurm.change(states={"1_0": "COMPLETING"})
    monkeypatch.setattr(slurm_tools.time, "sleep", lambda _: fake_slurm.change(gone=["1_0"]))
    submission(job).submit()
    assert flags(fake_slurm.jobs[2]["script"])["comment"] == "parts=fold_1"


def test_where_there_are_no_locks_a_note_says_so(
    fake_slurm: FakeSlurm, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("launch.records.fcntl.flock", unknown)
    submission(job).submit()
    assert "knows no locks (Function not implemented): submit from one place" in capsys.readouterr().out
    assert len(fake_slurm.jobs) == 2


def test_a_folder_that_cannot_be_written_is_told(fake_slurm: FakeSlurm, job: Job, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"run"):
        submission(job).submit()
    assert fake_slurm.jobs == []


def test_without_slurm_it_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"sinfo: expected SLURM's commands on this machine, got none. Go to a login"):
        submission(job).submit()


def test_a_command_that_hangs_or_fails_is_told(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm.change(broken={"sinfo": "slurm_load_partitions: Unable to contact slurm controller"})
    with pytest.raises(UsageError, match=r"sinfo: expected an answer of SLURM, got slurm_load.* See whether"):
        partitions()

    def hang(words: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(words, 20)

    monkeypatch.setattr(slurm_tools.subprocess, "run", hang)
    with pytest.raises(
        UsageError, match=r"sinfo: expected an answer within 20 s, got none. See whether slurmctld runs"
    ):
        partitions()


# --- reading SLURM


def test_partitions_of_several_kinds_of_hosts_are_added_up(fake_slurm: FakeSlurm) -> None:
    gpu = partitions()["gpu"]
    assert (gpu.default, gpu.up, gpu.nodes, gpu.idle, gpu.gpus, gpu.minutes) == (True, True, 6, 5, 8, None)


def test_large_and_hidden_partitions_are_counted(fake_slurm: FakeSlurm) -> None:
    """sinfo shortens 1024 to 1K and hides partitions, unless told otherwise."""
    assert partitions()
    assert {"--noconvert", "--all"} <= {*fake_slurm.calls[-1]}


def test_time_limits() -> None:
    assert [minutes_of(text) for text in ("infinite", "30:00", "2:30:00", "1-02:30:00")] == [None, 30, 150, 1590]


def test_comments_carry_the_parts() -> None:
    names = ["seed_2/fold_3", "worker_07", "temperature_0.01"]
    assert names_of(comment_of(names)) == names
    assert names_of("(null)") == names_of("parts=") == names_of("parts=a,,b") == names_of("folds=1,2") == []


def test_more_names_than_slurm_keeps_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        comment_of([f"worker_{number}" for number in range(200)])
    expected = "parts: expected names of at most 1000 characters, which SLURM keeps, got 200 parts. "
    assert str(caught.value) == expected + "Submit some of them at a time: --only worker_0,..."


def test_a_process_reads_its_place_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "31",
        "SLURM_ARRAY_JOB_ID": "30",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_RESTART_COUNT": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    job = training("run", 1)
    found = place(PartTask(job=job, part=job.parts[0], cpus=1, gpu=True, interface="ib0", meet_s=20.0))
    assert found.gpu
    assert found.variables() == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    rendezvous = found.rendezvous
    assert rendezvous is not None
    assert (rendezvous.host, rendezvous.port, rendezvous.token) == ("node7", 20_031 + 2 * 1009, "30_1.2")
    assert (rendezvous.interface, rendezvous.within_s) == ("ib0", 20.0)


# --- cluster files


def test_cluster_files_are_read() -> None:
    folder = Path(__file__).parents[3] / "configs" / "clusters"
    assert load_cluster(folder / "slurm.yaml", SlurmCluster, ["nodes=4", "min_nodes=2"]).worlds == [8, 12, 16]
    assert load_cluster(folder / "slurm_cpu.yaml", SlurmCluster).processes == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nodez=2", "nodez: unknown key. Did you mean 'nodes'"),
        ("nodes=0", "nodes: expected at least 1, got 0"),
        ("hours=0", "hours: expected more than 0, got 0"),
        ("hours=0.02", "signal_s: expected less than hours .60 s., got 120"),
        ("min_nodes=3", "min_nodes: expected at most nodes=1, got 3"),
        (
            "options={job_name: x}",
            "options: expected no option that the launcher itself needs, got job-name. Remove it",
        ),
        ("report={comment: x}", "report: expected no option that the launcher itself needs, got comment"),
        ("max_failures=-1", "max_failures: expected at least 0, got -1"),
    ],
)
def test_mistakes_in_cluster_files_are_told(override: str, said: str) -> None:
    path = Path(__file__).parents[3] / "configs" / "clusters" / "slurm.yaml"
    with pytest.raises(UsageError, match=said):
        load_cluster(path, SlurmCluster, [override])


def test_python_of_the_hosts_may_be_another(job: Job) -> None:
    assert (
        " singularity exec image python -u -m submitit"
        in submission(job, python="singularity exec image python").dry_run()
    )
    assert f" {sys.executable} -m launch.slurm.retry " in submission(job).dry_run()
    assert f" {sys.executable} -u -m submitit" in submission(job).dry_run()
