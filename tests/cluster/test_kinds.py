"""One method of each kind through SLURM and through Ray: two processes on two hosts give the result of two processes
here. The kinds are those of tests/methods.py, and a method that trains nothing."""

from pathlib import Path

import pytest

from tests.cluster.launched import ROOT, Run, in_bucket, launch
from tests.cluster.ray_bed import RayBed
from tests.cluster.ray_jobs import submit_job, wait_job
from tests.cluster.slurm import SlurmBed
from tests.integration import commands
from tests.servers import S3

pytestmark = [pytest.mark.cluster(long=True), pytest.mark.long]

HEAD = """
run: run
epochs: 2
batch: 8
eval_batch: 4
data: {shards: SHARDS, frames: 4, size: SIZE, workers: 0}
engine: {name: ddp}
checkpoint: {every_epochs: 1, keep_last: 1}
"""
KINDS = {
    "trains_nothing": """
model: {name: zero_shot, towers: {arch: tiny-conv-64}, text: ensemble_5}
optim: {name: sgd, groups: {}}
""",
    "frozen_tower": """
model: {name: linear_probe, towers: {arch: tiny-conv-64}}
optim: {name: sgd, groups: {head: {lr: 0.01}}}
""",
    "negatives_of_all_ranks": """
model: {name: contrastive, towers: {arch: tiny-conv-64}, text_from: class}
optim: {name: sgd, groups: {image: {lr: 0.01}, text: {lr: 0.01}, scale: {lr: 0.01}}}
""",
    "two_encoders": """
model: {name: dk_clip, towers: {arch: tiny-vit-64}, snippet: 2}
optim:
  name: sgd
  groups:
    {image: {lr: 0.001}, semantic: {lr: 0.001}, messages: {lr: 0.001}, integration: {lr: 0.001}, prompts: {lr: 0.001}}
""",
    "batch_statistics": """
model: {name: cnn, net: resnet18, width: 4}
optim: {name: sgd, groups: {network: {lr: 0.01}}}
""",
}
SIZES = {"batch_statistics": 44}
every = pytest.mark.parametrize("kind", KINDS)
ALIKE = 1e-4
"""Rounding: the sums over ranks are made in the order of their arrival."""


def config_of(kind: str, shards: object, folder: Path) -> Path:
    path = folder / f"{kind}.yaml"
    head = HEAD.replace("SHARDS", str(shards)).replace("SIZE", str(SIZES.get(kind, 64)))
    path.write_text(head + KINDS[kind])
    return path


def local_run(kind: str, shards: Path, folder: Path) -> Path:
    """Two processes on this machine."""
    config, run = config_of(kind, shards, folder), folder / "here"
    launch({}, "local", config, "--processes", 2, "--only", "fold_1", f"run={run}")
    return run / "fold_1"


def assert_alike(run: Run, local: Path, kind: str) -> None:
    """Equal scores; equal losses and weights, but for rounding, where something is trained."""
    ours = run.files / "fold_1"
    assert commands.result(ours)["count"] == commands.result(local)["count"]
    if kind == "trains_nothing":
        assert commands.result(ours)["confusion"] == commands.result(local)["confusion"]
        return
    losses = [[record["loss"] for record in commands.records(each, "train")] for each in (ours, local)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], abs=ALIKE)
    assert commands.largest_difference(ours, local) <= ALIKE


@pytest.mark.slow("a submission, two hosts that import torch, an evaluation, and the same run on this machine")
@every
def test_a_kind_through_slurm(kind: str, slurm: SlurmBed, s3: S3, tiny: Path, shards: Path, tmp_path: Path) -> None:
    run = in_bucket(s3, tmp_path, slurm.env(), f"cluster.folder={tmp_path / 'scripts'}")
    cluster = ROOT / "configs" / "clusters" / "slurm_cpu.yaml"
    hosts = ("cluster.nodes=2", "cluster.processes_per_node=1", "cluster.hours=0.2")
    config = config_of(kind, f"{s3.url}/shards", tmp_path)
    run.launch("slurm", config, "--cluster", cluster, *hosts, "--only", "fold_1")
    run.wait_finished()
    assert_alike(run, local_run(kind, shards, tmp_path), kind)


@pytest.mark.slow("a submission, two hosts that import torch, an evaluation, and the same run on this machine")
@every
def test_a_kind_through_ray(kind: str, ray: RayBed, s3: S3, tiny: Path, shards: Path, tmp_path: Path) -> None:
    run = in_bucket(s3, tmp_path, ray.env())
    hosts = ("cluster.gpu=false", "cluster.workers=2", "cluster.cpus_per_worker=2")
    config = config_of(kind, f"{s3.url}/shards", tmp_path)
    submit_job(ray, kind, config, *hosts, "--only", "fold_1", f"run={run.url}")
    wait_job(ray, kind)
    assert_alike(run, local_run(kind, shards, tmp_path), kind)
