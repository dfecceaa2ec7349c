"""Parse untrusted YAML text into plain values: bounded in size, and only the part of YAML that a configuration needs.

PyYAML's safe loader builds no objects, but it accepts aliases (a few lines can expand to gigabytes), tags and numbers
as long as the file, and raises errors of many kinds. This module refuses text that is large, deeply nested or not a
tree. It also refuses words that YAML 1.1 reads differently from how they are written: `010` as 8, `1:30` as 90, `no` as
false, `/data/lr #1` as `/data/lr`.
"""

import re
from collections.abc import Callable, Hashable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
"""Largest text that is parsed. Real configurations have some hundred lines; PyYAML takes a second for this size."""
MAX_DEPTH = 32


class YamlProblem(ValueError):
    """The reason why a text is refused, on one line."""


def parse(text: bytes) -> Any:
    """Parse one YAML document of mappings, lists, text, numbers up to 64 bits, true, false and null.

    Raises:
        YamlProblem: larger than MAX_BYTES, not UTF-8, not YAML, nested deeper than MAX_DEPTH, or with an alias, a tag,
            a repeated key, or a word that YAML reads differently from how it is written.
    """
    return _read(text, _whole)


def parse_value(text: bytes) -> Any:
    """As `parse`, for a single value such as one of the command line: a comment in it is refused, not dropped."""
    return _read(text, _uncommented)


def _read(text: bytes, read: Callable[[str], Any]) -> Any:
    if len(text) > MAX_BYTES:
        raise YamlProblem(f"{len(text):,} bytes, more than {MAX_BYTES:,}")
    try:
        return read(text.decode())
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise YamlProblem(" ".join(str(error).split())[:400]) from error


def _whole(text: str) -> Any:
    return deepcopy(_parsed(text))  # callers change what they get


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """A run reads its configuration several times, and PyYAML takes 20 ms for one."""
    return yaml.load(text, _Loader)  # a safe loader, see below


def _uncommented(text: str) -> Any:
    """As `_whole`, but refuse comments. They are found between the tokens, where else only blanks stand."""
    value, end = _whole(text), 0
    for token in yaml.scan(text, _Loader):
        if "#" in text[end : token.start_mark.index]:
            raise YamlProblem("what follows ` #` is a comment in YAML and would be left out")
        end = max(end, token.end_mark.index)
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader restricted to what the module docstring allows."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases (*name) are not read", event)
        if getattr(event, "tag", None) is not None:
            raise _problem(f"tags ({event.tag}) are not read", event)
        if self.depth == MAX_DEPTH:
            raise _problem(f"nested deeper than {MAX_DEPTH}", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise _problem(f"{twice!r} stands there twice", node)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        _as_written(node, _WHOLE, "in decimal digits without leading zeros, `_` or `:`")
        number = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise _problem("a whole number of more than 64 bits", node)
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        _as_written(node, _FLOAT, "without `_` or `:`")
        return super().construct_yaml_float(node)

    def construct_yaml_bool(self, node: yaml.ScalarNode) -> bool:
        _as_written(node, _BOOL, "as true or false")
        return super().construct_yaml_bool(node)

    def construct_yaml_null(self, node: yaml.ScalarNode) -> None:
        _as_written(node, _NULL, "as null")

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text, after = super().construct_yaml_str(node), node.end_mark
        if node.style is None and after.buffer and _HASH.match(after.buffer, after.pointer):
            raise _problem(
                f"{_shown(text)} would end before ` #`: put the text in quotes, or a blank behind the # of a comment",
                node,
            )
        return text


_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[^_:]+")
_BOOL = re.compile(r"true|false", re.IGNORECASE)
_NULL = re.compile(r"(null)?", re.IGNORECASE)
_HASH = re.compile(r"[ \t]+#[^\s#]")
"""After a word: a comment without a blank after its #, which may be meant as part of the word."""


def _as_written(node: yaml.ScalarNode, form: re.Pattern[str], how: str) -> None:
    """Refuse a word that only YAML 1.1 reads as a number, a truth value or null."""
    if not form.fullmatch(node.value):
        told = f"{_shown(node.value)} is not read as it is written: write it {how}, or in quotes where it is text"
        raise _problem(told, node)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _problem(text: str, at: Any) -> yaml.YAMLError:
    """Make an error with its position in the text. at: an event or node."""
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)


# Dates are read as text; YAML would refuse `2026-02-30` as a date that does not exist.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in ("int", "float", "bool", "null", "str"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}"))
