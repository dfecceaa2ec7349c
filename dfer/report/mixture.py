"""Refuse to put unlike results into one table."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfer.config import to_plain
from dfer.errors import CheckpointError, message
from dfer.report.folds import Fold
from dfer.storage import Folder

PER_FOLD_KEYS = ("fold", "seed")
"""Configuration keys that may differ between the folds of one table. Free keys, and keys whose change is recorded in
results, may differ as well; the report names the seeds, and notes differences in recorded keys."""


def refuse_mixture(run_folder: Folder, done: Sequence[Fold]) -> None:
    """Raise CheckpointError, naming the folds that differ, unless all may share a table."""
    facts: dict[str, Callable[[Fold], str]] = {
        "data set": lambda fold: fold.result.data,
        "class list": lambda fold: ", ".join(fold.result.classes),
        "method": lambda fold: fold.result.method,
        "number of epochs": lambda fold: str(fold.result.epochs),
        "selection rule": lambda fold: fold.result.selection,
        "number of folds": lambda fold: str(fold.result.num_folds),
        "split protocol": lambda fold: str(fold.result.split or fold.computed.get("data.protocol", "published")),
        "test protocol": lambda fold: json.dumps(to_plain(fold.result.protocol), sort_keys=True),
        "set of variants": lambda fold: ", ".join(sorted(fold.result.variants)) or "none",
        "shard manifest": lambda fold: fold.result.manifest_sha256,
    }
    for what, fact in facts.items():
        _refuse_unlike(run_folder, what, {fold.name: fact(fold) for fold in done})
    reference = _shared_config(done[0])
    for fold in done[1:]:
        mine = _shared_config(fold)
        different = next((key for key in {**reference, **mine} if reference.get(key) != mine.get(key)), None)
        if different is not None:
            values = {f.name: f"{different} = {_shared_config(f).get(different)!r}" for f in (done[0], fold)}
            _refuse_unlike(run_folder, "configuration", values)
    _refuse_shared_partitions(run_folder, done)


def _refuse_unlike(run_folder: Folder, what: str, values: Mapping[str, str]) -> None:
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    if len(groups) > 1:
        got = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
        do = "One table holds only comparable results: run the folds that differ again, or report each folder alone."
        raise CheckpointError(message(run_folder, expected=f"one {what} for all folds", got=got, do=do))


def _refuse_shared_partitions(run_folder: Folder, done: Sequence[Fold]) -> None:
    owner: dict[tuple[str, str], str] = {}
    for fold in done:
        repeat = fold.name.rpartition("/")[0]
        for partition in fold.result.test_partitions:
            if other := owner.get((repeat, partition)):
                got = f"partition {partition} in {other} and {fold.name}"
                expected = "every test partition in one fold, so that pooled counts hold each clip once"
                raise CheckpointError(
                    message(run_folder, expected=expected, got=got, do="Check `fold` in the configurations.")
                )
            owner[repeat, partition] = fold.name


def _shared_config(fold: Fold) -> dict[str, Any]:
    """Return the part of a configuration that must be equal in all folds of a table, by dotted key."""
    return {k: v for k, v in fold.computed.items() if k not in PER_FOLD_KEYS and k not in fold.noted}
