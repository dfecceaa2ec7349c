"""Options of training that several methods share, in whole runs: exact on resume, said in the result, the same in
training, evaluation and prediction."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfer.config import ConfigProblem, to_yaml
from dfer.data.config import DataConfig
from dfer.data.mix_config import MixConfig
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World, process_group
from dfer.emotions import label_set
from dfer.errors import CheckpointError, DataError
from dfer.jobs.config import RunConfig
from dfer.jobs.crossval import done
from dfer.jobs.describe import describe
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.fold_data import open_fold, train_loader, training_rows
from dfer.jobs.parts import Part
from dfer.jobs.targets import mix_of
from dfer.jobs.train import train
from dfer.models.build import build
from dfer.models.config import LinearProbeConfig
from dfer.report.crossval import summarise
from dfer.report.tables import facts
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.run.layout import RESULT, finished
from dfer.storage import Folder
from dfer.training.config import (
    AdamConfig,
    EarlyStopConfig,
    EngineConfig,
    ExponentialScheduleConfig,
    GroupConfig,
    SgdConfig,
    TimmCosineScheduleConfig,
)
from tests.unit.data.shardkit import Clip, jpeg, write_shards
from tests.unit.jobs.test_train import same_end, saved, small, stopped_at

RATES = {"image": GroupConfig(lr=0.1), "temporal": GroupConfig(lr=0.1), "prompts": GroupConfig(lr=0.1)}
LABELS = (0, 0, 0, 0, 0, 1, 2)


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def data(folder: Path, **changes: Any) -> DataConfig:
    """Seven training clips, five of one class; some have votes."""
    pictures = [[jpeg(30 * n + 3 * t, height=64, width=64) for t in range(8)] for n in range(8)]
    clips = [
        Clip(key=f"k{n}", label=label, frames=pictures[n], votes=(6, 3, 1, 0, 0, 0, 0) if n % 2 else None)
        for n, label in enumerate(LABELS)
    ]
    write_shards(folder, {"fold_1": [[Clip(key="t", label=1, frames=pictures[7])]], "fold_2": [clips]})
    return DataConfig(shards=str(folder), workers=0, frames=2, size=64, **changes)


def options(home: Path, given: DataConfig, **changes: Any) -> RunConfig:
    """Three steps of two micro-batches."""
    usual = {"epochs": 3, "batch": 4, "micro_batch": 2, "optim": SgdConfig(groups=RATES), "select": "best_on_test"}
    return small(home, given, **{**usual, "checkpoint": CheckpointConfig(keep_last=9), **changes})


def newest(config: RunConfig) -> Checkpoint:
    found = Checkpoints(Folder(config.run), world=World()).latest()
    assert found is not None
    return found


MIXED = MixConfig(label_smoothing=0.1, mixup=0.5, fmix=0.5)
CASES: dict[str, dict[str, Any]] = {
    "mix": {"data": {"mix": MIXED}},
    "votes": {"data": {"targets": "votes"}},
    "balance": {"data": {"balance": 1.0}},
    "clamp": {
        "engine": EngineConfig(name="ddp", clip_value=0.01),
        "schedule": ExponentialScheduleConfig(start=0, every=1, rate=0.5),
    },
    "adam": {
        "optim": AdamConfig(groups=RATES, weight_decay=0.1),
        "schedule": TimmCosineScheduleConfig(warmup_epochs=1, end=1e-3, micro_batches=2),
    },
    "ema": {"ema": 0.8},
}


def case(name: str, home: Path, shards: Path) -> RunConfig:
    changes = dict(CASES[name])
    return options(home, data(shards, **changes.pop("data", {})), **{"engine": EngineConfig(name="ddp"), **changes})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run without any option."""
    home = tmp_path_factory.mktemp("plain")
    config = options(home / "run", data(home / "shards"), engine=EngineConfig(name="ddp"))
    with process_group(World()):
        train(config, World())
        return newest(config).weights()


