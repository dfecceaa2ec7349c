"""Folds from partitions and the held-out validation part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.data.splits import Split, folds, hold_out, split_of
from dfer.errors import DataError


def test_five_partitions_give_five_folds_each_tested_once() -> None:
    names = [f"fold_{k}" for k in (3, 1, 5, 2, 4)]
    known = folds(names)
    assert list(known) == [1, 2, 3, 4, 5]
    assert sorted(split.test[0] for split in known.values()) == sorted(names)
    for split in known.values():
        assert set(split.train) | set(split.test) == set(names) and not set(split.train) & set(split.test)


def test_train_and_test_are_one_fold() -> None:
    assert split_of(["test", "train"], 1) == Split(fold=1, train=("train",), test=("test",))


@pytest.mark.parametrize("names", [["train"], ["fold_1"], ["fold_1", "test"], [], ["train", "test", "val"]])
def test_other_partitions_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match="expected `train` and `test`, or two or more"):
        folds(names)


def test_unknown_fold_is_named() -> None:
    with pytest.raises(ConfigProblem, match="fold: expected one of 1, 2, got 6"):
        split_of(["fold_1", "fold_2"], 6)


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
