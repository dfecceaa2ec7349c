"""What of a configuration may change when a run goes on, and the note of it that stands in its results.

Which keys these are stands at the keys: `dfer.config.key`. Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfer.config import ConfigProblem, facts_at, from_plain
from dfer.errors import CheckpointError

SETTINGS, CHANGED = "settings", "changed"
"""In a checkpoint's state: the noted keys under which it was written, and what was changed before."""

Setting = int | float | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key that had another value before. step: updates done when the run went on with the new one."""

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
    """A key's value with the facts that stand at it, or at a key above it: `dfer.config.key` tells what they mean."""

    value: Any
    resume: str = "same"
    file: bool = False
    path: bool = False
    fixes: Mapping[str, str] = field(default_factory=dict)


def keys(kind: Any, plain: Mapping[str, Any]) -> dict[str, Key]:
    """Every key of plain values of dataclass `kind`, by its dotted name, but for those that hold further keys.

    The values may be anybody's: a key that `kind` lacks has no facts, so it may not change.
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
    """By dotted key, what two stretches or folds of a run must have in common: all but the free keys.

    Of a file only its name counts; any other place is a whole path, seen from the working folder.
    """
    return {name: _compared(key) for name, key in keys(kind, plain).items() if key.resume != "free"}


def _compared(key: Key) -> Any:
    if not key.path or not isinstance(key.value, str):
        return key.value
    if key.file:
        return Path(key.value).name
    return key.value.rstrip("/") if "://" in key.value else str(Path(key.value).absolute())


def objection(kind: Any, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a run may not go on with another value of a key: None where it may, empty where there is no more to say.

    before, now: plain values of dataclass `kind`.
    """
    old, new = keys(kind, before), keys(kind, now)
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
    """The values of the keys of which results note a change."""
    return {name: key.value for name, key in keys(kind, plain).items() if key.resume in ("noted", "raised")}


def changes(state: Mapping[str, Any], *, where: object) -> tuple[Change, ...]:
    """The changes before a checkpoint was written, from its state. Raises CheckpointError."""
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
    """The changes before a run goes on from a checkpoint, with those it goes on with.

    kind: dataclass of the configurations. recorded: that of the run folder, which stands for checkpoints of older
    versions; now: the new one.
    """
    before, after = state.get(SETTINGS) or noted(kind, recorded), noted(kind, now)
    new = [Change(key=k, was=before.get(k), now=after[k], step=step) for k in after if before.get(k) != after[k]]
    return (*changes(state, where=where), *new)


def to_state(kind: Any, found: tuple[Change, ...], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the changes before it and of the configuration `now`."""
    return {SETTINGS: noted(kind, now), CHANGED: [asdict(change) for change in found]}
