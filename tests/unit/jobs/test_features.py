"""`data.features`: a linear probe trains, resumes and is evaluated on stored features as on frames; no tower then."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import load_file, save_file

from dfer.config import ConfigProblem
from dfer.data.config import DataConfig
from dfer.data.features import SHARD
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World, process_group
from dfer.emotions import label_set
from dfer.errors import CheckpointError, DataError, StoppedError
from dfer.evaluation.results import FoldResult, read_result
from dfer.interruption import Stop
from dfer.jobs import features as jobs_features
from dfer.jobs.config import RunConfig
from dfer.jobs.crossval import crossval
from dfer.jobs.describe import describe
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.predict import predict
from dfer.jobs.train import train
from dfer.models import build as models_build
from dfer.models.config import DferClipConfig, LinearProbeConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.linear_probe import LinearProbe
from dfer.models.towers import Towers
from dfer.recognition import FeatureBatch, Recognition
from dfer.report.crossval import summarise
from dfer.storage import Folder
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig, StepScheduleConfig
from tests.unit.data.shardkit import Clip, write_shards

ARCH = "tiny-conv-64"
STILL = DferClipAugment(crop=False, flip=0.0)
FOLDS, CLIPS = 2, 9


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of nine clips of noise, of one to seven frames that are not square, in shards of three."""
    draw, folder = np.random.default_rng(5), tmp_path_factory.mktemp("shards")

    def clip(number: int) -> Clip:
        frames = draw.integers(0, 256, (1 + number % 7, 40, 48, 3), dtype=np.uint8)
        frames[:, :8] = 30 * (number % 7)  # something to learn
        jpegs = [simplejpeg.encode_jpeg(frame, quality=95) for frame in frames]
        return Clip(key=f"{number:04d}", label=number % 7, frames=jpegs)

    clips = [[clip(fold * CLIPS + i) for i in range(CLIPS)] for fold in range(FOLDS)]
    cut = {f"fold_{fold + 1}": [of[at : at + 3] for at in range(0, CLIPS, 3)] for fold, of in enumerate(clips)}
    return write_shards(folder, cut)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP's file of weights in open_clip's names."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    torch.manual_seed(11)
    towers = Towers(TowersConfig(arch=ARCH))
    saved = {f"visual.{name}": value for name, value in towers.visual.state_dict().items()}
    saved |= {name.removeprefix("text."): value for name, value in towers.text.state_dict().items()}
    save_file({name: value.clone().contiguous() for name, value in saved.items()}, path)
    return path


def config(home: Path, faces: Path, *, features: Path | str | None = None, **changes: Any) -> RunConfig:
    data = DataConfig(
        shards=str(faces),
        workers=0,
        frames=3,
        size=64,
        augment=STILL,
        train_frames="middle",
        features=None if features is None else str(features),
    )
    values: dict[str, Any] = {
        "run": str(home),
        "epochs": 3,
        "batch": 4,
        "eval_batch": 4,
        "eval_every": 1,
        "data": data,
        "model": LinearProbeConfig(towers=TowersConfig(arch=ARCH)),
        "engine": EngineConfig(name="ddp"),
        "optim": SgdConfig(groups={"head": GroupConfig(lr=0.05)}),
        "schedule": StepScheduleConfig(milestones=(2,)),
    }
    return RunConfig(**{**values, **changes})


def weights_of(home: Path) -> dict[str, torch.Tensor]:
    return load_file(max((home / "checkpoints").glob("step_*")) / "weights.safetensors")


def records(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]


def losses(home: Path) -> list[float]:
    return [record["loss"] for record in records(home) if record["kind"] == "train"]


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def refuse_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    def tower(*_: Any, **__: Any) -> None:
        raise AssertionError("an image tower was built")

    monkeypatch.setattr(models_build, "image_tower", tower)


# --- equal to frames


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_give_what_frames_give(tmp_path: Path, faces: Path, alone: World, precision: Any) -> None:
    engine = EngineConfig(name="ddp", precision=precision)
    frames = train(config(tmp_path / "frames", faces, engine=engine), alone)
    cached = train(config(tmp_path / "cached", faces, features=tmp_path / "f", engine=engine), alone)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "frames"), abs=1e-5)
    assert len(set(losses(tmp_path / "cached"))) == 6  # two steps in each of three epochs
    ours, theirs = weights_of(tmp_path / "cached"), weights_of(tmp_path / "frames")
    assert set(ours) == {"head.weight", "head.bias"} and set(ours) < set(theirs)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-5) for name in ours)
    assert cached.confusion == frames.confusion and cached.protocol == frames.protocol


