"""Parts that are independent processes: a plan, k of n made side by side, an end; on every launcher."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfer.config import ConfigProblem, to_yaml
from dfer.config_files import find
from dfer.errors import UsageError
from dfer.interruption import Stop
from dfer.jobs import crossval
from dfer.jobs.parts import JobModule, load_job, module_named, name_of
from launch.__main__ import main
from launch.cluster import RayCluster, SlurmCluster
from launch.job import JOBS, Job, Place, refuse_one_gpu, run_job
from launch.local.submit import run_parts
from launch.ray import submit as ray_submit
from launch.ray import worker as ray_worker
from launch.rendezvous import Rendezvous
from launch.slurm.submit import Submission
from tests.unit.launch import counting
from tests.unit.launch.conftest import FakeSlurm

Outputs = pytest.CaptureFixture[str]


def counted(run: Path, **changes: Any) -> Job:
    config = counting.Config(run=str(run), **changes)
    parts = tuple(counting.parts(config))
    return Job(kind=counting.__name__, config=to_yaml(config), run=str(run), parts=parts, revision="unknown")


def test_a_module_of_functions_is_a_kind_of_job() -> None:
    module: JobModule = counting  # type: ignore[assignment]
    assert module_named("tests.unit.launch.counting") is module and not module.grouped


def test_every_part_is_a_process_of_its_own_and_any_number_gives_the_same_bytes(tmp_path: Path, capfd: Outputs) -> None:
    for workers in (1, 3):
        assert run_parts(counted(tmp_path / str(workers), workers=workers), processes=4, parallel=2) == 0
    out = capfd.readouterr().out
    said = re.findall(r"^worker_\d: \d+ numbers by process (\d+) of (\d), without torch$", out, re.MULTILINE)
    assert len({number for number, _ in said}) == 4 and {size for _, size in said} == {"1"}
    assert out.count("10 numbers in all.txt") == 2
    assert (tmp_path / "1" / "all.txt").read_bytes() == (tmp_path / "3" / "all.txt").read_bytes()


def test_a_killed_part_leaves_the_others_alone_and_the_next_start_goes_on(tmp_path: Path, capfd: Outputs) -> None:
    job = counted(tmp_path, dies="worker_1")
    assert run_parts(job, parallel=3) == 7
    err = capfd.readouterr().err
    assert "worker_1: error: process 0 of 1: expected to run to its end, got SIGKILL" in err
    assert "error: " + f"{tmp_path}: expected numbers of every worker, got 2 of 3. Run it again." in err
    files = {name: tmp_path / name / "numbers.txt" for name in ("worker_0", "worker_2")}
    before = {name: (file.stat().st_mtime_ns, file.read_bytes()) for name, file in files.items()}
    assert not (tmp_path / "worker_1" / "numbers.txt").exists() and not (tmp_path / "all.txt").exists()
    assert run_parts(job, parallel=3) == 0
    assert {name: (file.stat().st_mtime_ns, file.read_bytes()) for name, file in files.items()} == before
    assert (tmp_path / "all.txt").read_text() == "\n".join(f"{number:03d}" for number in range(10))


def test_slurm_starts_one_task_a_part_which_meets_nobody(
    fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = SlurmCluster(nodes=3, min_nodes=2, gpus_per_node=4, cpus_per_process=8).of(grouped=False)
    assert cluster == SlurmCluster(gpus_per_node=1, cpus_per_process=8)
    job = counted(tmp_path)
    assert Submission(job=job, cluster=cluster).submit() == 0
    script = fake_slurm.jobs[0]["script"]
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    assert (flags["array"], flags["nodes"], flags["ntasks-per-node"]) == ("0-2%3", "1", "1")
    assert flags["comment"] == "parts=worker_0,worker_1,worker_2"
    nobody = Place(rendezvous=Rendezvous(rank=0, size=1, host="nobody.invalid", port=1, within_s=0.1))
    monkeypatch.setattr(Rendezvous, "meet", lambda _: pytest.fail("it looked for others"))
    assert run_job(job, job.part("worker_2"), nobody, Stop()).startswith("worker_2: 3 numbers")


def test_a_part_alone_may_have_several_gpus(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    given = SlurmCluster(nodes=3, gpus_per_node=8, gpus_per_process=4)
    assert given.of(grouped=True) == SlurmCluster(nodes=3, gpus_per_node=8) and given.of(grouped=True).processes == 8
    alone = given.of(grouped=False)
    assert (alone.gpus_per_node, alone.processes, alone.worlds) == (4, 1, [1])
    assert Submission(job=counted(tmp_path), cluster=alone).submit() == 0
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", fake_slurm.jobs[0]["script"], re.MULTILINE))
    assert (flags["gpus-per-node"], flags["ntasks-per-node"], flags["nodes"]) == ("4", "1", "1")
    workers = RayCluster(workers=2, gpu=True, gpus_per_process=4)
    assert workers.of(grouped=False).per_worker == {"CPU": 1.0, "GPU": 4.0}
    assert workers.of(grouped=True).per_worker == {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("verb", "words"),
    [("slurm", ["cluster.gpus_per_node=4"]), ("ray", ["cluster.gpu=true", "cluster.workers=4"])],
)
def test_a_group_has_a_process_for_each_gpu_whatever_a_part_alone_has(
    verb: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Outputs
) -> None:
    """Also where the batch is checked, before anything is submitted."""
    monkeypatch.setattr(crossval, "known_folds", lambda _: [1])
    given = [f"run={tmp_path}/run", f"data.shards={tmp_path}", "batch=6", "cluster.gpus_per_process=2", *words]
    assert main([verb, "demo", *given, "--dry-run"]) == 2
    assert "batch: expected a multiple of 4 processes, got 6. Set batch=4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        (lambda: SlurmCluster(gpus_per_process=0), "gpus_per_process: expected at least 1, got 0. Correct it"),
        (
            lambda: SlurmCluster(gpus_per_node=2, gpus_per_process=4),
            "gpus_per_process: expected at most gpus_per_node=2, got 4. Correct one of them",
        ),
        (lambda: RayCluster(gpus_per_process=2), "gpus_per_process: expected 1 without gpu, got 2. Set gpu: true"),
    ],
)
def test_numbers_of_gpus_that_do_not_go_together(cluster: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigProblem, match=re.escape(says)):
        cluster()


def test_a_model_over_all_gpus_is_not_given_one(tmp_path: Path) -> None:
    """Extract's teacher is divided over the GPUs of its part, of which a launcher gives one unless told otherwise."""
    (tmp_path / "faces").mkdir()
    words = ["exp_clip/extract", f"run={tmp_path / 'run'}", f"pairs.pictures={tmp_path / 'faces'}"]
    for devices in ("one", "all"):
        module, config = load_job([find(words[0])], [*words[1:], f"pairs.teacher.devices={devices}"], JOBS)
        job = Job(kind=name_of(module), config=to_yaml(config), run=config.run, parts=(), revision="")
        for gpus in (0, 1, 4):
            if (devices, gpus) != ("all", 1):
                refuse_one_gpu(job, gpus)
                continue
            with pytest.raises(UsageError) as caught:
                refuse_one_gpu(job, gpus)
    assert str(caught.value) == (
        "cluster.gpus_per_process: expected 2 or more, for pairs.teacher.devices=all, got 1. "
        "Set cluster.gpus_per_process to the GPUs that a part needs, or leave pairs.teacher.devices=all out."
    )


def test_ray_starts_a_plain_task_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def remote(**options: Any) -> Any:
        asked.update(options)
        return lambda function: SimpleNamespace(remote=function)

    ray = ray_worker.ray
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda value, **_: value)
    cluster = RayCluster(workers=4, min_workers=2, cpus_per_worker=2, resources={"disk": 1.0}, max_failures=5)
    submission = ray_submit.Submission(job=counted(tmp_path), cluster=cluster.of(grouped=False))
    assert submission.cluster.worlds == [1]
    board = SimpleNamespace(
        heartbeat=SimpleNamespace(remote=lambda _: ""),
        endings=SimpleNamespace(remote=dict),
        end=SimpleNamespace(remote=lambda *words: pytest.fail(str(words))),
    )
    submission._fit("worker_1", board, "")
    assert asked == {
        "num_cpus": 2.0,
        "num_gpus": 0.0,
        "resources": {"disk": 1.0},
        "max_retries": 5,
        "retry_exceptions": True,
    }
    assert (tmp_path / "worker_1" / "numbers.txt").read_text() == "001\n004\n007\n"
