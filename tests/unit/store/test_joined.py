"""Several shard folders read as one: which clips train and test, classes by name, the right bytes; training."""

import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from dfer.config import ConfigProblem
from dfer.data.clips import ClipSet, fold_clips
from dfer.data.config import DataConfig
from dfer.data.splits import fold_of
from dfer.distributed import World, process_group
from dfer.emotions import emotions_of
from dfer.errors import CheckpointError, DataError, UsageError
from dfer.evaluation.results import read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.crossval import absolute, shared
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.fold_data import eval_loader, open_fold
from dfer.jobs.seen import sets_of
from dfer.jobs.train import train
from dfer.storage import Folder
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, jpeg, key_list, write_shards
from tests.unit.jobs.test_train import run_config, small

FIRST, SECOND = ("happiness", "sadness", "neutral"), ("neutral", "contempt", "happiness")
LEVELS = {"a": 10, "b": 30, "c": 50, "x": 70, "y": 90, "z": 110, "t": 130}


def clip(key: str, label: int, subject: str | None = None) -> Clip:
    return Clip(key=key, label=label, frames=[jpeg(LEVELS[key])], subject=subject)


def named(folder: Path, name: str) -> str:
    """Give a shard folder the name of a data set."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": name}))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A set of two folds, and one with a single split and other classes in another order."""
    one = {"fold_1": [[clip("a", 0, "p"), clip("b", 1)]], "fold_2": [[clip("c", 2, "p")]]}
    two = {"test": [[clip("t", 0)]], "train": [[clip("x", 2, "p"), clip("y", 1)], [clip("a", 0)]]}
    first = write_shards(tmp_path / "one", one, classes=FIRST)
    split = {"train": {"partitions": ["train"]}, "test": {"partitions": ["test"]}}
    second = write_shards(
        tmp_path / "two", two, classes=SECOND, protocols={"published": {"source": "test", "folds": {"1": split}}}
    )
    return named(first, "one"), named(second, "two")


def data_of(folders: Sequence[str], **changes: Any) -> DataConfig:
    values: dict[str, Any] = {"classes": FIRST, "workers": 0, "frames": 2, "size": 64, **changes}
    return DataConfig(shards=folders[0], join=tuple(folders[1:]), **values)


def level(clips: ClipSet, index: int) -> int:
    (data,) = clips.read(index, [0])
    return round(float(np.mean(simplejpeg.decode_jpeg(bytes(data)))))


def test_training_clips_of_all_sets_and_test_clips_of_the_first(folders: tuple[str, str]) -> None:
    store = data_of(folders).store()
    found = fold_clips(store, fold_of(store.manifest, "published", 2), emotions=emotions_of(FIRST))
    assert found["test"].keys == ["c"]
    # `y` has a class that was not chosen; the second set's test clip `t` is not used.
    assert found["train"].keys == ["a", "b", "two/x", "two/a"] and found["train"].left_out == 1
    assert found["train"].labels.tolist() == [0, 1, 0, 2], "happiness, sadness, happiness, neutral by name"
    assert found["train"].subjects == ["p", None, "two/p", None], "persons of two sets are two persons"
    assert [level(found["train"], k) for k in range(4)] == pytest.approx([10, 30, 70, 10], abs=1)


def test_classes_of_either_set_may_be_chosen(folders: tuple[str, str]) -> None:
    chosen = ("contempt", "happiness")
    store = data_of(folders, classes=chosen).store()
    found = fold_clips(store, fold_of(store.manifest, "published", 1), emotions=emotions_of(chosen))
    assert (found["train"].keys, found["train"].labels.tolist()) == (["two/x", "two/y"], [1, 0])
    assert store.manifest.classes == ("happiness", "sadness", "neutral", "contempt")
    assert store.manifest.counts["two_train"] == (1, 0, 1, 1)


def test_different_classes_have_to_be_chosen(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigProblem) as caught:
        data_of(folders, classes=None).store()
    assert str(caught.value) == (
        "data.classes: expected the names of classes, since the sets differ (one: happiness, sadness, neutral; two: "
        "neutral, contempt, happiness). Write data.classes=[...] with the classes that you want"
    )


