"""Configurations as files: found by path or by name, joined, laid over their bases.

A command takes one or more of them: `dfer train methods/dfer_clip sets/dfew`. Each is the path of a YAML file or the
name of one that comes with the package. A file may name others as `base:`, one or a list of them, and says only what
differs. One rule holds for both lists: joined files do not overrule each other. Mappings are joined key by key; a key
to which two files give different values is refused, unless the file that names both as its bases, or an `a.b=c`,
gives the value. Values of a key that chooses by `name:` and has a default, such as `data.augment`, do not count if they
leave the name out and another file chooses another one: DFEW's brightness belongs to `dfer_clip`, not to `dk_clip`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from dfer.config import MAX_PROBLEMS, ConfigProblem, built, mapping, merged, overridden
from dfer.errors import did_you_mean, message
from dfer.overrides import hints, name_in
from dfer.surroundings import expand_home
from dfer.yaml_text import MAX_BYTES

T = TypeVar("T")
CONFIGS = Path(__file__).with_name("configs").resolve()
"""The configurations that come with the package; in a checkout a link to `configs/`."""
SUFFIX = ".yaml"
MAX_FILES = 32
"""Files that make up one configuration, with all their bases: anybody's may name each other in circles."""


@dataclass(frozen=True)
class Conflict:
    """Different values for one key, by the file that gives them; stands in its place until something decides."""

    values: Mapping[str, Any]


def load(
    files: Sequence[str | Path],
    kind: type[T],
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    below: tuple[str, Mapping[str, Any]] = ("", {}),
    keep: Sequence[str] = (),
) -> T:
    """Join YAML files, apply `a.b=c` overrides, build `kind`. `~` in paths becomes the home folder.

    files: paths or names. defaults: values of keys that no file gives. below: the name and the values of a base that
    all files lie over, such as a saved model. keep: its keys, with points, that no file overrules.

    Raises:
        ConfigProblem: no such file; different values for one key; unknown key, wrong type, missing value. All problems
            of a kind at once.
    """
    base, values = below
    where = " + ".join(filter(None, (base, *map(str, files))))
    above = _of_names_below(values, _without({**(defaults or {}), **read(files, kind)}, keep), kind)
    plain = overridden(merged(values, above, kind), kind, overrides)
    if found := [_told(key, conflict) for key, conflict in _conflicts(plain)]:
        raise ConfigProblem(f"{where}: {'; '.join(found[:MAX_PROBLEMS])}")
    return built(plain, kind, where=where)


def read(files: Sequence[str | Path], kind: Any = None) -> dict[str, Any]:
    """The values of some files joined, each over its bases; a Conflict where they differ."""
    return _joined_files([find(name) for name in files], kind, [])


def find(name: str | Path, beside: Path = Path()) -> Path:
    """The file that is meant: the path itself, seen from `beside`, or a configuration that comes with the package.

    Raises:
        ConfigProblem: there is neither.
    """
    found = locate(name, beside)
    if found is None:
        near = did_you_mean(_short(name).removeprefix(f"{CONFIGS.name}/"), names())
        expected = "a YAML file or the name of a configuration"
        raise ConfigProblem(message(name, expected=expected, got="neither", do=f"Correct it. {near}"))
    return found


def locate(name: str | Path, beside: Path = Path()) -> Path | None:
    """As `find`; None where there is neither a path nor a name."""
    path = beside / expand_home(str(name))
    if _is_there(path, directory=False):
        return path
    if _short(name) in names():
        return CONFIGS / f"{_short(name)}{SUFFIX}"
    return path if _is_there(path, directory=True) else None


def is_run_folder(files: Sequence[str]) -> bool:
    """Whether words of a command that takes a run folder or configurations are the former."""
    return len(files) == 1 and ("://" in files[0] or Path(expand_home(files[0])).is_dir())


def _short(name: str | Path) -> str:
    return str(name).removesuffix(SUFFIX)


def _is_there(path: Path, *, directory: bool) -> bool:
    try:
        return path.exists() if directory else path.is_file()
    except OSError:
        return True  # reading it says why not


def names() -> list[str]:
    """The configurations that come with the package: `demo`, `methods/dfer_clip`, `sets/dfew`, ..."""
    return [*_names_in(CONFIGS)]


@lru_cache
def _names_in(folder: Path) -> tuple[str, ...]:
    """Listed once in a process: every file of a configuration is looked up among them."""
    return tuple(sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"**/*{SUFFIX}")))


