"""Configuration keys that may change within limits on resume, and the record of such changes in a run's results.

The limits are stated at the keys: `dfer.config.key`. Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfer.config import ConfigProblem, facts_at, from_plain
from dfer.errors import CheckpointError

SETTINGS, CHANGED = "settings", "changed"
"""Keys of a checkpoint's state: values of the keys whose changes results record, and the list of earlier changes."""

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


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key's value and what `dfer.config.key` states of it or of a key above it."""

    value: Any
    resume: str = "same"
    file: bool = False
    path: bool = False
    fixes: Mapping[str, str] = field(default_factory=dict)
    unnamed: bool = False


def keys(kind: Any, plain: Mapping[str, Any]) -> dict[str, Key]:
    """Return every key of plain values of dataclass `kind` by its dotted name, except those that hold further keys.

    A key that `kind` lacks, as in a file of another version, may not change.
    """
    return dict(_keys(kind, plain, "", "same"))


def _keys(kind: Any, plain: Mapping[str, Any], prefix: str, above: str) -> Iterator[tuple[str, Key]]:
    for name, value in plain.items():
        below, facts = facts_at(kind, plain, name)
        resume = above if above != "same" else facts.get("resume", "same")
        if isinstance(value, Mapping):
            yield from _keys(below, value, f"{prefix}{name}.", resume)
        else:
            yield f"{prefix}{name}", Key(value=value, **{**facts, "resume": resume})


def computed(kind: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return by dotted key what must be equal when a run resumes, and in all its folds: all but the free keys.

    A file is compared by its name; any other path is made absolute first.
    """
    return {name: _compared(key) for name, key in keys(kind, plain).items() if key.resume != "free"}


def _compared(key: Key) -> Any:
    if not key.path or not isinstance(key.value, str):
        return key.value
    if key.file:
        return Path(key.value).name
    return key.value.rstrip("/") if "://" in key.value else str(Path(key.value).absolute())


def objections(kind: Any, names: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return those of some keys with whose new value a run may not resume, each with the reason; the reason is empty
    for a key that never changes.

    before, now: plain values of dataclass `kind`.
    """
    old, new = keys(kind, before), keys(kind, now)
    found = {name: _objection(name, old, new) for name in names}
    return {name: why for name, why in found.items() if why is not None}


def _objection(name: str, old: Mapping[str, Key], new: Mapping[str, Key]) -> str | None:
    key, was = new.get(name), old.get(name)
    if key is not None and key.resume == "noted":
        return None
    if key is None or was is None or key.resume != "raised" or not (_is_number(was.value) and _is_number(key.value)):
        return ""
    if key.value < was.value:
        return "it may only be raised"
    return next((each.fixes[name] for each in new.values() if name in each.fixes), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def noted(kind: Any, plain: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the values of the keys whose changes results record."""
    return {name: key.value for name, key in keys(kind, plain).items() if key.resume in ("noted", "raised")}


def changes(state: Mapping[str, Any], *, where: object) -> tuple[Change, ...]:
    """Read the changes made before a checkpoint was written, from its state. Raises CheckpointError."""
    try:
        return from_plain(tuple[Change, ...], state.get(CHANGED, []), CHANGED)
    except ConfigProblem as problem:
        raise CheckpointError(f"{where}: no list of changes in its state ({problem}).") from problem


def changes_until_now(
    kind: Any,
    state: Mapping[str, Any],
    *,
    where: object,
    recorded: Mapping[str, Any],
    now: Mapping[str, Any],
    step: int,
) -> tuple[Change, ...]:
    """Return all changes of a run that resumes from a checkpoint: those before it, and those of this resume.

    kind: dataclass of the configurations. recorded: configuration of the run folder, used for checkpoints of older
    versions; now: the new configuration.
    """
    before, after = state.get(SETTINGS) or noted(kind, recorded), noted(kind, now)
    new = [Change(key=k, was=before.get(k), now=after[k], step=step) for k in after if before.get(k) != after[k]]
    return (*changes(state, where=where), *new)


def to_state(kind: Any, found: tuple[Change, ...], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a checkpoint's state for the changes before it and the configuration `now`."""
    return {SETTINGS: noted(kind, now), CHANGED: [asdict(change) for change in found]}