@pytest.mark.slow("two runs, one of them stopped and resumed")
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_stopped_ends_as_an_undisturbed_one(
    tmp_path: Path, plain: dict[str, torch.Tensor], alone: World, name: str
) -> None:
    config, straight = (case(name, tmp_path / run, tmp_path / "shards") for run in ("run", "straight"))
    stopped_at(config, alone, 5)
    result, expected = train(config, alone), train(straight, alone)
    assert same_end(config, straight)
    ours, theirs = newest(config).optimizer(), newest(straight).optimizer()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (result.confusion, result.step, result.protocol) == (expected.confusion, expected.step, expected.protocol)
    evaluated = newest(straight).evaluated()
    assert any(not torch.equal(plain[key], value) for key, value in evaluated.items()), "the option changes nothing"


def test_results_say_what_training_aimed_at_and_which_weights_are_evaluated(tmp_path: Path, alone: World) -> None:
    given = data(tmp_path / "shards", mix=MIXED, targets="votes", balance=0.5)
    config = options(tmp_path / "run", given, ema=0.5, epochs=1)
    trained = train(config, alone)
    shown = trained.protocol
    assert trained.votes == (3, 7) and evaluate_run(config, alone, trained=True).votes == (3, 7)
    assert shown.targets == (
        "votes of the annotators, smoothed by 0.1, mixup 0.5 (Beta 0.8), FMix 0.5 (Beta 1.0, decay 3.0), "
        "classes balanced with power 0.5"
    )
    assert shown.weights == "average of the weights, decay 0.5"
    said = dict(facts(summarise(Folder(config.run), RunConfig)))
    assert said["training targets"] == f"{shown.targets}; only 3 of 7 training clips have votes"
    assert said["weights evaluated"] == shown.weights
    plain = train(options(tmp_path / "plain", data(tmp_path / "shards"), epochs=1), alone)
    assert (plain.protocol.targets, plain.protocol.weights, plain.votes) == ("", "", None)


# Mixing


def test_a_run_with_mixing_keeps_its_micro_batches(tmp_path: Path, alone: World) -> None:
    config = case("mix", tmp_path / "run", tmp_path / "shards")
    stopped_at(config, alone, 3)
    with pytest.raises(CheckpointError) as caught:
        train(replace(config, micro_batch=4), alone)
    assert (
        ": expected 1 rank with micro-batches of 2, as it was started on, got 1 rank with micro-batches of 4. "
        "The clips of a micro-batch share statistics or partners in this run, so others compute something else. "
    ) in str(caught.value)
    smoothed = options(tmp_path / "smoothed", data(tmp_path / "shards", mix=MixConfig(label_smoothing=0.1)))
    stopped_at(smoothed, alone, 3)
    train(replace(smoothed, micro_batch=4), alone)


def test_a_micro_batch_of_one_clip_cannot_be_mixed(tmp_path: Path, alone: World) -> None:
    config = replace(case("mix", tmp_path / "run", tmp_path / "shards"), micro_batch=1)
    with pytest.raises(ConfigProblem) as caught:
        train(config, alone)
    assert str(caught.value) == (
        "micro_batch: expected micro-batches of 2 clips or more, since data.mix mixes the clips of one, got 1. "
        "Set micro_batch or batch higher"
    )


# Votes and balance


