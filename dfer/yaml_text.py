"""YAML text that may be anybody's into plain values: bounded, and of YAML only what a configuration needs.

PyYAML's safe loader makes no objects, but knows aliases, of which a few lines unfold into gigabytes, tags, numbers as
long as the file, and raises whatever its parts raise. Here a file is small, flat and a tree, or refused.
"""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
"""Largest text that is parsed; ours have some hundred lines, and PyYAML takes a second for this many."""
MAX_DEPTH = 32


class YamlProblem(ValueError):
    """Why a text is not read, on one line."""


def parse(text: bytes) -> Any:
    """Mappings, lists, text, numbers up to 64 bits, true, false and null of one YAML document.

    Raises:
        YamlProblem: larger than MAX_BYTES, not UTF-8, not YAML, nested deeper than MAX_DEPTH, or with an alias, a tag
            or a key twice.
    """
    if len(text) > MAX_BYTES:
        raise YamlProblem(f"{len(text):,} bytes, more than {MAX_BYTES:,}")
    try:
        return yaml.load(text.decode(), _Loader)  # a safe loader, see below
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise YamlProblem(" ".join(str(error).split())[:400]) from error


class _Loader(yaml.SafeLoader):
    """The safe loader with less in it."""

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
        number = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise _problem("a whole number of more than 64 bits", node)
        return number


def _problem(text: str, at: Any) -> yaml.YAMLError:
    """An error that says where in the text. at: an event or node."""
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)


# `2026-02-30` is text to us, not a date that does not exist.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
