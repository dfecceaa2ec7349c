"""Which clips a run reads: classes selected by name, folds as partitions or lists of keys."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from dfer.data.clips import ClipSet, emotions_for, fold_clips, keys_of
from dfer.data.splits import fold_of
from dfer.errors import DataError, UsageError
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, key_list, write_shards

AFFECTNET = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"]


def eight(folder: Path) -> Store:
    """A clip of each class, one that nobody labelled, and a list of keys that names some of them."""
    clips = [Clip(key=name, label=i) for i, name in enumerate(AFFECTNET)] + [Clip(key="unlabelled", label=None)]
    subsets = {name: key_list(folder, f"subjects.1.{name}.txt", keys) for name, keys in LISTS.items()}
    fold = {"1": {**subsets, "train": {"partitions": ["train"]}}}
    protocols = {"subjects": {"source": "here", "folds": fold}}
    test = [Clip(key=f"{name}_2", label=i) for i, name in enumerate(AFFECTNET)]
    partitions = {"train": [clips], "val": [test]}
    return Store(str(write_shards(folder, partitions, classes=AFFECTNET, protocols=protocols)))


LISTS = {"test": ["sad_2", "contempt_2", "fear_2"], "validation": ["happy_2"]}


def test_a_config_selects_and_orders_classes_by_name(tmp_path: Path) -> None:
    """AffectNet-7 comes out of AffectNet-8."""
    store = eight(tmp_path)
    seven = emotions_for(["fear", "Happy", "sad", "neutral", "surprise", "disgust", "anger"], store.manifest)
    clips = ClipSet.open(store, ["train"], emotions=seven)
    assert seven.names == ("fear", "happiness", "sadness", "neutral", "surprise", "disgust", "anger")
    assert {clips.key(i): int(clips.labels[i]) for i in range(len(clips))} == {
        "fear": 0,
        "happy": 1,
        "sad": 2,
        "neutral": 3,
        "surprise": 4,
        "disgust": 5,
        "anger": 6,
    }
    assert (clips.left_out, clips.num_classes) == (2, 7)
    assert emotions_for(None, store.manifest).names[:3] == ("neutral", "happiness", "sadness")


def test_classes_of_a_config_that_the_shards_do_not_have(tmp_path: Path) -> None:
    store = eight(tmp_path)
    with pytest.raises(UsageError, match=r"data\.classes=basic7: expected the 7 classes happiness, .* got 8: neutral"):
        emotions_for("basic7", store.manifest)
    with pytest.raises(UsageError, match="Did you mean 'basic7'"):
        emotions_for("basic8", store.manifest)
    with pytest.raises(UsageError, match="distinct names"):
        emotions_for(["happy", "happiness"], store.manifest)
    sleepy = emotions_for(["sleepy", "fear"], store.manifest)
    with pytest.raises(UsageError, match=r"expected the 2 classes sleepy, fear, got 8 without sleepy: neutral, happin"):
        ClipSet.open(store, ["train"], emotions=sleepy)


def test_shards_without_classes_cannot_be_trained_on(tmp_path: Path) -> None:
    store = Store(str(write_shards(tmp_path, {"all": [[Clip(key="a", label=None)]]}, classes=[])))
    with pytest.raises(UsageError, match=r"data\.shards: expected shards with classes, got none: nothing in test is"):
        emotions_for(None, store.manifest)


def test_a_fold_of_lists_of_keys(tmp_path: Path) -> None:
    store = eight(tmp_path)
    fold = fold_of(store.manifest, "subjects", 1)
    basic = emotions_for([name for name in AFFECTNET if name != "contempt"], store.manifest)
    clips = fold_clips(store, fold, emotions=basic)
    assert {name: part.keys for name, part in clips.items()} == {
        "train": AFFECTNET[:-1],
        "test": ["sad_2", "fear_2"],
        "validation": ["happy_2"],
    }
    assert [part.left_out for part in clips.values()] == [2, 1, 0]
    assert basic.names[int(clips["test"].labels[1])] == "fear"
    assert clips["test"].read(1, [0]) == ClipSet.open(store, ["val"], emotions=basic).read(4, [0])
    assert keys_of(store, fold.test) == set(LISTS["test"]) and "unlabelled" in keys_of(store, fold.train)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sad_2\n", "expected sha256"),
        ("sad_2\nnobody\nx\n", r"expected keys of clips in .* got 2 others \(nobody, x\)"),
    ],
)
def test_a_list_of_keys_that_is_not_of_these_shards(tmp_path: Path, text: str, says: str) -> None:
    store = eight(tmp_path)
    fold = fold_of(store.manifest, "subjects", 1)
    path = tmp_path / fold.test.keys
    path.write_text(text)
    if "others" in says:
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        fold = replace(fold, test=replace(fold.test, sha256=sha256))
    with pytest.raises(DataError, match=f"{fold.test.keys}: {says}"):
        fold_clips(store, fold, emotions=emotions_for(None, store.manifest))