def test_votes_are_those_of_the_rows_of_a_balanced_run(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = options(tmp_path / "run", data(tmp_path / "shards", targets="votes", balance=1.0))
    clips = open_fold(config)
    rows = training_rows(config, clips)
    assert np.bincount(clips.train.labels).tolist() == [5, 1, 1] and len(rows) == 7 + 1 + 1
    mix = mix_of(config, clips, alone)
    assert capsys.readouterr().err == (
        "note: data.targets=votes: 3 of 7 training clips have votes, 4 their label alone\n"
    )
    for batch in train_loader(config, clips, alone).epoch(0):
        found = mix(batch, 0)
        assert found.targets is not None and batch.labels is not None
        for row, label, target in zip(batch.index.tolist(), batch.labels.tolist(), found.targets, strict=True):
            certain = [float(k == label) for k in range(7)]
            voted = int(rows.keys[row].removeprefix("k")) % 2
            assert target.tolist() == pytest.approx([0.6, 0.3, 0.1, 0, 0, 0, 0] if voted else certain)
    said = describe(config, World())
    assert " targets: votes of the annotators, classes balanced with power 1.0" in said
    assert "   votes: data.targets=votes: 3 of 7 training clips have votes, 4 their label alone" in said


@pytest.mark.parametrize("votes", [None, (0, 0, 0, 0, 0, 0, 9)], ids=["none", "for another class"])
def test_votes_that_no_training_clip_has_are_refused(
    tmp_path: Path, alone: World, votes: tuple[int, ...] | None
) -> None:
    """Also where features would be computed first, and where all votes are for classes that the run leaves out."""
    clips = [[Clip(key=f"k{n}", label=n % 3, votes=votes) for n in at] for at in (range(4), range(4, 8))]
    write_shards(tmp_path / "s", {"fold_1": clips[:1], "fold_2": clips[1:]})
    names = list(label_set("basic7").names[:3])
    given = DataConfig(shards=str(tmp_path / "s"), workers=0, frames=2, size=64, targets="votes", classes=names)
    config = options(tmp_path / "run", given)
    for refused in (lambda: train(config, alone), lambda: describe(config, World())):
        with pytest.raises(DataError) as caught:
            refused()
        assert str(caught.value) == (
            f"{tmp_path / 's'}: expected training clips with votes of annotators, since data.targets=votes, got none "
            "among 4 clips of test. Set data.targets=labels, or data.shards to a set with votes, such as FERPlus."
        )
    assert not (tmp_path / "run").exists()


def test_a_clip_that_is_taken_again_is_seen_otherwise(tmp_path: Path, alone: World) -> None:
    config = options(tmp_path / "run", data(tmp_path / "shards", balance=1.0), batch=7, micro_batch=7)
    clips = open_fold(config)
    (batch,) = train_loader(config, clips, alone).epoch(0)
    frames = dict(zip(batch.index.tolist(), batch.frames))
    assert training_rows(config, clips).keys[5:] == ["k5", "k6", "k5", "k6"] and {5, 6, 7, 8} <= frames.keys()
    assert not torch.equal(torch.stack([frames[5], frames[6]]), torch.stack([frames[7], frames[8]]))


def test_the_clips_of_a_balanced_run_are_recorded_not_its_rows(tmp_path: Path, alone: World) -> None:
    config = options(tmp_path / "run", data(tmp_path / "shards", balance=1.0), batch=7, record_clips=True, epochs=1)
    train(config, alone)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (clips,) = [record["clips"] for record in map(json.loads, lines) if record["kind"] == "clips"]
    assert len(clips) == 7 and {5, 6} < {*clips} < {*range(7)} and max(map(clips.count, (5, 6))) == 2


# The average of the weights


def test_evaluation_and_a_later_start_use_the_average(tmp_path: Path, alone: World) -> None:
    config = case("ema", tmp_path / "run", tmp_path / "shards")
    result = train(config, alone)
    again = evaluate_run(config, alone, trained=True)
    assert (again.confusion, again.checkpoint) == (result.confusion, result.checkpoint)
    path = tmp_path / "run" / "results" / "test_predictions.csv"
    averaged = path.read_text()
    chosen = Checkpoints(Folder(config.run), world=World()).best()
    assert chosen is not None and chosen.state["average"] == 0.8
    begun = options(tmp_path / "begun", config.data, model=replace(config.model, start=config.run), select="last")
    evaluate_run(begun, alone, trained=False)
    assert (tmp_path / "begun" / "results" / "test_predictions.csv").read_text() == averaged
    for state in (tmp_path / "run").glob("checkpoints/*/state.json"):  # as if the run had kept no average
        _rewrite(state, average=None)
    evaluate_run(config, alone, trained=True, out=Folder(tmp_path / "other"))
    assert (tmp_path / "other" / "results" / "test_predictions.csv").read_text() != averaged


def test_the_file_of_a_run_with_averages_is_no_source_of_towers(tmp_path: Path, alone: World) -> None:
    """It holds the weights of the last step; that of a run without averages is taken."""
    config = case("ema", tmp_path / "run", tmp_path / "shards")
    model = build(config.model, label_set("basic7"), num_frames=2, seed=1)
    saved(tmp_path / "run", 3, weights={name: value.contiguous() for name, value in model.state_dict().items()})
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    _rewrite(checkpoint / "state.json", average=0.8)
    path = checkpoint / "weights.safetensors"
    tower = replace(config.model.towers, pretrained=str(path))
    still = replace(config.data, train_frames="middle")
    probe = LinearProbeConfig(towers=tower)
    begun = options(tmp_path / "probe", still, model=probe, optim=SgdConfig(groups={"head": GroupConfig(lr=0.1)}))
    with pytest.raises(CheckpointError) as caught:
        train(begun, alone)
    assert str(caught.value) == (
        f"model.towers.pretrained={path}: expected the weights that are evaluated, got those of the last step of a run "
        "with ema=0.8. Set model.start to the run, or make a saved model of it with `dfer export` and set model.start "
        "to that."
    )
    stored = replace(still, features=str(tmp_path / "features"), augment=DferClipAugment(crop=False, flip=0.0))
    with pytest.raises(CheckpointError, match=r"run with ema=0\.8"):
        train(replace(begun, data=stored), alone)
    _rewrite(checkpoint / "state.json", average=None)
    assert "trains on fold_2" in describe(begun, alone)


def _rewrite(path: Path, **changes: Any) -> None:
    """Change values of a checkpoint's state, and its manifest with it."""
    from hashlib import sha256

    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    place, data = path.parent / "manifest.json", path.read_bytes()
    manifest = json.loads(place.read_text())
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    place.write_text(json.dumps(manifest))


# Early stop


def test_a_run_that_stopped_early_is_finished(tmp_path: Path, alone: World) -> None:
    """Rates so small that the score never changes: it ends after the third of eight epochs."""
    slow = SgdConfig(groups={name: GroupConfig(lr=1e-9) for name in RATES})
    rule = EarlyStopConfig(patience=2)
    config = options(tmp_path / "run", data(tmp_path / "shards"), optim=slow, early_stop=rule, epochs=8)
    stopped_at(config, alone, 4)
    between = evaluate_run(config, alone, trained=True)
    assert (between.complete, between.stopped) == (False, 0)
    result = train(config, alone)
    assert (result.complete, result.stopped, result.epochs, result.epoch) == (True, 3, 8, 1)
    home = Folder(config.run)
    assert finished(home) and finished(home, 8) and not finished(home, 9)
    assert done(config, Part(name="fold_1", run=config.run))  # what the launchers ask before they start a part
    before = (tmp_path / "run" / RESULT).read_bytes()
    assert train(config, alone) == result and (tmp_path / "run" / RESULT).read_bytes() == before
    again = evaluate_run(config, alone, trained=True)
    assert (again.complete, again.stopped) == (True, 3)
    assert dict(facts(summarise(home, RunConfig)))["epochs"] == "8; stopped early: fold 1 after 3"
    (tmp_path / "run" / RESULT).unlink()  # killed before it wrote its result
    assert train(config, alone).stopped == 3 and newest(config).step == 3
    longer = train(replace(config, epochs=9), alone)
    assert (longer.epochs, longer.stopped, newest(config).step) == (9, 3, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ema": 1.0}, "ema: expected a decay between 0 and 1, got 1.0. 0.999 is usual; null: none"),
        (
            {"early_stop": EarlyStopConfig(patience=3), "select": "last"},
            "early_stop: expected a `select` that evaluates, got select=last. "
            "Set select=best_on_val, or early_stop=null",
        ),
    ],
)
def test_messages(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        options(tmp_path, DataConfig(shards="x"), **change)
    assert str(caught.value) == said


def test_a_run_cannot_change_its_options(tmp_path: Path, alone: World) -> None:
    config = case("ema", tmp_path / "run", tmp_path / "shards")
    stopped_at(config, alone, 2)
    for change in ({"ema": 0.9}, {"early_stop": EarlyStopConfig(patience=1)}):
        with pytest.raises(CheckpointError, match=f"changed keys .*{next(iter(change))}"):
            train(replace(config, **change), alone)
    assert "ema: 0.8" in to_yaml(config)
