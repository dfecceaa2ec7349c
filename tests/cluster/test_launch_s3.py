"""`dfer-launch slurm` with shards, run folders and report on a real S3 server that all hosts reach."""

import shutil
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.launched import STEPS, assert_same, launch, starts, status, steps, wait_finished, wait_steps
from tests.cluster.slurm import SlurmBed
from tests.integration import commands
from tests.integration.commands import result
from tests.servers import S3, SECRET

pytestmark = pytest.mark.cluster(long=True)

CPU = Path(__file__).parents[2] / "configs" / "clusters" / "slurm_cpu.yaml"
FOLDS = [f"fold_{number}" for number in range(1, 6)]


@pytest.fixture
def tiny(tmp_path: Path, s3: S3) -> Path:
    """A configuration of shards in the bucket; the same shards lie beside it on the disk."""
    commands.make_shards(tmp_path, "dfew", clips=35)
    shutil.copytree(tmp_path / "shards", tmp_path / "s3" / s3.bucket / "shards")
    path = tmp_path / "tiny.yaml"
    path.write_text(commands.TINY.replace("shards: shards", f"shards: {s3.url}/shards"))
    return path


def test_five_folds_in_a_bucket_and_their_table(slurm: SlurmBed, s3: S3, tiny: Path, tmp_path: Path) -> None:
    """Keys reach the hosts by inheritance and stand in no script, log, record or result."""
    env, run, local = slurm.env() | s3.environment, tmp_path / "s3" / s3.bucket / "run", tmp_path / "local" / "run"
    words = ("slurm", tiny, "--cluster", CPU, f"run={s3.url}/run", f"cluster.folder={tmp_path / 'scripts'}",
             "cluster.cpus_per_process=1")  # fmt: skip
    launch(env, *words)
    wait_until((run / "report" / "report.md").exists, 240, "the report")
    launch({}, "local", tiny, "--processes", 1, f"run={local}", f"data.shards={tmp_path / 'shards'}", timeout=300)
    assert [result(run / fold) for fold in FOLDS] == [result(local / fold) for fold in FOLDS]
    tables = [(folder / "report" / "report.md").read_text() for folder in (run, local)]
    assert tables[0].replace(f"{s3.url}/run", "RUN") == tables[1].replace(str(local), "RUN")
    wait_until(lambda: not slurm.squeue(), 30, "the end of all jobs")
    assert status(env, f"{s3.url}/run")["state"] == "finished"
    places = [*run.glob("**/*"), *(tmp_path / "scripts").glob("**/*")]
    assert not [path for path in places if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_run_in_a_bucket_survives_the_power_loss_of_a_host(
    slurm: SlurmBed, s3: S3, tiny: Path, tmp_path: Path
) -> None:
    env, run, local = slurm.env() | s3.environment, tmp_path / "s3" / s3.bucket / "run", tmp_path / "local" / "run"
    pair = ("--folds", "1", *STEPS)
    launch({}, "local", tiny, "--processes", 2, f"run={local}", f"data.shards={tmp_path / 'shards'}", *pair)
    launch(env, "slurm", tiny, "--cluster", CPU, f"run={s3.url}/run", f"cluster.folder={tmp_path / 'scripts'}",
           "cluster.nodes=2", "cluster.processes_per_node=1", "cluster.cpus_per_process=1", *pair)  # fmt: skip
    wait_steps(run, 40)
    job = str(status(env, f"{s3.url}/run")["job"])
    slurm.power_off(slurm.scontrol("show", "hostnames", slurm.job(job)["NodeList"]).split()[1])
    wait_finished(run)
    assert len(starts(run)) == 2 and steps(run) == 300
    assert_same(run, local)
