"""Manifests: paths elsewhere, counts and sizes that lie, trees of other shapes, bombs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile import indexes, pictures_kit, shards, values
from tests.hostile.shards import Seeds
from tests.hostile.tars import headers
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 340

LISTS = {
    "no keys": b"",
    "a key that is nobody's": b"00001\nnobody\n",
    "a key twice": b"00001\n00001\n",
    "a key of another folder": b"../../etc/passwd\n",
    "a cut line": b"00001\n0000",
    "a line without end": b"a" * 15_000_000,
    "blank lines": b"\n" * 15_000_000,
    "more than is read": b"00001\n" * 10_000_000,
    "bytes that are no text": b"\xff\xfe\n",
}
ALL = {"partitions": ["fold_1"]}
OTHERS = {"partitions": ["fold_2"]}
FOLDS: dict[str, Any] = {
    "a fold that tests on what it trains on": {"1": {"train": ALL, "test": ALL}},
    "a fold that validates on its test clips": {"1": {"train": ALL, "test": OTHERS, "validation": OTHERS}},
    "a fold of no number": {"x" * 10_000: {"train": ALL, "test": OTHERS}},
    "a fold of a long number": {"9" * 10_000: {"train": ALL, "test": OTHERS}},
    "a fold of other digits": {"\u0661": {"train": ALL, "test": OTHERS}},
    "a subset of nothing": {"1": {"train": ALL, "test": {}}},
    "a subset of both": {"1": {"train": ALL, "test": {**OTHERS, "keys": shards.KEYS, "sha256": "0" * 64}}},
    "a partition that is not there": {"1": {"train": ALL, "test": {"partitions": ["../x"]}}},
}

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
    for name, keys in LISTS.items():
        yield shards.case(name, seeds, keys=keys, refuse=("verify", "train"))
    for name, fold in FOLDS.items():
        tree = copy.deepcopy(whole)
        tree["protocols"] = {"published": {"source": "x", "folds": fold}}
        yield shards.case(name, seeds, manifest=tree, refuse=("verify", "train"))
    for path in values.PATHS:
        tree = copy.deepcopy(whole)
        tree["protocols"]["published"]["folds"]["1"]["test"]["keys"] = path
        yield shards.case(f"keys {path[:20]!r}", seeds, manifest=tree, refuse=("verify", "train"))
    for path in values.PATHS:
        tree = copy.deepcopy(whole)
        draw.choice(tree["shards"])["path"] = path
        yield shards.case(f"path {path[:20]!r}", seeds, manifest=tree, refuse=("verify", "train"))
    yield MUTATED
    for tree in values.drawn(values.trees(), 60):
        field = draw.choice(sorted(whole))
        yield shards.case(f"{field} {tree!r:.60}", seeds, manifest={**whole, field: tree})
    for number in range(COUNT - 1 - len(indexes.BOMBS) - 2 * len(values.PATHS) - len(LISTS) - len(FOLDS) - 62):
        if number % 3 == 0:
            how, text = values.broken_json(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
        elif number % 3 == 1:
            yield shards.case("a changed tree", seeds, manifest=json.dumps(values.changed(whole, draw)).encode())
        else:
            how, text = values.damaged(json.dumps(whole).encode(), draw)
            yield shards.case(how, seeds, manifest=text)
