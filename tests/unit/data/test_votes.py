"""Annotators' votes as targets: the classes of the run in its order, and the label where there are none."""

from pathlib import Path

import numpy as np
import pytest

from dfer.data.clips import ClipSet, emotions_for
from dfer.data.votes import vote_shares
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, write_shards

CLASSES = ("happiness", "sadness", "neutral", "contempt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of FERPlus's kind: ten annotators, some clips without votes, one shard without the column."""
    first = [
        Clip(key="a", label=0, votes=(6, 1, 1, 2)),
        Clip(key="b", label=1),
        Clip(key="c", label=3, votes=(0, 0, 0, 10)),
        Clip(key="d", label=2, votes=(0, 0, 0, 3)),
    ]
    return write_shards(tmp_path, {"train": [first, [Clip(key="e", label=2)]]}, classes=CLASSES)


def shares(folder: Path, classes: tuple[str, ...] | None, keep: list[str]) -> tuple[list[list[float]], int]:
    store = Store(str(folder))
    emotions = emotions_for(classes, store.manifest)
    clips = ClipSet.open(store, ["train"], emotions=emotions)
    found, alone = vote_shares(clips.select([clips.keys.index(key) for key in keep]), emotions)
    assert found.dtype == np.float32
    return np.round(found, 4).tolist(), alone


def test_votes_are_divided_by_their_sum_and_a_clip_without_any_has_its_label(folder: Path) -> None:
    found, alone = shares(folder, None, ["e", "a", "b", "c"])
    assert found == pytest.approx(np.array([[0, 0, 1, 0], [0.6, 0.1, 0.1, 0.2], [0, 1, 0, 0], [0, 0, 0, 1]]))
    assert alone == 2


def test_votes_for_classes_that_are_not_selected_are_left_out(folder: Path) -> None:
    """Other names, another order; `d` has votes for contempt alone, so that its label counts."""
    found, alone = shares(folder, ("neutral", "sadness", "happiness"), ["a", "d", "b", "a"])
    assert found == pytest.approx(np.array([[0.125, 0.125, 0.75], [1, 0, 0], [0, 1, 0], [0.125, 0.125, 0.75]]))
    assert alone == 2
