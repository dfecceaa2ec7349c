"""Which keys of a configuration decide whether a paper's numbers still describe a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DECIDING = (
    "model",
    "optim",
    "schedule",
    "epochs",
    "batch",
    "ema",
    "early_stop",
    "engine.clip_norm",
    "engine.clip_value",
    "data.protocol",
    "data.classes",
    "data.join",
    "data.frames",
    "data.size",
    "data.augment",
    "data.sampling",
    "data.train_frames",
    "data.views",
    "data.targets",
    "data.balance",
    "data.mix",
)
"""What a published number stands for. `select` is not among them: both selections stand beside the numbers wherever
these are shown, and `select=best_on_test` is the papers' own. Nor are seeds, places, and how the work is divided: where
that decides what is computed, a report leaves the numbers out (`dfer.report.crossval`), as it knows the processes."""
PLACES = ("model.start", "model.towers.pretrained", "model.head")
"""Where weights lie. A tag in place of a path chooses other weights, and null random ones. A head is the row's if the
file has the same name. A start is a place where imported weights are evaluated; a report leaves the numbers out where a
training began from it (`dfer.report.crossval`)."""


def departures(own: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which a configuration departs from that of a row of a published table.

    own, now: resolved configurations as plain values, of the row itself and of the run.
    """
    theirs, ours = dict(_flat(own)), dict(_flat(now))
    different = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return [key for key in different if _decides(key) and not _is_place(key, theirs.get(key), ours.get(key))]


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _decides(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in DECIDING)


def _is_place(key: str, own: Any, value: Any) -> bool:
    """Whether a key only says where the weights lie. A tag of open_clip has no folder and no suffix."""
    if key not in PLACES:
        return False
    if key == "model.head":
        return isinstance(own, str) and isinstance(value, str) and Path(own).name == Path(value).name
    return key == "model.start" or (isinstance(value, str) and ("/" in value or bool(Path(value).suffix)))
