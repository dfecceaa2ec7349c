"""Manifests: paths elsewhere, counts and sizes that lie, trees of other shapes, bombs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import indexes, pictures_kit, shards, values
from tests.hostile.shards import Seeds
from tests.hostile.tars import headers
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 340

seeds = shards.seeds


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    yield shards.case("as it was built", seeds)
    draw = rng("manifests")
    whole = seeds.manifest
    version = b"%d" % whole["version"]
    for name, text in indexes.BOMBS.items():
        yield shards.case(name, seeds, manifest=text.replace(b"VERSION", version), refuse=shards.ALL)
    for side in (65500, 20_000):
        tar = seeds.tar
        for member in headers(tar):
            if member.name.endswith(".jpg"):
                jpeg = pictures_kit.sided(tar[member.offset_data : member.offset_data + member.size], side, side)
                tar = tar[: member.offset_data] + jpeg + tar[member.offset_data + member.size :]
        manifest = {**whole, "frames": {**whole["frames"], "max_side": side}}
        yield shards.case(
            f"frames of {side} pixels a side", seeds, tar=tar, manifest=manifest, refuse=("verify", "train")
        )
    for path in values.PATHS:
        tree = copy.deepcopy(whole)
        draw.choice(tree["shards"])["path"] = path
        yield shards.case(f"path {path[:20]!r}", seeds, manifest=tree, refuse=("verify", "train"))
    yield MUTATED
    for tree in values.drawn(values.trees(), 60):
        field = draw.choice(sorted(whole))
        yield shards.case(f"{field} {tree!r:.60}", seeds, manifest={**whole, field: tree})
    for number in range(COUNT - 1 - len(indexes.BOMBS) - len(values.PATHS) - 62):
        if number % 3 == 0:
            how, text = values.broken_json(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
        elif number % 3 == 1:
            yield shards.case("a changed tree", seeds, manifest=json.dumps(values.changed(whole, draw)).encode())
        else:
            how, text = values.damaged(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
