"""A method that trains nothing goes through cross-validation, evaluation and report, from frames and from features."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from dfer.__main__ import main
from dfer.config import changed
from dfer.data.clips import ClipSet, emotions_for
from dfer.data.config import DataConfig
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, StoppedError, UsageError
from dfer.evaluation.results import FoldResult, read_result
from dfer.interruption import Stop
from dfer.jobs import crossval as job
from dfer.jobs.config import RunConfig
from dfer.jobs.crossval import crossval
from dfer.jobs.describe import describe
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.parts import Part
from dfer.jobs.predict import predict
from dfer.jobs.train import train
from dfer.models.config import DferClipConfig, ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.report.compare import compare
from dfer.run.layout import RESULT, finished, is_evaluated, others
from dfer.storage import Folder
from dfer.store.shards import Store
from dfer.training.config import EngineConfig, SgdConfig
from tests.unit.data.shardkit import Clip, write_shards

FOLDS, CLIPS = 2, 8


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of eight clips of noise."""
    draw, folder = np.random.default_rng(5), tmp_path_factory.mktemp("shards")

    def clip(number: int) -> Clip:
        frames = draw.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
        jpegs = [simplejpeg.encode_jpeg(frame, quality=95) for frame in frames]
        return Clip(key=f"{number:04d}", label=number % 7, frames=jpegs)

    clips = {f"fold_{fold + 1}": [[clip(fold * CLIPS + i) for i in range(CLIPS)]] for fold in range(FOLDS)}
    return write_shards(folder, clips)


def config(home: Path, faces: Path, **changes: Any) -> RunConfig:
    data = DataConfig(
        shards=str(faces),
        workers=0,
        frames=2,
        size=64,
        train_frames="middle",
        augment=DferClipAugment(crop=False, flip=0.0),
    )
    found = RunConfig(
        run=str(home),
        epochs=1,
        batch=47,  # no multiple of anything: no batch is trained
        eval_batch=4,
        data=data,
        model=ZeroShotConfig(towers=TowersConfig(arch="tiny-conv-64"), text="ensemble_5"),
        engine=EngineConfig(name="ddp"),
        optim=SgdConfig(groups={}),
    )
    return changed(found, changes)


def probabilities(home: Path) -> list[str]:
    return (home / "results" / "test_predictions.csv").read_text().splitlines()


def test_a_cross_validation_evaluates_every_fold_and_reports(faces: Path, tmp_path: Path, alone: World) -> None:
    whole = config(tmp_path / "run", faces)
    job.check(whole, job.parts(whole), [1, 2])
    table = crossval(whole, alone)
    assert "zero_shot" in table and (tmp_path / "run" / "report" / "index.html").is_file()
    for fold in (1, 2):
        result = read_result(Folder(str(tmp_path / "run" / f"fold_{fold}")))
        assert (result.step, result.epochs, result.complete, sum(result.count)) == (0, 0, True, CLIPS)
        assert result.protocol.augment == "none"
        assert not (tmp_path / "run" / f"fold_{fold}" / "checkpoints").exists()
    before = read_result(Folder(str(tmp_path / "run" / "fold_1")))
    part = Part(name="fold_1", run=str(tmp_path / "run" / "fold_1"))
    assert job.done(whole, part) and "WAR" in job.run(whole, part, alone, Stop())
    assert read_result(Folder(part.run)) == before, "a finished part is not evaluated again"
    other = replace(whole, model=replace(whole.model, text="class_names"))
    with pytest.raises(CheckpointError, match="text"):
        job.run(other, part, alone, Stop())


@pytest.mark.slow("two cross-validations of the same weights, one of them through features")
def test_features_give_the_answers_of_frames(faces: Path, tmp_path: Path, alone: World) -> None:
    crossval(config(tmp_path / "frames", faces), alone)
    crossval(config(tmp_path / "features", faces, **{"data.features": str(tmp_path / "stored")}), alone)
    for fold in ("fold_1", "fold_2"):
        ours, theirs = (read_result(Folder(str(tmp_path / name / fold))) for name in ("features", "frames"))
        assert ours.confusion == theirs.confusion


