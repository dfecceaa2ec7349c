"""Shard folders with hostile tars, indexes and manifests, whose hashes are made to fit: as from somebody who can build
shards as well as we can. Read by `dfer-shards verify` and `show`, and on the way to training."""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfer.data.clips import ClipSet
from dfer.data.decode import decode
from dfer.data.splits import folds
from dfer.emotions import label_set
from dfer.store.shards import Store
from shards.build import build
from shards.shard import BuildOptions
from shards.show import describe
from shards.sources import dfew
from shards.verify import load_manifest, verify
from tests.hostile.worker import Case
from tests.unit.shards import rawkit

CHUNK = 256 * 1024
PARTITION = "fold_1"


@dataclass(frozen=True)
class Seeds:
    """A whole shard folder and what its first shard holds."""

    folder: Path
    tar: bytes
    index: dict[str, Any]
    manifest: dict[str, Any]


def seeds(folder: Path) -> Seeds:
    """Ten clips of noise in five shards, made by the builder itself."""
    raw = rawkit.dfew(folder / "raw", clips=10)
    build(dfew.read(raw), str(folder / "shards"), BuildOptions(), progress=False)
    at = folder / "shards"
    index = json.loads((at / PARTITION / "00000.index.json").read_text())
    return Seeds(at, (at / PARTITION / "00000.tar").read_bytes(), index, json.loads((at / "manifest.json").read_text()))


def case(name: str, seeds: Seeds, *, tar: bytes | None = None, index: Any = None, manifest: Any = None,
         sign: bool = True, refuse: tuple[str, ...] = ()) -> Case:  # fmt: skip
    """A copy of the folder with these contents instead. index, manifest: a tree, or the bytes of the file."""
    return Case(
        name=name, write=lambda at: put(at, seeds, tar=tar, index=index, manifest=manifest, sign=sign), reads=READS,
        refuse=refuse,
    )  # fmt: skip


def put(at: Path, seeds: Seeds, *, tar: bytes | None, index: Any, manifest: Any, sign: bool) -> None:
    shutil.copytree(seeds.folder, at / "shards", copy_function=os.link)
    shard = at / "shards" / PARTITION / "00000.tar"
    for path in (shard, shard.with_suffix(".index.json"), at / "shards" / "manifest.json"):
        path.unlink()  # else the whole folder would change too
    data = seeds.tar if tar is None else tar
    index = copy.deepcopy(seeds.index) if index is None else index
    if sign and tar is not None and isinstance(index, dict) and "chunks" in index:
        index["chunks"] = [sha256(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)]
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    shard.write_bytes(data)
    shard.with_suffix(".index.json").write_bytes(text)
    if sign and (manifest is None or tar is not None):
        manifest = copy.deepcopy(seeds.manifest if manifest is None else manifest)
        entry = next(entry for entry in manifest["shards"] if entry["partition"] == PARTITION)
        entry |= {"bytes": len(data), "sha256": sha256(data), "index_sha256": sha256(text)}
    elif manifest is None:
        manifest = seeds.manifest
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (at / "shards" / "manifest.json").write_bytes(text)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _train(at: Path) -> None:
    """As training does: manifest, splits, indexes, then the bytes of every frame, decoded."""
    store = Store(str(at / "shards"))
    split = folds(store.manifest.partitions())[1]
    for partitions in (split.train, split.test):
        clips = ClipSet.open(store, partitions, emotions=label_set("basic7"))
        out = np.empty((24, 24, 3), np.uint8)
        for number in range(min(len(clips), 20)):
            shown = range(min(clips.num_frames(number), 8))
            for jpeg in clips.read(number, shown):
                decode(jpeg, size=24, where=clips.where(number), out=out)


ALL = ("verify", "show", "train")
READS: dict[str, Callable[[Path], object]] = {
    "verify": lambda at: verify(str(at / "shards"), progress=False),
    "show": lambda at: describe(load_manifest(str(at / "shards"))),
    "train": _train,
}
