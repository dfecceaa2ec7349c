"""Dataclasses <-> YAML <-> `a.b=c` on the command line, with messages that name the key and the remedy.

Every room owns the dataclass of what it needs; `dfer.jobs.config.RunConfig` composes them. Text says only what differs
from the defaults. A field typed as a union of dataclasses is chosen by `name:`. Files are found, joined and read by
`dfer.config_files`. A dataclass may name keys of earlier versions, each with what to do instead, as its ClassVar GONE:
such a key is accepted as null, which run folders of those versions hold, and refused with any other value.

On the command line a value for a text key is that text, letter by letter; a value for any other key is read as YAML.
"""

import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from dfer.errors import UsageError, did_you_mean, message
from dfer.overrides import chosen, hints, name_in, options, type_at, value_of
from dfer.surroundings import expand_home
from dfer.yaml_text import YamlProblem, parse

T = TypeVar("T")
MAX_DEPTH = 8
"""Points in the key of an override."""
MAX_PROBLEMS = 20
"""Problems that one message tells of; the search ends with them."""

Resume = Literal["same", "free", "noted", "raised"]
"""What may become of a key's value when a run goes on, and from fold to fold of a run: `same`, nothing; `free`,
anything, since the key says where and how fast, not what is computed; `noted`, anything, and results note the change;
`raised`, a larger number alone, which results note. `dfer.run.changes` holds runs to it."""


class ConfigProblem(UsageError):
    """One or more things wrong in a configuration, each with its key."""


def key(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    path: bool = False,
    file: bool = False,
    resume: Resume = "same",
    fixes: Mapping[str, str] = MappingProxyType({}),
    unnamed: bool = False,
) -> Any:
    """A dataclass field with facts about the key, which hold for the keys below it too.

    path: it may name a folder or file, so `~` at its start is replaced by the home folder where it is read. file: it
    may name a file of weights or of an architecture, which may lie elsewhere, under the same name, when a run goes on.
    resume: what may become of its value then. fixes: other keys that may not change then either while this one is set,
    each with the reason. factory: makes the default. unnamed: of a `name`: values without `name:` choose this dataclass
    of a union.
    """
    metadata = {"path": path or file, "file": file, "resume": resume, "fixes": fixes, "unnamed": unnamed}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def load_text(text: bytes, kind: type[T], overrides: Sequence[str] = (), *, where: object) -> T:
    """Build `kind` from the text of a resolved configuration and `a.b=c` overrides. `~` in paths becomes the home
    folder.

    where: for messages.

    Raises:
        ConfigProblem: unknown key, wrong type, missing value; all problems at once.
    """
    return built(overridden(mapping(text, where), kind, overrides), kind, where=where)


def built(plain: Mapping[str, Any], kind: type[T], *, where: object) -> T:
    """As `from_plain`; messages begin with `where`."""
    try:
        return from_plain(kind, plain)
    except ConfigProblem as problem:
        raise ConfigProblem(f"{where}: {problem}") from problem


