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
these are shown, and `select=best_on_test` is the papers' own. Nor are seeds, places, and how the work is divided."""
PLACES = ("model.start", "model.towers.pretrained")
"""Where weights lie. A tag in place of a path chooses other weights, and null random ones."""


def departures(own: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which a configuration departs from that of a row of a published table.

    own, now: resolved configurations as plain values, of the row itself and of the run.
    """
    theirs, ours = dict(_flat(own)), dict(_flat(now))
    different = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return [key for key in different if _decides(key) and not _is_place(key, ours.get(key))]


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _decides(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in DECIDING)


def _is_place(key: str, value: Any) -> bool:
    """Whether a key only says where the weights lie. A tag of open_clip has no folder and no suffix."""
    if key not in PLACES:
        return False
    return key == "model.start" or (isinstance(value, str) and ("/" in value or bool(Path(value).suffix)))