def test_one_fold_is_evaluated_by_itself_and_again(faces: Path, tmp_path: Path, alone: World) -> None:
    one = config(tmp_path / "one", faces)
    first = evaluate_run(one, alone, trained=False)
    again = evaluate_run(one, alone, trained=False, out=Folder(str(tmp_path / "elsewhere")))
    assert first.confusion == again.confusion
    assert json.loads((tmp_path / "elsewhere" / "results" / "test.json").read_text())["step"] == 0
    assert not (tmp_path / "elsewhere" / "config.yaml").exists()


def test_training_is_refused_and_a_dry_run_says_that_nothing_is_trained(
    faces: Path, tmp_path: Path, alone: World
) -> None:
    one = config(tmp_path / "one", faces)
    with pytest.raises(UsageError, match=r"trains nothing .* `dfer crossval` for all folds, not `train`"):
        train(replace(one, batch=4), alone)
    text = describe(one, alone)
    assert "fold 1 of 2: trains nothing" in text and "steps" not in text and "test: 8 clips" in text


def test_a_stop_ends_the_evaluation_and_the_same_command_does_it_anew(
    faces: Path, tmp_path: Path, alone: World
) -> None:
    one, stop = config(tmp_path / "one", faces), Stop()
    part = Part(name="fold_1", run=str(tmp_path / "one" / "fold_1"))
    stop.request("a test")
    with pytest.raises(StoppedError):
        job.run(one, part, alone, stop)
    assert not job.done(one, part)
    job.run(one, part, alone, Stop())
    assert job.done(one, part)


def test_new_clips_are_classified_as_in_the_evaluation(faces: Path, tmp_path: Path, alone: World) -> None:
    one = config(tmp_path / "one", faces)
    evaluate_run(one, alone, trained=False)
    store = Store(str(faces))
    clips = ClipSet.open(store, ["fold_1"], emotions=emotions_for(None, store.manifest))
    folder = tmp_path / clips.key(0)
    folder.mkdir()
    for number, data in enumerate(clips.read(0, range(clips.num_frames(0)))):
        (folder / f"{number:03d}.jpg").write_bytes(data)
    ((_, answer),) = predict(one, [folder], alone)
    assert isinstance(answer, dict)
    with (tmp_path / "one" / "results" / "test_predictions.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["key"] == clips.key(0))
    assert {name: float(row[name]) for name in answer} == pytest.approx(answer, abs=1e-4)


def test_a_head_changes_the_answers(faces: Path, tmp_path: Path, alone: World) -> None:
    torch.manual_seed(2)
    torch.save({"mlp.weight": torch.randn(50, 128)}, tmp_path / "head.pth")
    headed = config(tmp_path / "head", faces, **{"model.head": str(tmp_path / "head.pth")})
    found = evaluate_run(headed, alone, trained=False)
    assert sum(found.count) == CLIPS
    evaluate_run(config(tmp_path / "plain", faces), alone, trained=False)
    assert probabilities(tmp_path / "head") != probabilities(tmp_path / "plain")


# --- second results


def second(run: RunConfig, alone: World, **changes: Any) -> tuple[FoldResult, str]:
    """A second result and the name of its file; the first one stays as it is."""
    home = Folder(run.run)
    before, known = (Path(run.run) / RESULT).read_bytes(), others(home)
    found = evaluate_run(changes.pop("config", run), alone, trained=False, **changes)
    assert (Path(run.run) / RESULT).read_bytes() == before and finished(home)
    (name,) = {*others(home)} - {*known}
    assert read_result(home, name) == found and (found.step, found.complete) == (0, True)
    return found, name


@pytest.mark.slow("evaluates a model four times")
def test_second_results_of_weights_that_are_not_trained(faces: Path, tmp_path: Path, alone: World) -> None:
    one = config(tmp_path / "one", faces)
    evaluate_run(one, alone, trained=False)
    found, name = second(one, alone, shuffle_frames=True)
    assert (name, found.protocol.shuffled, found.trained) == ("results/other-shuffled.json", True, None)
    found, name = second(one, alone, config=changed(one, {"data.frames": 3}))
    assert (name, found.protocol.num_frames) == ("results/other-frames_3.json", 3)
    again = evaluate_run(one, alone, trained=False)
    assert (again.protocol.num_frames, again.protocol.shuffled) == (2, False)
    with pytest.raises(CheckpointError, match=r"1 changed keys \(fold was 1, now 2"):
        evaluate_run(replace(one, fold=2), alone, trained=False)
    with pytest.raises(CheckpointError, match=r"1 changed keys \(model.temperature was"):
        evaluate_run(changed(one, {"model.temperature": 0.5}), alone, trained=False)


def test_other_shards_give_a_second_result_with_classes_by_name(faces: Path, tmp_path: Path, alone: World) -> None:
    """The other set numbers its classes otherwise, has one that the first lacks, and lacks most of the first's."""
    one = config(tmp_path / "one", faces)
    first = evaluate_run(one, alone, trained=False)
    clips = [Clip(key=str(n), label=label) for n, label in enumerate((0, 1, 2, 2))]
    classes = ("sadness", "contempt", "happiness")
    write_shards(tmp_path / "other", {"train": [[Clip(key="q")]], "test": [clips]}, classes=classes)
    path = tmp_path / "other" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "otherset"}))
    elsewhere = changed(one, {"data.shards": str(tmp_path / "other")})
    found, name = second(one, alone, config=elsewhere)
    assert name == f"results/other-otherset_{found.manifest_sha256[:8]}-fold_1-protocol_published.json"
    assert (found.classes, found.count) == (first.classes, (2, 1, 0, 0, 0, 0, 0))
    assert found.trained is not None and found.trained.dataset == "weights not trained here"
    (row,) = compare([Folder(one.run)], RunConfig).matrix.items()
    assert row[0][1] == "weights not trained here" and [*row[1]] == ["test", "otherset"]


