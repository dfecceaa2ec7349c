"""Stored features do not depend on the classes of the run that computed them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dfer.data.features import FeatureSet
from dfer.distributed import World, process_group
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.features import with_features
from dfer.jobs.fold_data import open_fold
from dfer.jobs.train import train
from dfer.storage import Folder
from tests.unit.data.shardkit import CLASSES, Clip, jpeg, write_shards
from tests.unit.jobs.test_features import config

EIGHT = (*CLASSES, "contempt")


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def shards(folder: Path, classes: tuple[str, ...], *, name: str = "test") -> Path:
    """Two folds with a clip of each class, and one without a label."""
    folder.mkdir()
    folds = {
        f"fold_{fold}": [
            [
                Clip(key=f"{name}{fold}{label}", label=label, frames=[jpeg(40 * fold + 9 * (label or 0))])
                for label in (*range(len(classes)), None)
            ]
        ]
        for fold in (1, 2)
    }
    return write_shards(folder, folds, classes=classes, dataset=name)


@pytest.mark.parametrize("order", [(7, 8), (8, 7)])
def test_runs_on_some_and_on_all_classes_share_the_features(
    tmp_path: Path, alone: World, order: tuple[int, int]
) -> None:
    faces = shards(tmp_path / "s", EIGHT)
    for count in order:
        run = config(tmp_path / f"{count}", faces, features=tmp_path / "f", epochs=1)
        run = replace(run, data=replace(run.data, classes=EIGHT[:count]))
        clips = with_features(run, open_fold(run), alone, begun=None)
        assert len(clips.test) == count
        assert clips.features is not None and len(clips.features) == 2 * len(EIGHT)
        assert clips.features.select(clips.test.keys).keys == clips.test.keys
    assert len([*(tmp_path / "f").iterdir()]) == 1


def test_a_run_is_tested_on_sets_of_more_and_of_fewer_classes(tmp_path: Path, alone: World) -> None:
    seven, eight = shards(tmp_path / "s7", CLASSES, name="seven"), shards(tmp_path / "s8", EIGHT, name="eight")
    for trained, other in ((seven, eight), (eight, seven)):
        run = config(tmp_path / f"run_{trained.name}", trained, features=tmp_path / f"f_{trained.name}", epochs=1)
        train(run, alone)
        found = evaluate_run(replace(run, data=replace(run.data, shards=str(other))), alone, trained=True)
        assert found.clips == len(CLASSES)
        stored = [FeatureSet.open(Folder(home)) for home in (tmp_path / f"f_{trained.name}").iterdir()]
        assert sorted(len(each) for each in stored if each is not None) == [14, 16]