def test_a_hash_over_all_folders(folders: tuple[str, str], tmp_path: Path) -> None:
    def shas() -> set[str]:
        return {shard.sha256 for shard in data_of(folders).store().manifest.shards}

    before = shas()
    assert before == {s.sha256 for folder in folders for s in Store(folder).manifest.shards} and len(before) == 5
    write_shards(tmp_path / "two", {"test": [[clip("t", 0)]], "train": [[clip("z", 0)]]}, classes=SECOND)
    named(tmp_path / "two", "two")
    assert len(shas() & before) == 3


def test_lists_of_keys_are_joined(tmp_path: Path, folders: tuple[str, str]) -> None:
    third = tmp_path / "three"
    third.mkdir()
    lists = {
        "train": key_list(third, "train", ["x", "z"]),
        "test": key_list(third, "test", ["y"]),
    }
    protocols = {"published": {"source": "test", "folds": {"1": lists}}}
    clips = [clip("x", 0), clip("y", 1), clip("z", 2)]
    write_shards(third, {"all": [clips]}, classes=FIRST, protocols=protocols)
    store = data_of([folders[0], named(third, "three")]).store()
    found = fold_clips(store, fold_of(store.manifest, "published", 1), emotions=emotions_of(FIRST))
    assert (found["train"].keys, found["test"].keys) == (["c", "three/x", "three/z"], ["a", "b"])
    subset = store.manifest.protocols["published"].folds["1"].train
    assert hashlib.sha256(store.file(subset.keys)).hexdigest() == subset.sha256


