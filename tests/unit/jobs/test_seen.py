"""Which test clips a training has seen, or may have."""

from pathlib import Path

import pytest

from dfer.jobs.seen import remark_of, seen
from dfer.models.saved import TrainedSet
from dfer.store.shards import Shards, Store
from tests.unit.data.shardkit import Clip, write_shards


def shards(folder: Path, dataset: str) -> Shards:
    return Store(str(write_shards(folder, {name: [[Clip(key=name)]] for name in ("a", "b")}, dataset=dataset)))


def trained(dataset: str, fold: int | None) -> list[TrainedSet]:
    return [TrainedSet(dataset=dataset, protocol="published", fold=fold)]


@pytest.mark.parametrize(("one", "other"), [("ckplus", "ckplus48"), ("ferplus", "fer2013"), ("dfew", "dfew")])
def test_sets_of_the_same_pictures_are_one(tmp_path: Path, one: str, other: str) -> None:
    store = shards(tmp_path, other)
    found = seen(store, trained(one, 1), ["a", "b"])
    assert found is not None and found.keys == {"b"}, "fold 1 tests on a"
    assert seen(store, trained("mafw", 1), ["a", "b"]) is None


@pytest.mark.parametrize("dataset", ["ckplus", "ckplus48"])
def test_a_fold_that_is_not_known_may_have_seen_them(tmp_path: Path, dataset: str) -> None:
    store = shards(tmp_path / "two", "ckplus48")
    said = remark_of(store, trained(dataset, None), protocol="published", fold=1)
    assert said == f"test clips may have been trained on: the weights were trained on {dataset}, fold unknown"
    assert remark_of(store, trained(dataset, 1), protocol="published", fold=1) == ""
    assert remark_of(store, trained("dfew", None), protocol="published", fold=1) == ""
    split = Store(str(write_shards(tmp_path / "one", {n: [[Clip(key=n)]] for n in ("train", "test")}, dataset=dataset)))
    assert remark_of(split, trained(dataset, None), protocol="published", fold=1) == "", "its one split"
