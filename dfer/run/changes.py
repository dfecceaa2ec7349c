"""Configuration keys that may change within limits on resume, and the record of such changes in a run's results.

Keys that affect only place and speed may change freely: `dfer.config.FREE_KEYS`. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dfer.config import ConfigProblem, from_plain
from dfer.errors import CheckpointError

EPOCHS, EVAL_EVERY, MAX_BAD_SHARE = "epochs", "eval_every", "data.max_bad_share"
NOTED_KEYS = (EPOCHS, EVAL_EVERY, MAX_BAD_SHARE)
OPEN_SCHEDULES = ("constant", "step")
"""Schedules whose factor at a step does not depend on the total number of steps."""
SETTINGS, CHANGED = "settings", "changed"
"""Keys of a checkpoint's state: values of NOTED_KEYS when it was written, and the list of earlier changes."""

Setting = int | float | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed key with its old and new value. step: updates done when the run resumed with the new value."""

    key: str
    was: Setting
    now: Setting
    step: int

    def __str__(self) -> str:
        return f"{self.key} from {_shown(self.was)} to {_shown(self.now)} at step {self.step}"


def _shown(value: Setting) -> str:
    return "none" if value is None else f"{value:g}"


def objection(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return None if a run may resume with a new value of a key, else the reason (empty for keys that never change).

    old, new: configurations by dotted key.
    """
    was, now = old.get(key), new.get(key)
    if key == EVAL_EVERY:
        return None
    if key not in NOTED_KEYS or not isinstance(was, int | float) or not isinstance(now, int | float):
        return ""
    if now < was:
        return "it may only be raised"
    schedule = new.get("schedule.name", "constant")
    if key == EPOCHS and schedule not in OPEN_SCHEDULES:
        return f"the rates of the {schedule} schedule depend on the number of epochs at every step"
    return None


def noted(plain: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the values of NOTED_KEYS in a configuration of plain values."""
    found = {}
    for key in NOTED_KEYS:
        value: Any = plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found[key] = value
    return found


def changes(state: Mapping[str, Any], *, where: object) -> tuple[Change, ...]:
    """Read the changes made before a checkpoint was written, from its state. Raises CheckpointError."""
    try:
        return from_plain(tuple[Change, ...], state.get(CHANGED, []), CHANGED)
    except ConfigProblem as problem:
        raise CheckpointError(f"{where}: no list of changes in its state ({problem}).") from problem


def changes_until_now(
    state: Mapping[str, Any], *, where: object, recorded: Mapping[str, Any], now: Mapping[str, Any], step: int
) -> tuple[Change, ...]:
    """Return all changes of a run that resumes from a checkpoint: those before it, and those of this resume.

    recorded: configuration of the run folder, used for checkpoints of older versions; now: the new configuration.
    """
    before, after = state.get(SETTINGS) or noted(recorded), noted(now)
    new = [Change(key=k, was=before.get(k), now=after[k], step=step) for k in NOTED_KEYS if before.get(k) != after[k]]
    return (*changes(state, where=where), *new)


def to_state(found: tuple[Change, ...], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint's state for the changes before it and the configuration `now`."""
    return {SETTINGS: noted(now), CHANGED: [asdict(change) for change in found]}