def with_protocols(folder: str, **folds: dict[str, Any]) -> str:
    """Give a shard folder these protocols."""
    path = Path(folder) / "manifest.json"
    protocols = {name: {"source": "test", "folds": each} for name, each in folds.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocols": protocols}))
    return folder


def parts(train: str, test: str) -> dict[str, Any]:
    return {"train": {"partitions": [train]}, "test": {"partitions": [test]}}


def test_a_set_without_the_protocol_adds_its_only_training_clips(folders: tuple[str, str]) -> None:
    """As RAF-DB (published) does to FER2013 (private, public), and FER2013 to RAF-DB."""
    first = with_protocols(
        folders[0], private={"1": parts("fold_1", "fold_2")}, public={"1": parts("fold_1", "fold_2")}
    )
    for pair, names, keys in (
        ((first, folders[1]), ["private", "public"], ["a", "b", "two/x", "two/a"]),
        ((folders[1], first), ["published"], ["x", "a", "one/a", "one/b"]),
    ):
        data = data_of(pair, protocol=names[-1])
        store = data.store()
        assert [*store.manifest.protocols] == names
        found = fold_clips(store, fold_of(store.manifest, names[-1], 1), emotions=emotions_of(FIRST))
        assert found["train"].keys == keys
        listed = sets_of(run_config(Path("r"), data=data), store)
        assert [each.protocol for each in listed] == [names[-1], "published" if pair[0] == first else "private"]


def test_sets_without_a_common_protocol_are_refused_with_those_of_each(folders: tuple[str, str]) -> None:
    both = {"1": parts("fold_1", "fold_2"), "2": parts("fold_2", "fold_1")}
    one = with_protocols(folders[0], subjects=both, positional=both)
    with pytest.raises(UsageError) as caught:
        data_of((folders[1], one)).store()
    assert str(caught.value).startswith("data.join: expected a protocol of the first set that every other set has, or")
    assert ", got two: published of 1 fold; one: positional of 2 folds, subjects of 2 folds. L" in str(caught.value)


def test_a_protocol_that_another_set_lacks_is_not_joined(folders: tuple[str, str]) -> None:
    both = {"1": parts("fold_1", "fold_2"), "2": parts("fold_2", "fold_1")}
    one = with_protocols(folders[0], published=both, subjects=both)
    two = with_protocols(folders[1], published={"1": parts("train", "test")}, other={"1": parts("test", "train")})
    assert [*data_of((one, two)).store().manifest.protocols] == ["published"]


def test_a_set_given_twice_is_refused(folders: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"data\.join: expected every data set once, got one twice\. Leave one"):
        data_of([folders[0], folders[0]]).store()


def test_local_and_remote_sets_do_not_mix(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    here = folders[1]
    monkeypatch.setattr(Store, "is_local", property(lambda store: store.url != here))
    with pytest.raises(
        UsageError, match=r"expected all shards on disks, or all remote, got .*one on a disk, .*two rem"
    ):
        data_of(folders).store()


def test_a_changed_folder_is_noticed_and_workers_get_copies(tmp_path: Path, folders: tuple[str, str]) -> None:
    store = data_of(folders).store()
    copy = pickle.loads(pickle.dumps(store))
    shards = store.manifest.shards
    assert [len(index) for index in copy.indexes(shards)] == [len(index) for index in store.indexes(shards)]
    store.check_unchanged()
    named(tmp_path / "two", "renamed")
    with pytest.raises(DataError, match=r"two/manifest\.json: expected the manifest this run began with"):
        store.check_unchanged(trust_stamp=False)


def test_paths_of_all_folders_are_made_absolute_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = absolute(run_config(tmp_path / "run", data=DataConfig(shards="a", join=("b", "s3://x/c"))))
    assert config.data.join == (f"{tmp_path}/b", "s3://x/c")
    assert [*shared(config)] == ["data.shards", "data.join[0]", "data.join[1]"]


# --- training


@pytest.fixture(scope="module")
def alone() -> Any:
    with process_group(World()):
        yield World()


def joint(home: Path, folders: Sequence[str], **changes: Any) -> RunConfig:
    return small(home, data_of(folders), **changes)


@pytest.mark.slow("trains a run and evaluates it on both sets")
def test_a_joint_run_is_tested_on_the_first_set_and_on_each_other_one(
    tmp_path: Path, folders: tuple[str, str], alone: World
) -> None:
    run = joint(tmp_path / "run", folders, batch=2)
    frames = [batch.frames for batch in eval_loader(run, open_fold(run), open_fold(run).train, World()).epoch(0)]
    assert frames[0].float().mean((1, 2, 3, 4)).tolist() == pytest.approx([50, 70, 10], abs=1.5)
    result = train(run, alone)
    assert (result.dataset, result.joined, result.clips) == ("one", ("two",), 2)
    assert result.train_partitions == ("fold_2", "two_train") and result.test_partitions == ("fold_1",)
    assert train(run, alone) == result
    again = evaluate_run(run, alone, trained=True)
    assert replace(again, finished=result.finished, seconds=result.seconds) == result
    elsewhere = replace(run, data=replace(run.data, shards=folders[1]))
    other = evaluate_run(elsewhere, alone, trained=True)
    assert (other.dataset, other.clips, other.count) == ("two", 1, (0, 0, 1))
    assert other.trained is not None and other.trained.dataset == "one + two"
    assert read_result(Folder(run.run)) == again


def test_clips_that_a_joined_set_trained_on_are_not_tested(
    tmp_path: Path, folders: tuple[str, str], alone: World
) -> None:
    run = joint(tmp_path / "run", folders)
    train(run, alone)
    swapped = {"train": {"partitions": ["test"]}, "test": {"partitions": ["train"]}}
    path = tmp_path / "two" / "manifest.json"
    plain = json.loads(path.read_text())
    plain["protocols"]["swapped"] = {"source": "test", "folds": {"1": swapped}}
    path.write_text(json.dumps(plain))
    elsewhere = replace(run, data=replace(run.data, shards=folders[1], protocol="swapped"))
    with pytest.raises(CheckpointError, match=r"got 2 of the 2 clips of train that it was trained on \(a, x\)"):
        evaluate_run(elsewhere, alone, trained=True)


def test_a_joint_run_goes_on_only_with_the_same_folders(tmp_path: Path, folders: tuple[str, str], alone: World) -> None:
    run = joint(tmp_path / "run", folders)
    train(run, alone)
    with pytest.raises(CheckpointError, match="expected the shards it was started with"):
        train(replace(run, data=replace(run.data, join=())), alone)
