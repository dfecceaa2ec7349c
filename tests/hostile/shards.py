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

from dfer.data.clips import emotions_for, fold_clips
from dfer.data.splits import folds, refuse_overlap
from dfer.emotions import BASIC7, emotions_of
from dfer.store.format import SUFFIX, Media
from dfer.store.shards import Store
from shards.build import build
from shards.shard import BuildOptions
from shards.show import describe
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.verify import load_manifest, verify
from tests.decoded import decode
from tests.hostile.worker import Case
from tests.unit.shards import rawkit

CHUNK = 256 * 1024
PARTITION = "fold_1"
KEYS = "protocols/published.1.test.txt"


@dataclass(frozen=True)
class Seeds:
    """A whole shard folder and what its first shard holds."""

    folder: Path
    tar: bytes
    index: dict[str, Any]
    manifest: dict[str, Any]


def seeds(folder: Path) -> Seeds:
    """Ten clips of noise in five shards, with every fact that a clip may have, made by the builder itself."""
    return made(folder, media="jpeg")


def png_seeds(folder: Path) -> Seeds:
    """The same as PNG."""
    return made(folder, media="png")


def made(folder: Path, *, media: Media) -> Seeds:
    numbers = range(1, 11)
    clips = tuple(_clip(folder / "raw", number, media) for number in numbers)
    whole = RawSet(dataset="noise", emotions=emotions_of(BASIC7), clips=clips, protocols={"published": _published()})
    build(whole, str(folder / "shards"), BuildOptions(media=media), progress=False)
    at = folder / "shards"
    index = json.loads((at / PARTITION / "00000.index.json").read_text())
    return Seeds(at, (at / PARTITION / "00000.tar").read_bytes(), index, json.loads((at / "manifest.json").read_text()))


def _clip(folder: Path, number: int, media: Media) -> RawClip:
    key = f"{number:05d}"
    rawkit.fill(folder / key, [f"{i}.{SUFFIX[media]}" for i in (1, 2)], seed=number)
    return RawClip(
        key=key,
        label=None if number == 6 else number % 7,
        partition=f"fold_{(number - 1) % 5 + 1}",
        folder=folder / key,
        subject=f"person {number // 2}",
        source="film 7",
        text="Somebody looks up.",
        votes=tuple(range(7)),
        faces=((1.0, 2.5, 20.0, 21.0),) * 2,
    )


def _published() -> RawProtocol:
    """Fold 1 trains on partitions, and tests and validates on lists of keys."""
    train = RawSubset(partitions=("fold_2", "fold_3", "fold_4"))
    fold = RawFold(train=train, test=RawSubset(keys=("00001", "00006")), validation=RawSubset(keys=("00005", "00010")))
    return RawProtocol(source="nobody", folds=(fold,))


def case(
    name: str,
    seeds: Seeds,
    *,
    tar: bytes | None = None,
    index: Any = None,
    manifest: Any = None,
    keys: bytes | None = None,
    sign: bool = True,
    refuse: tuple[str, ...] = (),
) -> Case:
    """A copy of the folder with these contents instead. index, manifest: a tree, or the bytes of the file. keys: the
    list of test keys."""

    def write(at: Path) -> None:
        put(
            at, seeds, tar=tar, index=index, manifest=_listing(seeds, keys) if keys is not None else manifest, sign=sign
        )
        if keys is not None:
            (at / "shards" / KEYS).unlink()
            (at / "shards" / KEYS).write_bytes(keys)

    return Case(name=name, write=write, reads=READS, refuse=refuse)


def _listing(seeds: Seeds, keys: bytes) -> dict[str, Any]:
    """The manifest, with the hash of another list of test keys."""
    manifest = copy.deepcopy(seeds.manifest)
    manifest["protocols"]["published"]["folds"]["1"]["test"]["sha256"] = sha256(keys)
    return manifest


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
    fold = folds(store.manifest, "published")[1]
    subsets = fold_clips(store, fold, emotions=emotions_for("basic7", store.manifest))
    refuse_overlap(fold, {name: clips.keys for name, clips in subsets.items()})
    for clips in subsets.values():
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
