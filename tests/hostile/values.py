"""Hostile values, and ways to damage bytes and JSON trees that keep enough of them to be read further."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400
PATHS = (
    "../MARK",
    "../../MARK",
    "/MARK",
    "/etc/passwd",
    "a/../../MARK",
    "..",
    ".",
    "",
    "/",
    "//host/x",
    "C:\\x",
    "..\\MARK",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "pipe:touch MARK",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "s3://bucket/x",
    "zip://x::file:///etc/passwd",
    "~/x",
    "$HOME/x",
    "`touch MARK`",
    "$(touch MARK)",
    "\ud800",
    "\u202e",
    "é" * 50,
    "a" * 5000,
    "/proc/self/mem",
    "/dev/zero",
    "con.tar",
    " ",
    "-rf",
    "%00",
    "fold_1/../../x.tar",
)
"""Names that lead elsewhere, are no names, or are commands to whoever runs them."""
NUMBERS = (
    0,
    -1,
    1,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    HUGE,
    -HUGE,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    1e-320,
    True,
    False,
)
TEXTS = (
    "",
    "x",
    "\0",
    "\ud800",
    "\x1b]0;x\x07",
    "<script>alert(1)</script>",
    "__import__('os').system('touch MARK')",
    "{{7*7}}",
    "%s%n",
    "1e5",
    "nan",
    "null",
    "\u0661\u0662",
    "a" * 20_000,
    "\n" * 50,
    "${jndi:x}",
)


def rng(kind: str) -> random.Random:
    """The draws of a kind, the same every time."""
    return random.Random(f"dfer/{kind}")


def deep(levels: int, *, mapping: bool = False) -> Any:
    """A list in a list in a list, or the same of mappings."""
    value: Any = 0
    for _ in range(levels):
        value = {"a": value} if mapping else [value]
    return value


def scalars(draw: random.Random) -> Any:
    """Any hostile value of no depth."""
    return draw.choice((*NUMBERS, *TEXTS, *PATHS, None, [], {}, [None], {"": None}))


def anything(draw: random.Random) -> Any:
    """Any hostile value."""
    kind = draw.randrange(8)
    if kind == 0:
        return deep(draw.choice((2, 50, 300)), mapping=draw.random() < 0.5)
    if kind == 1:
        return [scalars(draw) for _ in range(draw.choice((1, 3, 200)))]
    if kind == 2:
        return {str(scalars(draw))[:50]: scalars(draw) for _ in range(draw.choice((1, 3, 200)))}
    return scalars(draw)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or position) of every value in a tree of JSON."""
    found: list[tuple[Any, Any]] = []
    items: Iterator[tuple[Any, Any]]
    items = iter(tree.items()) if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else iter(())
    for key, value in items:
        found.append((tree, key))
        found += places(value)
    return found


def changed(tree: Any, draw: random.Random, value: Callable[[random.Random], Any] = anything) -> Any:
    """A copy of which one value was replaced, removed, repeated, renamed or moved."""
    tree = copy.deepcopy(tree)
    container, key = draw.choice(places(tree))
    act = draw.randrange(10)
    if act < 6:
        container[key] = value(draw)
    elif act == 6:
        del container[key]
    elif act == 7 and isinstance(container, list):
        container[key:key] = [container[key]] * draw.choice((1, 2, 1000))
    elif act == 8:
        other, place = draw.choice(places(tree))
        container[key] = copy.deepcopy(other[place])
    elif isinstance(container, dict):
        container[draw.choice((*PATHS, *TEXTS, "version", "name", "path"))] = container.pop(key)
    return tree


def as_json(tree: Any) -> bytes:
    """The text, lone surrogates escaped and NaN spelled as Python does."""
    return json.dumps(tree).encode()


def broken_json(text: bytes, draw: random.Random) -> tuple[str, bytes]:
    """The text of a JSON document, damaged as text. (how, text)."""
    forms: dict[str, Callable[[], bytes]] = {
        "nothing": lambda: b"",
        "blanks": lambda: b" \n\t " * 1000,
        "NULs": lambda: b"\0" * 1000,
        "a byte order mark": lambda: b"\xef\xbb\xbf" + text,
        "UTF-16": lambda: text.decode().encode("utf-16"),
        "UTF-32": lambda: text.decode().encode("utf-32"),
        "Latin-1": lambda: text.replace(b"a", b"\xe4"),
        "twice": lambda: text + text,
        "a huge number": lambda: text.replace(b"1", b"1" * 6000, 1),
        "a number that overflows": lambda: text.replace(b"1", b"1e999", 1),
        "a number as long as allowed": lambda: text.replace(b": 1", b": 1" + b"0" * 4000, 1),
        "an open string": lambda: text.replace(b'"', b"", 1),
        "comments": lambda: b"/* x */" + text,
        "keys twice": lambda: text.replace(b"{", b'{"version": 99, "shard": "../x", "clips": [], ', 1),
        "deep lists": lambda: b"[" * 200_000,
        "deep mappings": lambda: b'{"a":' * 100_000,
        "deep and closed": lambda: b"[" * 900 + b"]" * 900,
        "deep in place": lambda: text.replace(b": 1", b": " + b"[" * 960 + b"]" * 960, 1),
        "a long string": lambda: text.replace(b'"', b'"' + b"a" * 1_000_000, 1),
        "lone surrogates": lambda: text.replace(b'"', b'"\\ud800', 3),
        "escapes": lambda: text.replace(b'"', b'"\\u001b[2J\\u0000', 3),
        "another value": lambda: draw.choice((b"null", b"true", b"3", b'"x"', b"[]", b"{}", b"NaN", b"-Infinity")),
    }
    how = draw.choice(sorted(forms))
    return how, forms[how]()


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Bytes cut, flipped, repeated, zeroed, lengthened or with a number in them changed. (how, bytes)."""
    out = bytearray(data)
    at = draw.randrange(len(data)) if data else 0
    size = draw.choice((1, 2, 4, 8, 64, 512, 4096))
    how = draw.choice(
        ("cut", "flip", "flips", "zero", "ones", "repeat", "remove", "insert", "append", "number", "swap")
    )
    if how == "cut":
        del out[at:]
    elif how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else draw.choice((2, 10, 100))):
            if out:
                out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    elif how in ("zero", "ones"):
        out[at : at + size] = (b"\0" if how == "zero" else b"\xff") * len(out[at : at + size])
    elif how == "repeat":
        out[at:at] = out[at : at + size] * draw.choice((1, 3, 50))
    elif how == "remove":
        del out[at : at + size]
    elif how == "insert":
        out[at:at] = draw.randbytes(size)
    elif how == "append":
        out += draw.choice((b"\0" * 1024, draw.randbytes(700), data))
    elif how == "number":
        width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
        number = draw.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, len(data)))
        out[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    else:
        other = draw.randrange(len(data)) if data else 0
        out[at : at + size], out[other : other + size] = out[other : other + size], out[at : at + size]
    return f"{how} at {at}", bytes(out)


def trees() -> st.SearchStrategy[Any]:
    """JSON of any shape, hostile leaves among it."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from([*NUMBERS, *TEXTS, *PATHS])
    )
    keys = st.text(max_size=10) | st.sampled_from(PATHS)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Examples of a strategy, the same ones every time."""
    from hypothesis import HealthCheck, Phase, given, settings

    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found
