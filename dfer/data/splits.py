"""Which clips train, validate and test: folds from partitions, and an honest validation part. Pure functions.

DFEW and MAFW are stored as five partitions; fold k tests on partition `fold_k` and trains on the other four.
FERV39k has one split, `train` and `test`, which is fold 1 of one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfer.config import ConfigProblem
from dfer.errors import DataError, message

FOLD = re.compile(r"fold_([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Partitions of one fold."""

    fold: int
    train: tuple[str, ...]
    test: tuple[str, ...]


def folds(partitions: Sequence[str]) -> dict[int, Split]:
    """All folds these partitions give, by number. Raises DataError when they form neither folds nor train/test."""
    if set(partitions) == {"train", "test"}:
        return {1: Split(fold=1, train=("train",), test=("test",))}
    numbers = {name: int(match[1]) for name in partitions if (match := FOLD.fullmatch(name))}
    if len(numbers) < 2 or len(numbers) != len(set(partitions)):
        got = ", ".join(partitions) or "none"
        raise DataError(
            message(
                "partitions of the shards",
                expected="`train` and `test`, or two or more of `fold_1`, `fold_2`, ...",
                got=got,
                do="Build the shards with `dfer-shards build`.",
            )
        )
    names = sorted(numbers, key=lambda name: numbers[name])
    return {
        numbers[test]: Split(fold=numbers[test], train=tuple(n for n in names if n != test), test=(test,))
        for test in names
    }


def split_of(partitions: Sequence[str], fold: int) -> Split:
    """The partitions of one fold. Raises ConfigProblem naming the folds there are."""
    known = folds(partitions)
    if fold not in known:
        raise ConfigProblem(
            message("fold", expected=f"one of {', '.join(map(str, known))}", got=str(fold), do="Choose one of them.")
        )
    return known[fold]


def hold_out(
    keys: Sequence[str], subjects: Sequence[str | None], *, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of (training, validation) clips: about `share` of the clips is held out, subjects kept whole.

    A clip without a known subject is grouped with its neighbours in the key's order (blocks of 16), because data sets
    number the clips of one film one after another. The choice depends on seed and names only, never on the order given.
    """
    groups = _groups(keys, subjects)
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    sizes = Counter(groups)
    wanted, held, count = share * len(keys), set[str](), 0
    for group in ranked:
        if count >= wanted:
            break
        held.add(group)
        count += sizes[group]
    inside = np.array([group in held for group in groups], dtype=bool)
    if not inside.any() or inside.all():
        raise ConfigProblem(
            f"val_share: {share} of {len(keys)} clips in {len(set(groups))} groups leaves a part empty. "
            "Choose another share, or `select: last`"
        )
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _groups(keys: Sequence[str], subjects: Sequence[str | None]) -> list[str]:
    place = {key: position for position, key in enumerate(sorted(keys))}
    return [
        f"subject {subject}" if subject is not None else f"block {place[key] // 16}"
        for key, subject in zip(keys, subjects, strict=True)
    ]
