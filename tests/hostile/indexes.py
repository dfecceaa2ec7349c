"""Indexes of shards: places outside the tar, sizes and labels that lie, trees of other shapes, bombs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile import shards, values
from tests.hostile.shards import Seeds
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 340
BOMBS = {
    "lists of nothing": b'{"version": VERSION, "shard": "x", "faces": [%s[]]}' % (b"[]," * 5_000_000),
    "mappings of nothing": b'{"version": VERSION, "shard": "x", "votes": [%s{}]}' % (b"{}," * 5_000_000),
    "numbers": b'{"version": VERSION, "shard": "x", "sizes": [%s0]}' % (b"0," * 7_000_000),
    "a long number": b'{"version": VERSION, "shard": "x", "offset": [%s]}' % (b"9" * 4_000_000),
    "blanks": b'{"version": VERSION, "shard": "x"%s}' % (b" " * 60_000_000),
}
"""As large as a careless bound lets them be, and many times larger in memory. VERSION becomes the format's."""

LIES: dict[str, dict[str, Any]] = {
    "a million frames of a clip": {"frames": [1_000_000, 2]},
    "frames of nothing": {"frames": [0, 4]},
    "sizes that wrap at 32 bits": {"sizes": [2**32 + 600, 600, 600, 600]},
    "offsets that wrap at 64 bits": {"offset": [2**63 - 1, 512]},
    "an offset near the end of 62 bits": {"offset": [2**62, 512]},
    "a key of another folder": {"key": ["../../x", "y"]},
    "a key without end": {"key": ["a" * 5_000_000, "y"]},
    "labels below none": {"label": [-2, 0]},
    "labels of truth": {"label": [True, 0]},
    "a text of a megabyte": {"text": ["x" * 2**20, None]},
    "votes of another number of classes": {"votes": [1] * 100_000},
    "votes of half a clip": {"votes": [1] * 13 + [None]},
    "boxes of another number of frames": {"faces": [1] * 100_000},
    "boxes without end": {"faces": [float("inf")] * 16},
    "boxes of many digits": {"faces": [10**4000] * 16},
    "an unknown column": {"__reduce__": ["os.system", "true"]},
}
"""Columns that a careless reader would believe; the first shard has two clips of two frames."""

seeds = shards.seeds


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    yield shards.case("as it was built", seeds)
    draw = rng("indexes")
    whole = seeds.index
    version = b"%d" % whole["version"]
    for name, text in BOMBS.items():
        yield shards.case(name, seeds, index=text.replace(b"VERSION", version), refuse=("verify", "train"))
    yield MUTATED
    for tree in values.drawn(values.trees(), 60):
        field = draw.choice(sorted(whole.keys() - {"version", "shard", "chunks"}))
        yield shards.case(f"{field} {tree!r:.60}", seeds, index={**whole, field: [tree, *whole[field][1:]]})
    for name, changes in LIES.items():
        yield shards.case(name, seeds, index={**whole, **changes}, refuse=("verify", "train"))
    for number in range(COUNT - 1 - len(BOMBS) - len(LIES) - 60):
        if number % 3 == 0:
            how, text = values.broken_json(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, index=text)
        elif number % 3 == 1:
            yield shards.case("a changed tree", seeds, index=json.dumps(values.changed(whole, draw)).encode())
        else:
            how, text = values.damaged(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, index=text)