def shown(path: Path) -> str:
    """The name of a file that comes with the package, else its path."""
    whole = path.resolve()
    return whole.relative_to(CONFIGS).with_suffix("").as_posix() if whole.is_relative_to(CONFIGS) else str(path)


def _joined_files(paths: Sequence[Path], kind: Any, seen: list[Path]) -> dict[str, Any]:
    return joined({shown(path): _over_its_bases(path, kind, seen) for path in paths}, kind)


def _over_its_bases(path: Path, kind: Any, seen: list[Path]) -> dict[str, Any]:
    """seen: the files read so far, to which this one is added."""
    seen.append(path)
    if len(seen) > MAX_FILES:
        expected, do = f"at most {MAX_FILES} files in one configuration", "Break the circle of `base:`."
        raise ConfigProblem(message(path, expected=expected, got="one more", do=do))
    plain = mapping(_bytes(path), path)
    bases = _bases(plain.pop("base", None), path)
    if not bases:
        return plain
    return merged(_joined_files([find(name, path.parent) for name in bases], kind, seen), plain, kind)


def _bases(named: Any, path: Path) -> list[str]:
    bases = [] if named is None else named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in bases):
        expected, do = "a file or a list of files", "Write it as base: [methods/x, sets/y]."
        raise ConfigProblem(f"{path}: {message('base', expected=expected, got=repr(named)[:80], do=do)}")
    return bases


def _bytes(path: Path) -> bytes:
    """At most a little more than a configuration may have: the file may be anybody's, or no file but a device."""
    try:
        if not path.is_file():
            raise OSError("something else than a file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        got, do = f"one that cannot be read ({error})", "Give the path of a YAML file."
        raise ConfigProblem(message(path, expected="a YAML file", got=got, do=do)) from error


def joined(parts: Mapping[str, Mapping[str, Any]], kind: Any = None) -> dict[str, Any]:
    """Values of several files, by file, as those of one: mappings joined key by key, a Conflict where others differ.
    kind: the dataclass that they are values of, if known."""
    keys = dict.fromkeys(key for part in parts.values() for key in part)
    types = hints(kind) if isinstance(kind, type) and is_dataclass(kind) else {}
    return {key: _agreed({f: part[key] for f, part in parts.items() if key in part}, types.get(key)) for key in keys}


def _agreed(values: Mapping[str, Any], kind: Any) -> Any:
    if all(isinstance(value, Mapping) for value in values.values()):
        return joined(_of_one_name(values, kind), kind)
    first, *others = values.values()
    if all(value == first for value in others):
        return first
    return Conflict({file: each for name, value in values.items() for file, each in _by_file(name, value)})


def _of_one_name(values: Mapping[str, Any], kind: Any) -> Mapping[str, Any]:
    """Leave out the mappings that get their name by default, where another file chooses another name."""
    default = name_in(kind, {})
    others = any(value.get("name", default) != default for value in values.values())
    return {file: value for file, value in values.items() if "name" in value} if default and others else values


def _of_names_below(below: Mapping[str, Any], above: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Leave out of `above` the mappings without a name that belong to another one than `below` chooses."""
    types = hints(kind) if isinstance(kind, type) and is_dataclass(kind) else {}
    out = {}
    for key, value in above.items():
        old, hint = below.get(key), types.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if "above" not in _of_one_name({"below": old, "above": value}, hint):
                continue
            value = _of_names_below(old, value, hint)
        out[key] = value
    return out


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Leave out keys, named with points."""
    out = dict(values)
    for name in names:
        key, _, rest = name.partition(".")
        if rest and isinstance(out.get(key), Mapping):
            out[key] = _without(out[key], [rest])
        elif not rest:
            out.pop(key, None)
    return out


def _by_file(file: str, value: Any) -> list[tuple[str, Any]]:
    return list(value.values.items()) if isinstance(value, Conflict) else [(file, value)]


def _conflicts(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Conflict]]:
    for key, value in plain.items():
        if isinstance(value, Conflict):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _conflicts(value, f"{prefix}{key}.")


def _told(key: str, conflict: Conflict) -> str:
    got = " and ".join(f"{value!r:.60} from {file}" for file, value in conflict.values.items())
    do = f"Decide with {key}=VALUE, or in a file that has both as its base"
    return message(key, expected="one value", got=got, do=do)
