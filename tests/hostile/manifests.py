"""Manifests: paths elsewhere, counts and sizes that lie, trees of other shapes, bombs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import indexes, shards, values
from tests.hostile.shards import Seeds
from tests.hostile.values import rng
from tests.hostile.worker import Case

COUNT = 340

seeds = shards.seeds


def cases(seeds: Seeds, mark: Path) -> Iterator[Case]:
    yield shards.case("as it was built", seeds)
    draw = rng("manifests")
    whole = seeds.manifest
    version = b"%d" % whole["version"]
    for name, text in indexes.BOMBS.items():
        yield shards.case(name, seeds, manifest=text.replace(b"VERSION", version), refuse=shards.ALL)
    for path in values.PATHS:
        tree = copy.deepcopy(whole)
        draw.choice(tree["shards"])["path"] = path
        yield shards.case(f"path {path[:20]!r}", seeds, manifest=tree, refuse=("verify", "train"))
    for tree in values.drawn(values.trees(), 60):
        field = draw.choice(sorted(whole))
        yield shards.case(f"{field} {tree!r:.60}", seeds, manifest={**whole, field: tree})
    for number in range(COUNT - 1 - len(indexes.BOMBS) - len(values.PATHS) - 60):
        if number % 3 == 0:
            how, text = values.broken_json(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
        elif number % 3 == 1:
            yield shards.case("a changed tree", seeds, manifest=json.dumps(values.changed(whole, draw)).encode())
        else:
            how, text = values.damaged(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
