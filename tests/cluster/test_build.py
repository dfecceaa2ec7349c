"""`dfer-shards build` by several hosts gives the bytes of one process: over a shared folder, one host losing power half
way, and as a SLURM array into a bucket, by the very lines that `--help` shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import run, wait_until
from tests.cluster.hosts import Host, Network
from tests.cluster.launched import launch
from tests.cluster.slurm import ROOT, SlurmBed
from tests.servers import S3
from tests.unit.shards import rawkit

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "shards"]
OPTIONS = ["--clips-per-shard", "4", "--jobs", "1", "--no-progress"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 frames in 25 shards."""
    return rawkit.large_dfew(tmp_path_factory.mktemp("raw") / "DFEW", clips=100, frames=60)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("expected") / "out"
    run(build(raw, out), timeout=120, env=ENVIRONMENT)
    return snapshot(out)


@pytest.fixture(scope="module")
def three() -> Iterator[list[Host]]:
    with Network() as network:
        yield [network.add(f"host{number}") for number in (1, 2, 3)]


def build(raw: Path, out: Path, *more: str) -> list[str]:
    return [*COMMAND, "build", "dfew", str(raw), str(out), *OPTIONS, *more]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def started(host: Host, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*host.enter(), *words], env=ENVIRONMENT, text=True, stdout=-1, stderr=-1)


def finished(parts: "list[subprocess.Popen[str]]") -> None:
    for process in parts:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, out + error


@pytest.mark.cluster(long=True)
def test_three_hosts_build_what_one_process_builds(
    three: list[Host], raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    finished([started(host, *build(raw, out, "--part", f"{number}/3")) for number, host in enumerate(three, start=1)])
    three[0].run(build(raw, out, "--finish", "3"), env=ENVIRONMENT, timeout=60)
    assert snapshot(out) == expected


def test_a_host_without_power_disturbs_no_other_and_begins_again(
    three: list[Host], raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = halfway(three[1], raw, tmp_path)
    others = [
        started(three[0], *build(raw, out, "--part", "1/3")),
        started(three[2], *build(raw, out, "--part", "3/3")),
    ]
    finished(others)
    told = three[0].run(build(raw, out, "--finish", "3"), env=ENVIRONMENT, timeout=60, check=False)
    assert told.returncode == 3 and "missing or not finished: 2/3" in told.stderr
    before = times(out)
    three[1].power_on()
    finished([started(three[1], *build(raw, out, "--part", "2/3"))])
    now = times(out)
    made = [name.removesuffix("done.json") for name in now.keys() - before.keys() if name.endswith(".done.json")]
    assert 1 <= len(made) <= 6
    untouched = {name: at for name, at in before.items() if not name.startswith(tuple(made))}
    assert {name: now[name] for name in untouched} == untouched
    three[2].run(build(raw, out, "--finish", "3"), env=ENVIRONMENT, timeout=60)
    assert snapshot(out) == expected


def halfway(host: Host, raw: Path, folder: Path) -> Path:
    """The output of part 2 of 3, whose host lost power when two of its eight shards were made."""
    for attempt in range(5):
        out = folder / f"out_{attempt}"
        with started(host, *build(raw, out, "--part", "2/3")):
            wait_until(lambda out=out: len(list(out.glob("*/*.done.json"))) >= 2, 60, "two shards", every=0.002)
            host.power_off()
        if len(list(out.glob("*/*.done.json"))) < 8:
            return out
        host.power_on()  # on a busy machine the part was done by then
    raise AssertionError("every part was done before its host lost power")


@pytest.mark.cluster(long=True)
def test_the_array_of_the_help_builds_into_a_bucket(
    slurm: SlurmBed, s3: S3, raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Eight tasks in the queue, and a finish that waits for them."""
    text = run([*COMMAND, "build", "--help"], env=ENVIRONMENT).stdout
    lines = text.partition("over several hosts:")[2]
    script = lines[lines.index("job=$(") :]
    for word, value in {
        "dfer-shards": " ".join(COMMAND),
        "/data/DFEW": str(raw),
        "s3://bucket/dfew": f"{s3.url}/built",
        "--jobs 8": " ".join(OPTIONS),
        "--finish 8": f"--finish 8 {' '.join(OPTIONS)}",
        "--cpus-per-task=8": "--cpus-per-task=2",
    }.items():
        assert word in script
        script = script.replace(word, value)
    submitted = run(["sh", "-euc", f"cd {tmp_path}\n{script}\necho $job"], env=slurm.env() | s3.environment).stdout
    finish, array = re.findall(r"\d+", submitted)
    assert slurm.job(finish)["JobState"] == "PENDING"
    slurm.wait_job(finish, timeout=180)
    tasks = {f"{array}_{number}" for number in range(1, 9)}
    wait_until(lambda: tasks <= {job for job, state, _ in slurm.sacct(array) if state == "COMPLETED"}, 10, "the tasks")
    assert snapshot(s3.files / "built") == expected


@pytest.mark.cluster(long=True)
def test_a_job_builds_in_tasks_of_the_queue_what_one_process_builds(
    slurm: SlurmBed, raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """A task a part, and a last job that makes a data set of them; `status` tells of each."""
    values = {"job": "build", "run": tmp_path / "run", "dataset": "dfew", "raw": raw, "out": tmp_path / "out"}
    values |= {"workers": 3, "jobs": 1, "clips_per_shard": 4}
    config = tmp_path / "build.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    cpu = ROOT / "configs" / "clusters" / "slurm_cpu.yaml"
    launch(slurm.env(), "slurm", config, "--cluster", cpu, "cluster.hours=0.2", "cluster.cpus_per_process=1")
    wait_until((tmp_path / "out" / "manifest.json").exists, 180, "the manifest")
    wait_until(lambda: not (tmp_path / "out" / "plan.json").exists(), 30, "the end of the build")
    assert snapshot(tmp_path / "out") == expected

    def all_finished() -> bool:  # once the accounting has heard of it
        told = launch(slurm.env(), "status", tmp_path / "run")
        return all(re.search(rf"worker_{number}\b.*finished", told) for number in (1, 2, 3))

    wait_until(all_finished, 60, "parts that status calls finished", every=1)
