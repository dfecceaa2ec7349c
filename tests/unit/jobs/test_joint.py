"""Joint training from end to end, and what its weights may be tested on: no training clip of any of its sets."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfer.data.config import DataConfig
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError
from dfer.evaluation.results import read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.export import export
from dfer.jobs.saved import run_of
from dfer.jobs.seen import recorded_sets
from dfer.jobs.train import train
from dfer.models.saved import open_saved
from dfer.run.checkpoints import Checkpoints
from dfer.storage import Folder
from tests.unit.data.shardkit import Clip, jpeg, write_shards
from tests.unit.jobs.test_train import small, stopped_at

LEAK = r"model\.start=.*: expected a run that saw none of the test clips of fold 2, got one trained on fold_2\."


@pytest.fixture(scope="module")
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def folds_of(home: Path, name: str, level: int) -> DataConfig:
    """A generated set of two folds of three clips."""
    folds = {
        f"fold_{fold}": [[Clip(key=f"{name}{fold}{n}", label=n, frames=[jpeg(level + 20 * n)]) for n in range(3)]]
        for fold in (1, 2)
    }
    path = write_shards(home / name, folds) / "manifest.json"
    plain = {**json.loads(path.read_text()), "dataset": name, "options": {"generated": f"seed {level}"}}
    path.write_text(json.dumps(plain))
    return DataConfig(shards=str(home / name), workers=0, frames=2, size=64)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataConfig]:
    home = tmp_path_factory.mktemp("sets")
    return {name: folds_of(home, name, level) for name, level in (("one", 10), ("two", 90), ("three", 170))}


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, DataConfig], alone: World) -> RunConfig:
    """A finished run of fold 1 on two sets."""
    data = replace(sets["one"], join=(sets["two"].shards,))
    run = small(tmp_path_factory.mktemp("joint") / "run", data, epochs=1, batch=3)
    train(run, alone)
    return run


def begun(joint: RunConfig, home: Path, data: DataConfig, **changes: Any) -> RunConfig:
    """A run that begins from the joint one."""
    return small(home, data, model=replace(joint.model, start=joint.run), epochs=1, batch=3, **changes)


def names(run: RunConfig) -> list[tuple[str, int | None]]:
    found = Checkpoints(Folder(run.run), world=World()).latest()
    assert found is not None
    return [(each.dataset, each.fold) for each in recorded_sets(found.state, "here") or ()]


@pytest.mark.slow("the first of the file: its fixture trains a run")
def test_both_sets_are_trained_on_and_told(joint: RunConfig) -> None:
    result = read_result(Folder(joint.run))
    assert (result.joined, result.train_partitions) == (("two",), ("fold_2", "two_fold_2"))
    assert (result.step, result.complete, names(joint)) == (2, True, [("one", 1), ("two", 1)])


@pytest.mark.parametrize("name", ["one", "two"])
def test_no_training_begins_from_it_whose_test_clips_it_has_seen(
    tmp_path: Path, joint: RunConfig, sets: dict[str, DataConfig], alone: World, name: str
) -> None:
    with pytest.raises(CheckpointError, match=LEAK):
        train(begun(joint, tmp_path / "run", sets[name], fold=2), alone)
    joined = replace(sets[name], join=(sets["three"].shards,))
    with pytest.raises(CheckpointError, match=LEAK):
        train(begun(joint, tmp_path / "run", joined, fold=2), alone)


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_is_not_evaluated_on_training_clips(
    joint: RunConfig, sets: dict[str, DataConfig], alone: World, name: str
) -> None:
    elsewhere = replace(joint, data=replace(joint.data, shards=sets[name].shards), fold=2)
    said = "expected the configuration it was started with" if name == "one" else r"got 3 of the 3 clips of fold_2"
    with pytest.raises(CheckpointError, match=said):
        evaluate_run(elsewhere, alone, trained=True)
    allowed = evaluate_run(replace(elsewhere, fold=1), alone, trained=True)
    assert (allowed.dataset, allowed.clips) == (name, 3)


@pytest.mark.slow("trains, stops and resumes a run that begins from the joint one")
def test_a_run_that_began_from_it_keeps_what_it_has_seen(
    tmp_path: Path, joint: RunConfig, sets: dict[str, DataConfig], alone: World
) -> None:
    """Also over a stop, and when the joint run is gone."""
    run = replace(begun(joint, tmp_path / "run", sets["three"]), epochs=3)
    stopped_at(run, alone, 2)
    assert names(run) == [("three", 1), ("one", 1), ("two", 1)]
    train(run, alone)
    assert names(run) == [("three", 1), ("one", 1), ("two", 1)]
    elsewhere = replace(run, data=sets["two"])
    with pytest.raises(CheckpointError, match=r"got 3 of the 3 clips of fold_2 .*Test on what fold 1 of `published`"):
        evaluate_run(replace(elsewhere, fold=2), alone, trained=True)
    assert evaluate_run(elsewhere, alone, trained=True).clips == 3


@pytest.mark.slow("evaluates an exported model on four folds")
def test_an_exported_joint_model_knows_its_sets(
    tmp_path: Path, joint: RunConfig, sets: dict[str, DataConfig], alone: World
) -> None:
    export(joint, Folder(tmp_path / "out"))
    saved = open_saved(str(tmp_path / "out"))
    assert saved is not None and [each.dataset for each in saved.config.origin.sets] == ["one", "two"]
    assert (
        "layout, fold 1 of published; also on generated faces in two's layout, fold 1 of published |"
        in (tmp_path / "out" / "README.md").read_text()
    )
    for name in ("one", "two"):
        overrides = [f"data.shards={sets[name].shards}", "data.workers=0", f"run={tmp_path}/{name}", "fold=2"]
        with pytest.raises(CheckpointError, match=LEAK):
            evaluate_run(run_of(saved, overrides=overrides), alone, trained=False)
        assert evaluate_run(run_of(saved, overrides=[*overrides, "fold=1"]), alone, trained=False).clips == 3


def test_a_joint_run_does_not_begin_from_one_that_saw_its_test_clips(
    tmp_path: Path, joint: RunConfig, sets: dict[str, DataConfig], alone: World
) -> None:
    single = small(tmp_path / "single", sets["one"], epochs=1, batch=3)
    train(single, alone)
    data = replace(sets["one"], join=(sets["three"].shards,))
    with pytest.raises(CheckpointError, match=LEAK):
        train(small(tmp_path / "run", data, model=replace(single.model, start=single.run), fold=2, batch=3), alone)


def test_a_damaged_list_of_sets_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        recorded_sets({"data": {"sets": [{"dataset": 3}]}}, "step_1")
    assert str(caught.value).startswith(
        "step_1: expected the data sets of the training in the checkpoint's state, got others (dataset: "
    )
    with pytest.raises(CheckpointError, match="got others"):
        recorded_sets({"data": {"sets": 3}}, "step_1")
    assert recorded_sets({}, "step_1") is None