def test_the_order_is_that_of_frames_with_canonical_partitions(tmp_path: Path, faces: Path, alone: World) -> None:
    both = []
    for name, features in (("frames", None), ("cached", tmp_path / "f")):
        made = config(tmp_path / name, faces, features=features, record_clips=True)
        train(replace(made, data=replace(made.data, canonical_partitions=2)), alone)
        both.append([record["clips"] for record in records(tmp_path / name) if record["kind"] == "clips"])
    assert both[0] == both[1] and len(both[0]) == 6


def test_variants_reach_the_result(tmp_path: Path, faces: Path, alone: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LinearProbe.forward

    def with_variants(self: LinearProbe, batch: FeatureBatch) -> Recognition:
        out = forward(self, batch)
        return replace(out, variants={"turned": -out.logits, "same": out.logits})

    monkeypatch.setattr(LinearProbe, "forward", with_variants)
    result = train(config(tmp_path / "run", faces, features=tmp_path / "f"), alone)
    assert set(result.variants) == {"same", "turned"} and result.variants["same"] == result.scores
    assert result.variants["turned"].confusion != result.confusion
    assert read_result(Folder(tmp_path / "run")) == result
    report = summarise(Folder(tmp_path / "run"), RunConfig)
    assert report.variants["turned"].mean.war == result.variants["turned"].war


# --- computed once


@pytest.mark.slow("the first of the file: its fixtures compute features and train")
def test_they_are_computed_once_and_no_tower_is_built_afterwards(
    tmp_path: Path,
    faces: Path,
    weights: Path,
    alone: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All folds, a resume, evaluation: with the file of weights gone, once the features stand."""
    mine = tmp_path / "clip.safetensors"
    shutil.copy(weights, mine)
    model = LinearProbeConfig(towers=TowersConfig(arch=ARCH, pretrained=str(mine)))
    first = config(tmp_path / "run/fold_1", faces, features=tmp_path / "f", model=model, epochs=1)
    assert "features: computed first, into" in describe(first, World())
    train(first, alone)
    said = capsys.readouterr().err
    assert f"features: {FOLDS * CLIPS} clips into {tmp_path / 'f'}/" in said
    assert f"features: {FOLDS * CLIPS} clips stored, " in said
    files = {path: path.stat().st_mtime_ns for path in stored(tmp_path / "f")}
    assert len(files) == 9 and all(SHARD.fullmatch(path.name) for path in files)  # 18 clips, 2 a shard
    mine.unlink()
    refuse_towers(monkeypatch)
    assert f"features: read from {tmp_path / 'f'}/" in describe(first, World())
    again = train(replace(first, epochs=2), alone)
    assert again.epoch == 2 and len(losses(tmp_path / "run/fold_1")) == 4
    assert evaluate_run(replace(first, epochs=2), alone, trained=True).confusion == again.confusion
    crossval(config(tmp_path / "run", faces, features=tmp_path / "f", model=model, epochs=2), alone)
    assert {path: path.stat().st_mtime_ns for path in stored(tmp_path / "f")} == files
    assert "features:" not in capsys.readouterr().err
    environment = json.loads((tmp_path / "run/fold_2/environment.json").read_text())
    assert environment["weights"][0].startswith(f"model.towers.pretrained={mine}: ")


def test_a_new_clip_is_predicted_with_the_tower(tmp_path: Path, faces: Path, weights: Path, alone: World) -> None:
    model = LinearProbeConfig(towers=TowersConfig(arch=ARCH, pretrained=str(weights)))
    answers = []
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "1.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((50, 50, 3), 90, np.uint8)))
    for name, features in (("frames", None), ("cached", tmp_path / "f")):
        run = config(tmp_path / name, faces, features=features, model=model, epochs=1)
        train(run, alone)
        answers.append(dict(predict(run, [clip], alone))[clip])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5) and len(answers[0]) == len(label_set("basic7"))  # type: ignore[arg-type]


def test_what_a_stopped_run_has_stored_is_not_computed_again(
    tmp_path: Path, faces: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stop = config(tmp_path / "run", faces, features=tmp_path / "f", eval_batch=4), Stop()
    written = []
    write = jobs_features.write_shard

    def stopping(*arguments: Any, **named: Any) -> Any:
        written.append(arguments[1])
        if len(written) == 3:
            stop.request("SIGTERM")
        return write(*arguments, **named)

    monkeypatch.setattr(jobs_features, "write_shard", stopping)
    with pytest.raises(StoppedError, match=r"the features in .*: expected to go on, got SIGTERM\. All is saved"):
        train(run, alone, stop)
    assert len(stored(tmp_path / "f")) == 3 and not list((tmp_path / "f").glob("*/manifest.json"))
    assert not (tmp_path / "run").exists()
    damaged = stored(tmp_path / "f")[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    train(run, alone)
    assert written == [0, 1, 2, 1, 3, 4, 5, 6, 7, 8]


# --- what they depend on


def test_other_settings_have_other_features(tmp_path: Path, faces: Path, weights: Path) -> None:
    other = tmp_path / "clip.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, other)
    run = config(tmp_path / "run", faces, features=tmp_path / "f")

    def towers(path: Path | None) -> LinearProbeConfig:
        return LinearProbeConfig(towers=TowersConfig(arch=ARCH, pretrained=None if path is None else str(path)))

    others = [
        run,
        replace(run, seed=2),
        replace(run, data=replace(run.data, frames=4)),
        replace(run, data=replace(run.data, size=32)),
        replace(run, engine=EngineConfig(name="ddp", precision="bf16")),
        replace(run, engine=EngineConfig(name="ddp", tf32=True)),
        replace(run, model=replace(run.model, clip_normalisation=False)),
        replace(run, model=towers(weights)),
        replace(run, model=towers(other)),
        replace(run, model=LinearProbeConfig(towers=TowersConfig(arch="tiny-vit-64"))),
    ]
    names = [jobs_features.name_of(jobs_features.key_of(one, "0" * 64)) for one in others]
    names.append(jobs_features.name_of(jobs_features.key_of(run, "1" * 64)))
    assert len(set(names)) == len(names)
    same = [replace(run, run="elsewhere", fold=2, epochs=9), replace(run, model=replace(run.model))]
    assert {jobs_features.name_of(jobs_features.key_of(one, "0" * 64)) for one in same} == {names[0]}
    seeded = replace(run, model=towers(weights), seed=2)
    assert jobs_features.name_of(jobs_features.key_of(seeded, "0" * 64)) == names[7]


def test_two_files_of_one_name_cannot_be_told_when_they_are_gone(
    tmp_path: Path, faces: Path, weights: Path, alone: World
) -> None:
    mine = tmp_path / "clip.safetensors"
    model = LinearProbeConfig(towers=TowersConfig(arch=ARCH, pretrained=str(mine)))
    for number in range(2):
        save_file({name: value + number for name, value in load_file(weights).items()}, mine)
        train(config(tmp_path / f"run_{number}", faces, features=tmp_path / "f", model=model), alone)
    mine.unlink()
    with pytest.raises(CheckpointError) as caught:
        train(config(tmp_path / "run", faces, features=tmp_path / "f", model=model), alone)
    assert str(caught.value) == (
        f"{tmp_path / 'f'}: expected features of one file of weights of that name, got 2. "
        "Put the file back at model.towers.pretrained."
    )
    with pytest.raises(CheckpointError) as caught:
        train(config(tmp_path / "run", faces, features=tmp_path / "g", model=model), alone)
    assert str(caught.value) == (
        f"model.towers.pretrained={mine}: expected this file, or features made with it in {tmp_path / 'g'}, "
        "got neither. Put it back, or correct data.features."
    )


def test_a_run_does_not_go_over_from_frames_to_features(tmp_path: Path, faces: Path, alone: World) -> None:
    frames, cached = (config(tmp_path / "run", faces, features=f, epochs=1) for f in (None, tmp_path / "f"))
    train(frames, alone)
    with pytest.raises(CheckpointError) as caught:
        train(replace(cached, epochs=2), alone)
    assert not (tmp_path / "f").exists(), "refused before anything is computed"
    name = str(caught.value).partition("got features ")[2][:16]
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: expected frames, as it was started with, got features {name}. Restore data.features and "
        "the settings that decide the features, or start a new run with run=FOLDER."
    )
    train(config(tmp_path / "other", faces, features=tmp_path / "moved", epochs=1), alone)
    assert [path.name for path in (tmp_path / "moved").iterdir()] == [name]
    shutil.move(tmp_path / "moved", tmp_path / "again")
    train(config(tmp_path / "other", faces, features=tmp_path / "again", epochs=2), alone)
    with pytest.raises(CheckpointError, match=f"expected features {name}, as it was started with, got frames"):
        train(config(tmp_path / "other", faces, epochs=3), alone)


def test_damaged_features_are_told(tmp_path: Path, faces: Path, alone: World) -> None:
    run = config(tmp_path / "run", faces, features=tmp_path / "f", epochs=1)
    train(run, alone)
    path = stored(tmp_path / "f")[0]
    whole = path.read_bytes()
    for data, said in ((whole[:-4], "expected the bytes of its manifest, got others"), (None, "got no such file")):
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(DataError, match=said) as caught:
            train(replace(run, run=str(tmp_path / "next")), alone)
        assert str(path) in str(caught.value) and "Remove manifest.json there and repeat" in str(caught.value)
    manifest = path.with_name("manifest.json")
    text, others = manifest.read_text(), [other.stat().st_mtime_ns for other in stored(tmp_path / "f")]
    manifest.unlink()
    train(replace(run, run=str(tmp_path / "mended")), alone)
    assert manifest.read_text() == text and path.read_bytes() == whole
    assert others and others == [other.stat().st_mtime_ns for other in stored(tmp_path / "f") if other != path]
    outside = manifest.read_text().replace(path.name, "../../secret.safetensors")
    for text, said in ((outside, "path: expected a name as 00000-"), ("{", "got something else")):
        manifest.write_text(text)
        with pytest.raises(DataError, match=said):
            train(replace(run, run=str(tmp_path / "next")), alone)


def test_a_clip_that_cannot_be_read_leaves_no_features(tmp_path: Path, alone: World) -> None:
    bad = Clip(key="bad", frames=[b"\xff\xd8 no picture"])
    write_shards(tmp_path / "s", {"fold_1": [[Clip(key="a")]], "fold_2": [[bad]]})
    with pytest.raises(DataError, match="bad"):
        train(config(tmp_path / "run", tmp_path / "s", features=tmp_path / "f", batch=1), alone)
    assert not list((tmp_path / "f").glob("*/manifest.json")) and not (tmp_path / "run").exists()


# --- refused at once


def test_a_configuration_that_cannot_use_features_says_what_to_set(tmp_path: Path, faces: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        DataConfig(shards="s", features="f", augment=DferClipAugment(brightness=0.5), max_bad_share=0.1)
    assert str(caught.value) == (
        "features: expected clips that look the same in every epoch, got data.augment.crop=true, "
        "data.augment.flip=0.5, data.augment.brightness=0.5, data.train_frames=random, data.max_bad_share=0.1. "
        "Set data.augment.crop=false data.augment.flip=0 data.augment.brightness=0 data.train_frames=middle "
        "data.max_bad_share=0, or leave data.features out"
    )
    with pytest.raises(ConfigProblem) as caught:
        config(tmp_path, faces, features=tmp_path / "f", model=DferClipConfig(train_image=False))
    assert str(caught.value) == (
        "data.features: expected a method with a frozen image tower, such as linear_probe, got model.name=dfer_clip. "
        "Leave data.features out, or choose another method"
    )
    with pytest.raises(ConfigProblem) as caught:
        config(tmp_path, faces, features=tmp_path / "f", model=LinearProbeConfig(start="runs/other"))
    assert str(caught.value) == (
        "data.features: expected weights of model.towers, got model.start=runs/other. "
        "Leave data.features out, or set model.start=null"
    )


def test_frames_are_drawn_or_the_middle_ones(tmp_path: Path, faces: Path, alone: World) -> None:
    """What the result says of the input of training."""
    run = config(tmp_path / "middle", faces, epochs=1)
    found: list[FoldResult] = [train(run, alone)]
    drawn = replace(run, run=str(tmp_path / "random"), data=replace(run.data, train_frames="random"))
    found.append(train(drawn, alone))
    assert [result.protocol.augment for result in found] == ["the middle frame of every segment", "none"]
    assert losses(tmp_path / "middle") != losses(tmp_path / "random")
