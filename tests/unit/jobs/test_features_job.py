"""`job=features`: the features of a training computed beforehand, in parts; what is refused."""

from pathlib import Path

import pytest

from dfer.config import ConfigProblem, to_yaml
from dfer.errors import CheckpointError, StoppedError, UsageError
from dfer.interruption import Stop
from dfer.jobs import features_job
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import JOBS, load_job, name_of
from tests.unit.data.shardkit import Clip, jpeg, write_shards

PROBE = """
run: {home}/run
epochs: 1
batch: 4
eval_batch: 2
data:
  shards: {home}/shards
  frames: 1
  size: 64
  workers: 0
  train_frames: middle
  augment: {{crop: false, flip: 0.0}}
model: {{name: linear_probe, towers: {{arch: tiny-conv-64}}}}
optim: {{name: sgd, groups: {{head: {{lr: 0.05}}}}}}
engine: {{name: ddp}}
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    clips = [Clip(key=f"c{n:02d}", label=n % 7, frames=[jpeg(7 * n)]) for n in range(34)]
    write_shards(tmp_path / "shards", {"fold_1": [clips[:14]], "fold_2": [clips[14:]]})
    path = tmp_path / "probe.yaml"
    path.write_text(PROBE.format(home=tmp_path))
    return path


def load(probe: Path, *overrides: str) -> RunConfig:
    module, found = load_job([probe], ["job=features", f"data.features={probe.parent / 'f'}", *overrides])
    assert name_of(module) == JOBS["features"] and not module.grouped
    assert isinstance(found, RunConfig)
    return found


def make(config: RunConfig, stop: Stop | None = None) -> str:
    parts = features_job.parts(config)
    features_job.check(config, parts, [1])
    for part in parts:
        if not features_job.done(config, part):
            features_job.run(config, part, None, stop or Stop())
    return features_job.conclude(config)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_part_goes_on_in_another_number_of_parts(probe: Path, tmp_path: Path) -> None:
    stop = Stop()
    stop.request("SIGTERM")
    first = load(probe, "workers=2")
    with pytest.raises(StoppedError, match=r"the features in .*: expected to go on, got SIGTERM"):
        make(first, stop)
    assert not features_job.done(first, features_job.parts(first)[0])
    with pytest.raises(CheckpointError, match="expected the pieces of every part, got none of worker_1, worker_2"):
        features_job.conclude(first)
    assert "features of 34 clips; a training with the same configuration reads them" in make(load(probe, "workers=3"))
    make(load(probe, f"data.features={tmp_path / 'g'}", "run=elsewhere/x", f"run={tmp_path / 'other'}"))
    ours, theirs = files(tmp_path / "f"), files(tmp_path / "g")
    assert ours == theirs and len(ours) == 10  # 34 clips, 4 a shard; and the manifest
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "f").rglob("*") if path.is_file()}
    make(load(probe, "workers=1"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_records_lie_beside_the_trainings_run(probe: Path, tmp_path: Path) -> None:
    assert load(probe).run == f"{tmp_path / 'run'}_features"
    named = load(probe, f"run={tmp_path / 'other'}", "seeds=[3,4]")
    assert (named.run, named.seed, named.seeds) == (str(tmp_path / "other"), 3, ())
    assert [part.name for part in features_job.parts(load(probe, "workers=2"))] == ["worker_1", "worker_2"]
    assert features_job.shared(named) == {
        "data.shards": str(tmp_path / "shards"),
        "data.features": str(tmp_path / "f"),
    }


def test_what_is_refused(probe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load_job([probe], ["job=features"])
    assert str(caught.value) == (
        "data.features: expected where to store the features, got nothing. "
        "Set data.features=FOLDER_OR_URL, as in the training that will read them."
    )
    with pytest.raises(ConfigProblem, match=r"job: expected one of crossval, .*, got fetures\. .*Did you mean"):
        load_job([probe], ["job=fetures"])
    training = tmp_path / "training"
    training.mkdir()
    (training / "config.yaml").write_text(to_yaml(load(probe)))
    with pytest.raises(UsageError) as other:
        make(load(probe, f"run={training}"))
    assert str(other.value) == (
        f"{training}: expected a folder for this job, got a training run. Choose another one with run=FOLDER."
    )
    make(load(probe))
    with pytest.raises(CheckpointError, match=r"_features: expected frames 1, as it was begun with, got frames 2"):
        make(load(probe, "data.frames=2"))
    missing = tmp_path / "clip.safetensors"
    with pytest.raises(CheckpointError, match=r"expected this file, or features made with it in .*, got neither"):
        make(load(probe, f"run={tmp_path / 'new'}", f"model.towers.pretrained={missing}"))
