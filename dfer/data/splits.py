"""Split clips into training, validation and test: folds of a protocol, and a held-out validation set. Pure functions.

The manifest names the protocols of a data set and what trains and tests in each of their folds. DFEW and MAFW are
stored as five partitions: fold k of `published` tests on partition `fold_k` and trains on the other four. FERV39k has
one split, `train` and `test`, which is fold 1 of one.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dfer.config import ConfigProblem
from dfer.errors import DataError, message
from dfer.store.format import Fold, Manifest


def folds(manifest: Manifest, protocol: str) -> dict[int, Fold]:
    """Return all folds of a protocol of the shards, by number. Raises ConfigProblem that names the known protocols."""
    found = manifest.protocols.get(protocol)
    if found is None:
        known = ", ".join(sorted(manifest.protocols)) or "none"
        expected, do = f"a protocol of the shards ({known})", "Choose one of them."
        if not manifest.protocols:
            do = "Nothing says how to split these shards: build them from a source with protocols."
        raise ConfigProblem(message("data.protocol", expected=expected, got=repr(protocol), do=do))
    return {number: found.folds[str(number)] for number in sorted(map(int, found.folds))}


def fold_of(manifest: Manifest, protocol: str, fold: int) -> Fold:
    """Return one fold of a protocol. Raises ConfigProblem that names the known folds."""
    known = folds(manifest, protocol)
    if fold not in known:
        expected = f"one of {', '.join(map(str, known))}"
        raise ConfigProblem(message("fold", expected=expected, got=str(fold), do="Choose one of them."))
    return known[fold]


def refuse_overlap(fold: Fold, keys: Mapping[str, Collection[str]]) -> None:
    """Raise DataError if a clip is in two of a fold's subsets. keys: name of a subset -> keys of its clips."""
    for one, other in itertools.combinations(fold.subsets, 2):
        shared = sorted(set(keys[one]) & set(keys[other]))
        if shared:
            got = f"{len(shared)} in {one} and in {other} ({', '.join(shared[:3])})"
            do = "Correct the protocol in the source of the data set and build the shards again."
            where = f"fold that tests on {', '.join(fold.test.names)}"
            raise DataError(message(where, expected="every clip in one of its subsets", got=got, do=do))


def hold_out(
    keys: Sequence[str], subjects: Sequence[str | None], *, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out about `share` of the clips for validation; returns the positions of training and validation clips. All
    clips of a subject are on the same side.

    Clips without a known subject are held out in blocks of 16 neighbours in the order of their keys, because data sets
    number the clips of one film consecutively. The choice depends only on seed and names, not on the input's order.
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
