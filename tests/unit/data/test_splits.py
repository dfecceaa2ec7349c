"""Folds from partitions and the held-out validation part."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.data.splits import fold_of, folds, hold_out, refuse_overlap
from dfer.errors import DataError
from dfer.store.format import Fold, FrameSettings, Manifest, Protocol, Subset


def fold(train: Sequence[str], test: Sequence[str]) -> Fold:
    return Fold(train=Subset(partitions=tuple(train)), test=Subset(partitions=tuple(test)))


def manifest(**protocols: dict[str, Fold]) -> Manifest:
    frames = FrameSettings(max_side=64, quality=95, kept=0, encoded=0)
    found = {name: Protocol(source="paper", folds=folds) for name, folds in protocols.items()}
    return Manifest(dataset="set", classes=(), builder="x", frames=frames, counts={}, protocols=found, shards=())


def test_folds_of_a_protocol_are_in_the_order_of_their_numbers() -> None:
    ten = {str(k): fold([f"f{i}" for i in range(1, 11) if i != k], [f"f{k}"]) for k in (10, 2, 1, 9, 3, 4, 5, 6, 7, 8)}
    known = folds(manifest(published=ten), "published")
    assert list(known) == list(range(1, 11))
    assert known[10].test.names == ("f10",)


def test_an_unknown_protocol_names_those_there_are() -> None:
    shards = manifest(published={"1": fold(["train"], ["test"])}, subjects={"1": fold(["a"], ["b"])})
    expected = r"data\.protocol: expected a protocol of the shards \(published, subjects\), got 'official'\. Choose one"
    with pytest.raises(ConfigProblem, match=expected):
        folds(shards, "official")
    with pytest.raises(ConfigProblem, match=r"\(none\), got 'published'\. Nothing says how to split these shards"):
        folds(manifest(), "published")


def test_unknown_fold_is_named() -> None:
    shards = manifest(published={"1": fold(["b"], ["a"]), "2": fold(["a"], ["b"])})
    with pytest.raises(ConfigProblem, match="fold: expected one of 1, 2, got 6"):
        fold_of(shards, "published", 6)


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "validation"), ("test", "validation")])
def test_a_clip_in_two_subsets_of_a_fold_is_refused(one: str, other: str) -> None:
    whole = Fold(train=Subset(keys="a"), test=Subset(keys="b"), validation=Subset(keys="c"))
    keys = {"train": ["1", "2"], "test": ["3"], "validation": ["4"]}
    refuse_overlap(whole, keys)
    with pytest.raises(DataError, match=rf"fold that tests on b: expected .* got 1 in {one} and in {other} \(9\)\."):
        refuse_overlap(whole, {**keys, one: [*keys[one], "9"], other: [*keys[other], "9"]})


@given(st.integers(40, 300), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 9), st.booleans())
def test_hold_out_is_a_partition_by_subject(num: int, share: float, seed: int, known: bool) -> None:
    keys = [f"{n:05d}" for n in range(num)]
    subjects = [f"s{n % 17}" if known else None for n in range(num)]
    train, held = hold_out(keys, subjects, share=share, seed=seed)
    assert sorted(np.concatenate([train, held])) == list(range(num))
    if known:
        assert not {subjects[i] for i in train} & {subjects[i] for i in held}
    assert share * num <= len(held) < share * num + max(17, num / 17 + 1)
    # The same clips whatever order they come in.
    backwards, _ = hold_out(keys[::-1], subjects[::-1], share=share, seed=seed)
    assert {keys[::-1][i] for i in backwards} == {keys[i] for i in train}


def test_a_share_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"val_share: 0\.9 of 4 clips in 1 groups leaves a part empty"):
        hold_out(list("abcd"), ["x"] * 4, share=0.9, seed=1)
