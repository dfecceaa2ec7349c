"""Convert `VALUE` in `a.b=VALUE`: for a text key it is the text itself, for other keys it is parsed as YAML.

The type of the key decides, not the form of the value: a run folder may be called `010` or `/data/lr #1`.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from dfer.yaml_text import parse_value


def value_of(text: str, kind: Any) -> Any:
    """Convert the text for a key of type `kind`. For an optional text key, `null` and empty text mean None.

    Raises:
        YamlProblem: the key is not a text key, and YAML cannot read the value or reads it differently from how it is
            written.
    """
    if is_text(kind):
        return text
    present = [option for option in options(kind) if option is not type(None)]
    if len(present) == 1 and is_text(present[0]):
        return None if text in ("", "null") else text
    return parse_value(text.encode(errors="surrogatepass"))


def is_text(kind: Any) -> bool:
    """Whether a type accepts only text."""
    return kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))


def options(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def type_at(kind: Any, plain: Any, parts: Sequence[str]) -> Any:
    """Return the type of the value at a path of keys; None if there is no such key.

    kind: dataclass at the top. plain: values set so far; their `name` chooses one of several dataclasses.
    """
    for part in parts:
        there = plain if isinstance(plain, Mapping) else {}
        kind, plain = _type_of(options(kind), there.get("name"), part), there.get(part)
    return kind


def _type_of(several: Sequence[Any], name: Any, part: str) -> Any:
    """Return the type of a key in the dataclass that `name` chooses, else in the first type that has the key."""
    for option in chosen(several, name, part):
        if get_origin(option) is dict:
            return get_args(option)[1] | None  # null removes the value that the file has
        return hints(option)[part]
    return None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Cached: a configuration of thousands of keys asks for each."""
    types = typing.get_type_hints(kind)
    return {name: each for name, each in types.items() if get_origin(each) is not typing.ClassVar}


def hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's keys."""
    return _hints(kind)


def chosen(several: Sequence[Any], name: Any, part: str) -> list[Any]:
    """Return those of several types that have a key, the dataclass that `name` chooses first."""
    found: list[Any] = []
    for option in several:
        if get_origin(option) is dict:
            found.append(option)
        elif is_dataclass(option) and part in (types := hints(option)):
            found.insert(0 if name in get_args(types.get("name")) else len(found), option)
    return found