def overridden(plain: dict[str, Any], kind: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values of `kind` with `a.b=c` overrides laid over them, one after another."""
    for text in overrides:
        plain = merged(plain, _override(text, plain, kind), kind)
    return plain


def mapping(data: bytes, where: object) -> dict[str, Any]:
    """YAML text as plain values by key. where: for messages."""
    try:
        plain = parse(data)
    except YamlProblem as problem:
        got = f"not valid YAML ({problem})"
        raise ConfigProblem(message(where, expected="a YAML file of keys", got=got, do="See configs/.")) from problem
    if not isinstance(plain, dict):
        raise ConfigProblem(message(where, expected="a mapping of keys", got=type(plain).__name__, do="See configs/."))
    return plain


def merged(below: Mapping[str, Any], above: Mapping[str, Any], kind: Any = None) -> dict[str, Any]:
    """`above` over `below`, mappings merged key by key, as values of dataclass `kind`.

    Where `kind` has a union of dataclasses, a mapping with another `name:` replaces the one below: it has other keys.
    """
    types = hints(kind) if isinstance(kind, type) and is_dataclass(kind) else {}
    out = dict(below)
    for key, value in above.items():
        old, hint = out.get(key), types.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _chooses_anew(hint, old, value):
            value = merged(old, value, hint)
        out[key] = value
    return out


def _chooses_anew(hint: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    several = sum(is_dataclass(option) for option in get_args(hint)) > 1
    return several and "name" in new and name_in(hint, new) != name_in(hint, old)


def _override(text: str, plain: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The mapping that `a.b=c` stands for. plain: what it is laid over, which may choose the dataclass of its key."""
    key, equals, value = text.partition("=")
    if not equals or not key or key.count(".") > MAX_DEPTH:
        raise ConfigProblem(message("override", expected="key.sub=value", got=_shown(text), do="Write it as seed=2."))
    parts = key.split(".")
    try:
        out: Any = value_of(value, type_at(kind, plain, parts))
    except YamlProblem as error:
        got = f"{_shown(value)} ({error})"
        raise ConfigProblem(message(key, expected="a YAML value", got=got, do="Correct it.")) from error
    for part in reversed(parts):
        out = {part: out}
    return typing.cast(dict[str, Any], out)


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML text; reads back to the same value."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def to_plain(config: Any) -> Any:
    """Plain dicts, lists and scalars of a dataclass instance."""
    return _plain(asdict(config))


def facts_at(kind: Any, plain: Mapping[str, Any], name: str) -> tuple[Any, Mapping[str, Any]]:
    """The type of a key of plain values of `kind`, and the facts that `key` noted of it; none of a key without any."""
    for option in chosen(options(kind), plain.get("name"), name):
        if is_dataclass(option):
            return hints(option)[name], next(f.metadata for f in fields(option) if f.name == name)
    return None, {}


def changed(config: T, values: Mapping[str, Any]) -> T:
    """A dataclass with other values at some dotted keys, also of mappings in it."""
    for path, value in values.items():
        name, _, rest = path.partition(".")
        own: Any = config
        if rest:
            value = changed(own[name] if isinstance(own, Mapping) else getattr(own, name), {rest: value})
        config = typing.cast(T, {**own, name: value} if isinstance(own, Mapping) else replace(own, **{name: value}))
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def from_plain(kind: type[T], plain: Any, where: str = "") -> T:
    """Build dataclass `kind` from plain values, strictly typed.

    Raises:
        ConfigProblem: with every problem found, one sentence each.
    """
    problems: list[str] = []
    value = _build(kind, plain, where, problems)
    if problems:
        raise ConfigProblem("; ".join(problems[:MAX_PROBLEMS]) + ("; and more" if len(problems) > MAX_PROBLEMS else ""))
    return typing.cast(T, value)


def _build(kind: Any, plain: Any, where: str, problems: list[str]) -> Any:
    if kind in _NAMES:
        return _scalar(kind, plain, where, problems)
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _dataclass(kind, plain, where, problems)
    if origin in (typing.Union, types.UnionType):
        return _union(kind, plain, where, problems)
    if origin is Literal:
        return _checked(
            plain,
            plain in get_args(kind) and not isinstance(plain, bool),
            where,
            problems,
            expected=" or ".join(repr(a) for a in get_args(kind)),
        )
    if origin is tuple:
        return _tuple(get_args(kind)[0], plain, where, problems)
    if origin is dict:
        if not isinstance(plain, Mapping):
            return _checked(plain, False, where, problems, expected="a mapping")
        there = {str(k): v for k, v in plain.items() if v is not None}  # a null takes away what the base file has
        return {
            k: _build(get_args(kind)[1], v, _join(where, k), problems)
            for k, v in there.items()
            if len(problems) <= MAX_PROBLEMS
        }
    return _scalar(kind, plain, where, problems)


def _tuple(kind: Any, plain: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(plain, list | tuple):
        return _checked(plain, False, where, problems, expected="a list")
    if (
        kind is int
        and plain
        and all(type(x) is int for x in plain)
        and _fits(int, min(plain))
        and _fits(int, max(plain))
    ):
        return tuple(plain)  # a shard index holds a million of them
    built = []
    for i, item in enumerate(plain):
        if len(problems) > MAX_PROBLEMS:
            break  # a file of anybody's may hold millions of them
        built.append(_build(kind, item, f"{where}[{i}]", problems))
    return tuple(built)


@cache
def _keys(kind: Any) -> Mapping[str, tuple[Field[Any], Any]]:
    """A dataclass's keys with their fields and types; a manifest has thousands of the same dataclass."""
    types = hints(kind)
    return MappingProxyType({f.name: (f, types[f.name]) for f in fields(kind) if f.init})


def _dataclass(kind: Any, plain: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(plain, Mapping):
        return _checked(plain, False, where, problems, expected=f"a mapping ({kind.__name__})")
    known = _keys(kind)
    gone: Mapping[str, str] = getattr(kind, "GONE", {})
    for key in plain:
        if key in gone:
            if plain[key] is not None:
                problems.append(f"{_join(where, str(key))}: a key of earlier versions. {gone[key]}")
        elif key not in known and len(problems) <= MAX_PROBLEMS:
            problems.append(f"{_join(where, str(key))}: unknown key. {did_you_mean(str(key), known)}")
    before = len(problems)
    values = {}
    for name, (f, own) in known.items():
        if name in plain:
            values[name] = _build(own, plain[name], _join(where, name), problems)
            if f.metadata.get("path") and isinstance(values[name], str):
                values[name] = _expanded(values[name], _join(where, name), problems)
            if f.metadata.get("path") and isinstance(values[name], tuple):
                values[name] = tuple(_expanded(each, _join(where, name), problems) for each in values[name])
        elif f.default is MISSING and f.default_factory is MISSING:
            key = _join(where, name)
            problems.append(f"{key}: required, but missing. Add it to the file or as {key}=VALUE")
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ConfigProblem as problem:
        problems.append(str(problem) if not where else f"{where}: {problem}")
    return None


def _expanded(path: str, where: str, problems: list[str]) -> str:
    if not path:
        problems.append(f"{where}: expected a path or URL, got nothing. Write one, or leave the key out")
    try:
        return expand_home(path)
    except UsageError as problem:
        problems.append(f"{where}: {problem}")
        return path


def _union(kind: Any, plain: Any, where: str, problems: list[str]) -> Any:
    options = get_args(kind)
    if type(None) in options:
        rest = [o for o in options if o is not type(None)]
        if plain is None:
            return None
        return _build(rest[0] if len(rest) == 1 else typing.Union[tuple(rest)], plain, where, problems)  # noqa: UP007
    by_name = {get_args(hints(o)["name"])[0]: o for o in options if is_dataclass(o)}
    if not by_name:
        lists = [option for option in options if get_origin(option) is tuple]
        if lists and isinstance(plain, list | tuple):
            return _tuple(get_args(lists[0])[0], plain, where, problems)
        scalars = [option for option in options if option not in lists]
        words = [*(option.__name__ for option in scalars), *("list" for _ in lists)]
        fits = any(_fits(option, plain) for option in scalars)
        return _checked(plain, fits, where, problems, expected=" or ".join(words))
    name = name_in(kind, plain) if isinstance(plain, Mapping) else None
    if not isinstance(name, str) or name not in by_name:
        hint = did_you_mean(name if isinstance(name, str) else "None", by_name)
        problems.append(f"{_join(where, 'name')}: unknown {_shown(name)}. {hint}")
        return None
    return _dataclass(by_name[name], plain, where, problems)


def _scalar(kind: Any, plain: Any, where: str, problems: list[str]) -> Any:
    if kind is Any:
        return plain
    fits = _fits(kind, plain)
    if not fits:
        _checked(plain, fits, where, problems, expected=_NAMES.get(kind, getattr(kind, "__name__", str(kind))))
    return float(plain) if kind is float and fits else plain


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _fits(kind: Any, plain: Any) -> bool:
    if kind is float and isinstance(plain, float):
        return math.isfinite(plain)
    if kind in (int, float):  # nothing of ours needs more bits, and arrays hold no more
        return isinstance(plain, int) and not isinstance(plain, bool) and -(2**63) <= plain < 2**63
    return isinstance(plain, kind)


def _checked(plain: Any, ok: bool, where: str, problems: list[str], *, expected: str) -> Any:
    if not ok:
        hint = ""
        if isinstance(plain, str) and expected == _NAMES[float] and _is_number(plain):
            hint = f". YAML reads {plain} as text: write it with a point, {_with_point(plain)}, and no quotes"
        problems.append(
            f"{where or 'top level'}: expected {expected}, got {_shown(plain)} ({type(plain).__name__}){hint}"
        )
    return plain


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _with_point(text: str) -> str:
    mantissa, e, exponent = text.lower().partition("e")
    point = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{point}{e}{exponent}"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """The value as a message quotes it: its beginning, where it is long."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 6, 4, 80, 40, 80
