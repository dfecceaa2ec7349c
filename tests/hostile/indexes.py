"""Indexes of shards: places outside the tar, sizes and labels that lie, trees of other shapes, bombs."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import shards, values
from tests.hostile.shards import Seeds
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 340
BOMBS = {
    "lists of nothing": b'{"version": VERSION, "shard": "x", "clips": [%s[]]}' % (b"[]," * 5_000_000),
    "mappings of nothing": b'{"version": VERSION, "shard": "x", "clips": [%s{}]}' % (b"{}," * 5_000_000),
    "numbers": b'{"version": VERSION, "shard": "x", "clips": [%s0]}' % (b"0," * 7_000_000),
    "a long number": b'{"version": VERSION, "shard": "x", "clips": [%s]}' % (b"9" * 4_000_000),
    "blanks": b'{"version": VERSION, "shard": "x"%s}' % (b" " * 60_000_000),
}
"""As large as a careless bound lets them be, and many times larger in memory. VERSION becomes the format's."""

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
        clip = dict(whole["clips"][0])
        field = draw.choice(sorted(clip))
        yield shards.case(
            f"{field} {tree!r:.60}", seeds, index={**whole, "clips": [{**clip, field: tree}, *whole["clips"][1:]]}
        )
    for number in range(COUNT - 1 - len(BOMBS) - 60):
        if number % 3 == 0:
            how, text = values.broken_json(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, index=text)
        elif number % 3 == 1:
            yield shards.case("a changed tree", seeds, index=json.dumps(values.changed(whole, draw)).encode())
        else:
            how, text = values.damaged(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, index=text)
