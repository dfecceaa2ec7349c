"""Features of a frozen tower as a user's processes compute them: shared by ranks, killed on the way, read by others."""

import shutil
from pathlib import Path

import pytest
import torch

from dfer.bench.features import bench_features
from tests.integration.commands import finish, last_weights, records, refused, result, start
from tests.integration.jobs import Job, wait_until

pytestmark = pytest.mark.integration

PROBE = """
run: run
epochs: 3
batch: 8
eval_batch: 1
eval_every: 1
data:
  shards: {shards}
  frames: 12
  size: 64
  workers: 0
  train_frames: middle
  augment: {{crop: false, flip: 0.0}}
model: {{name: linear_probe, towers: {{arch: tiny-conv-64}}}}
optim: {{name: sgd, groups: {{head: {{lr: 0.05}}}}}}
engine: {{name: ddp}}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, dfew: Path) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.yaml"
    path.write_text(PROBE.format(shards=dfew / "shards"))
    return path


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*/*.safetensors")}


def killed_while_computing(probe: Path, tmp_path: Path) -> Path:
    """A folder in which a killed job of two ranks has left some features, but not all."""
    for attempt in range(8):
        folder = tmp_path / f"features_{attempt}"
        job = Job(probe, f"run={tmp_path / 'killed'}", f"data.features={folder}")
        if wait_until(job, lambda folder=folder: len(shards(folder)) > 1):  # type: ignore[misc]
            job.kill("all")
        else:
            job.end()
        if shards(folder) and not list(folder.glob("*/manifest.json")):
            assert not (tmp_path / "killed").exists()
            return folder
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
    raise AssertionError("every job had computed all features before it was killed")


def test_two_ranks_compute_what_one_reads_and_a_kill_costs_no_whole_shard(probe: Path, tmp_path: Path) -> None:
    finish("train", probe, f"run={tmp_path / 'frames'}")
    folder = killed_while_computing(probe, tmp_path)
    left = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    code, told = Job(probe, f"run={tmp_path / 'two'}", f"data.features={folder}").end()
    assert code == 0, told
    assert "features: 35 clips into " in told and f", of which {3 * len(left)} stand" in told
    assert len(shards(folder)) == 12 and all(path.stat().st_mtime_ns == at for path, at in left.items())
    alone = finish("train", probe, f"run={tmp_path / 'one'}", f"data.features={folder}")
    assert "features:" not in alone.stderr
    for run in (tmp_path / "two", tmp_path / "one"):
        assert losses(run) == pytest.approx(losses(tmp_path / "frames"), abs=1e-5) and len(losses(run)) == 9
        ours, theirs = last_weights(run), last_weights(tmp_path / "frames")
        assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-5) for name in ("head.weight", "head.bias"))
        assert result(run)["confusion"] == result(tmp_path / "frames")["confusion"]


def test_an_epoch_in_a_new_process_needs_no_file_of_weights(dfew: Path) -> None:
    """The file is removed between the two processes of the bench; the same features give the same last loss."""
    found = bench_features(str(dfew / "shards"), arch="tiny-conv-64", batch=4, workers=0)
    assert found["computing"]["loss"] == found["reading"]["loss"] > 0


def test_a_configuration_that_cannot_read_features_is_refused_by_launcher_and_trainer(
    probe: Path, tmp_path: Path
) -> None:
    words = (probe, f"run={tmp_path / 'run'}", "data.features=f", "data.augment.flip=0.5")
    said = "data: features: expected clips that look the same in every epoch, got data.augment.flip=0.5. Set"
    refused(start("train", *words), 2, said, "data.augment.flip=0, or leave data.features out")
    refused(start("local", *words, "--verb", "train", module="launch"), 2, said)
    assert not (tmp_path / "run").exists()
