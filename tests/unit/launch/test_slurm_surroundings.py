"""Where launchers are called from: inside an interactive job, by a user without a name, with Ctrl-C after it."""

import getpass
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.cluster import SlurmCluster
from launch.job import Job
from launch.slurm.submit import Submission
from launch.slurm.tools import accounts, queued
from tests import fake_runs
from tests.unit.launch.conftest import FakeSlurm, training

ROOT = Path(__file__).parents[3]
OF_A_JOB = {
    "SLURM_CPU_BIND": "verbose,mask_cpu:0x1",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_TRES_PER_TASK": "cpu=1",
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURMD_NODENAME": "n1",
    "PMI_RANK": "0",
    "PMIX_NAMESPACE": "x",
    "PMI2_RANK": "0",
    "SQUEUE_STATES": "RUNNING",
    "SINFO_PARTITION": "x",
    "SACCT_FORMAT": "x",
    "SRUN_DEBUG": "3",
}
OF_THE_CLUSTER = {"SLURM_CONF": "/etc/slurm/other.conf", "SLURM_CLUSTERS": "other"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return training(tmp_path / "run", 1, 2)


def test_commands_of_slurm_see_nothing_of_the_job_around_them(
    fake_slurm: FakeSlurm, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would pin the new job to the old one's cores, or hide from us that it waits."""
    for name, value in {**OF_A_JOB, **OF_THE_CLUSTER}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    Submission(job=job, cluster=SlurmCluster()).submit()
    assert {*fake_slurm.foreign} == {"sbatch", "sinfo", "squeue"}
    assert all(names == sorted(OF_THE_CLUSTER) for names in fake_slurm.foreign.values())
    assert fake_slurm.jobs[0]["sbatch_variables"] == ["SBATCH_RESERVATION"]
    assert {name: os.environ[name] for name in OF_A_JOB} == OF_A_JOB and "note" not in capsys.readouterr().err


# --- users without a name


def test_a_user_without_a_name_asks_by_number(fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 54321")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    assert queued("dfer-x") == [] and f"--user={os.getuid()}" in fake_slurm.calls[-1]
    assert accounts() == []


def launched(words: Sequence[object], tmp_path: Path, *before: str) -> "subprocess.Popen[str]":
    """`dfer-launch` as it is started in a container: without a name of the user in the environment."""
    own = {**{name: os.environ[name] for name in ("PATH", "FAKE_SLURM")}, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "launch", *map(str, words)],
        env=own,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """Also where the tests themselves run in the background, deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


NAMELESS = ("unshare", "--user", "--map-user=54321")
"""Starts a process that takes itself for user 54321, who has no name, with the rights of the user who starts it."""


@pytest.fixture
def nameless() -> tuple[str, ...]:
    ask = [*NAMELESS, sys.executable, "-c", "import os, pwd; assert os.getuid() == 54321; pwd.getpwuid(54321)"]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no `unshare` on this machine")
    if "uid not found: 54321" not in asked.stderr:
        pytest.skip(f"no user namespaces on this machine: {asked.stderr.strip()[-200:]}")
    return NAMELESS


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [("status", 0, "finished"), ("cancel", 2, "expected a submission to SLURM or Ray, got none")],
)
def test_it_works_for_a_user_without_a_name(
    fake_slurm: FakeSlurm, tmp_path: Path, nameless: tuple[str, ...], words: str, code: int, said: str
) -> None:
    fake_runs.write_crossval(tmp_path / "run", done=(1,))
    process = launched([words, tmp_path / "run"], tmp_path, *nameless)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and said in out + err and "Traceback" not in err, err
    assert fake_slurm.calls[0][:4] == ["squeue", "--noheader", "--array", "--user=54321"]


# --- ends


@pytest.mark.parametrize("words", [["status"], ["cancel"]])
def test_ctrl_c_ends_it_at_once_without_a_traceback(fake_slurm: FakeSlurm, tmp_path: Path, words: list[str]) -> None:
    fake_runs.write_crossval(tmp_path / "run", done=(1,))
    fake_slurm.change(hangs=["squeue"])
    process = launched([*words, tmp_path / "run"], tmp_path)
    until = time.monotonic() + 30
    while not (tmp_path / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted; what was submitted or runs goes on\n")
    assert time.monotonic() - start < 5


def test_a_reader_that_leaves_ends_it_without_a_traceback(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    """As of `dfer-launch status RUN | head -0`."""
    fake_runs.write_crossval(tmp_path / "run", done=(1,))
    process = launched(["status", tmp_path / "run"], tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 141
    process.stderr.close()
