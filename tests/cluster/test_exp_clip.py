"""Exp-CLIP's jobs through SLURM and Ray: pairs of features by independent tasks, a head on two hosts, the zero-shot
suite. Bytes and losses are those of one machine."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.launched import ROOT, launch
from tests.cluster.ray_bed import RayBed
from tests.cluster.ray_jobs import submit_job, wait_job
from tests.cluster.slurm import SlurmBed
from tests.integration.commands import records
from tests.servers import S3

pytestmark = [pytest.mark.cluster(long=True), pytest.mark.long]

PAIRS = """
pairs:
  pictures: {folder}/pictures
  features: {features}
  size: 64
  batch: 4
  workers: 0
  towers: {{arch: tiny-vit-64}}
  teacher: {{name: words, dim: 32}}
"""
ZEROSHOT = """
job: zeroshot
run: {run}
features: {features}
models:
  plain: {{towers: {{arch: tiny-vit-64}}}}
  fitted: {{towers: {{arch: tiny-vit-64}}, head: {head}}}
texts: [class_names, ensemble_5]
sets:
  faces: {{shards: {shards}, classes: basic7}}
  nowhere: {{shards: null}}
frames: 4
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Pictures with descriptions, and what one machine makes of them."""
    folder = tmp_path_factory.mktemp("exp_clip")
    (folder / "pictures").mkdir()
    lines = ["file,text"]
    for number, path in enumerate(sorted(shards.parent.glob("raw/**/*.jpg"))[:60]):
        shutil.copyfile(path, folder / "pictures" / f"{number:03d}.jpg")
        lines.append(f"{number:03d}.jpg,brow {number % 7} lip {number % 5}")
    (folder / "pictures" / "descriptions.csv").write_text("\n".join(lines) + "\n")
    launch({}, "local", extract(folder, folder, workers=1))
    launch({}, "local", fit(folder, folder), "--processes", 2)
    return folder


def extract(home: Path, folder: Path, *, workers: int) -> Path:
    path = folder / "extract.yaml"
    pairs = PAIRS.format(folder=home, features=f"{folder}/features")
    path.write_text(f"job: extract\nrun: {folder}/extract\nworkers: {workers}\n{pairs}")
    return path


def fit(home: Path, folder: Path) -> Path:
    path = folder / "fit.yaml"
    pairs = PAIRS.format(folder=home, features=f"{folder}/features")
    path.write_text(f"job: fit\nrun: {folder}/fitted\nepochs: 4\nbatch: 12\n{pairs}")
    return path


def zeroshot(folder: Path, shards: str) -> Path:
    path = folder / "zeroshot.yaml"
    head = folder / "fitted" / "fit" / "head" / "head.safetensors"
    values = {"run": folder / "zeroshot", "features": folder / "features", "head": head, "shards": shards}
    path.write_text(ZEROSHOT.format(**values))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_alike(home: Path, folder: Path) -> None:
    assert snapshot(home / "features") == snapshot(folder / "features")
    curves = [[row["loss"] for row in records(each / "fitted" / "fit", "train")] for each in (home, folder)]
    assert len(curves[0]) == 20 and curves[1] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.slow("three jobs, one after another, each of which starts processes that import torch")
def test_the_jobs_through_slurm(slurm: SlurmBed, s3: S3, tiny: Path, home: Path, tmp_path: Path) -> None:
    env = {**slurm.env(), **s3.environment}
    words = ("--cluster", ROOT / "configs" / "clusters" / "slurm_cpu.yaml", "cluster.hours=0.2")
    hosts = ("cluster.nodes=2", "cluster.processes_per_node=1")
    launch(env, "slurm", extract(home, tmp_path, workers=3), *words, "cluster.cpus_per_process=1")
    wait_until(lambda: list(tmp_path.glob("features/*/manifest.json")), 240, "the pairs")
    launch(env, "slurm", fit(home, tmp_path), *words, *hosts)
    head = tmp_path / "fitted" / "fit" / "head" / "head.safetensors"
    wait_until((tmp_path / "fitted" / "report" / "fits.md").exists, 240, "the table of heads")
    rows = json.loads(launch(env, "status", tmp_path / "fitted", "--json"))
    assert head.is_file() and [(row["part"], row["state"]) for row in rows] == [("fit", "finished")]
    assert_alike(home, tmp_path)
    launch(env, "slurm", zeroshot(tmp_path, f"{s3.url}/shards"), *words)
    wait_until((tmp_path / "zeroshot" / "report" / "report.md").exists, 240, "the table of the suite")
    assert "nowhere: absent" in (tmp_path / "zeroshot" / "report" / "report.md").read_text()


@pytest.mark.slow("three jobs, one after another, each of which starts processes that import torch")
def test_the_jobs_through_ray(ray: RayBed, s3: S3, tiny: Path, home: Path, tmp_path: Path) -> None:
    one = ("cluster.gpu=false", "cluster.cpus_per_worker=1")
    submit_job(ray, "extract", extract(home, tmp_path, workers=3), *one)
    wait_job(ray, "extract")
    submit_job(ray, "fit", fit(home, tmp_path), "cluster.gpu=false", "cluster.workers=2", "cluster.cpus_per_worker=2")
    wait_job(ray, "fit")
    assert_alike(home, tmp_path)
    submit_job(ray, "zeroshot", zeroshot(tmp_path, f"{s3.url}/shards"), *one, "cluster.workers=1")
    wait_job(ray, "zeroshot")
    assert "nowhere: absent" in (tmp_path / "zeroshot" / "report" / "report.md").read_text()
    rows = json.loads(launch({**ray.env(), **s3.environment}, "status", tmp_path / "fitted", "--json"))
    assert [(row["part"], row["state"]) for row in rows] == [("fit", "finished")]