@pytest.mark.slow("evaluates two folds four times")
@pytest.mark.parametrize("old_names", [False, True])
def test_all_folds_on_one_split_are_one_row_whatever_their_files_are_named(
    faces: Path, tmp_path: Path, alone: World, old_names: bool
) -> None:
    """Earlier versions named the tested fold only where it was another one than the run's."""
    clips = [Clip(key=str(n), label=n % 3) for n in range(4)]
    write_shards(tmp_path / "other", {"train": [[Clip(key="q")]], "test": [clips]})
    path, run = tmp_path / "other" / "manifest.json", tmp_path / "run"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "otherset"}))
    plain = []
    for fold in (1, 2):
        own = replace(config(run / f"fold_{fold}", faces), fold=fold)
        evaluate_run(own, alone, trained=False)
        one = replace(changed(own, {"data.shards": str(tmp_path / "other")}), fold=1)
        found, name = second(own, alone, config=one)
        second(own, alone, config=changed(one, {"data.frames": 3}))  # sorts before the plain one
        plain.append((found, name))
        old = f"results/other-otherset_{found.manifest_sha256[:8]}{'-fold_1' if fold == 2 else ''}"
        for end in (".json", "_predictions.csv") if old_names else ():
            (run / f"fold_{fold}" / f"{name.removesuffix('.json')}{end}").rename(run / f"fold_{fold}" / f"{old}{end}")
    assert plain[0][1] == plain[1][1]
    result = compare([Folder(run)], RunConfig)
    (table,) = [each for each in result.tables if each.data == "otherset"]
    rows = {entry.label: entry for entry in table.entries}
    assert [*rows] == ["run, on otherset", "run, on otherset; 3 frames"]
    assert [entry.coverage for entry in rows.values()] == ["2 of 2 folds"] * 2
    assert [*rows["run, on otherset"].tested.results.values()] == [found for found, _ in plain]
    assert len(table.pairs) == 1 and table.pairs[0].clips == 4
    cell = result.matrix["run", "weights not trained here"]["otherset"]
    assert cell.war == pytest.approx(np.mean([found.war for found, _ in plain]))


def test_the_command_line_tells_weights_that_are_not_trained_from_a_training(
    faces: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a first result of a method that could be trained, as of an imported model."""
    towers = TowersConfig(arch="tiny-conv-64")
    one = replace(config(tmp_path / "one", faces), model=DferClipConfig(towers=towers))
    evaluate_run(one, alone, trained=False)
    assert is_evaluated(Folder(one.run)) and not is_evaluated(Folder(tmp_path / "none"))
    assert main(["evaluate", one.run, "--shuffle-frames"]) == 0
    said = capsys.readouterr()
    assert "frames shuffled" in said.out and "a second result of these weights, in " in said.err
    assert others(Folder(one.run)) == ["results/other-shuffled.json"]
    (tmp_path / "one" / RESULT).unlink()  # as a training that was killed before its first checkpoint
    assert main(["evaluate", one.run]) == 5
    assert "expected a checkpoint selected by `last`, got none" in capsys.readouterr().err
