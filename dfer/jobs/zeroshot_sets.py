"""The test clips of a data set for the zero-shot suite: of all folds of shards, each clip once, or a folder of class
folders of pictures.

Letters: N clips.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dfer.data.clips import ClipSet, emotions_for, keys_of
from dfer.data.config import DataConfig
from dfer.data.pictures import PictureFolder
from dfer.data.recipes import DferClipAugment
from dfer.data.splits import folds
from dfer.distributed import World
from dfer.emotions import MAFW11, Emotions, canonical_name, emotions_of, label_set
from dfer.errors import DataError, DferError, UsageError, message
from dfer.jobs.features import clip_batches
from dfer.jobs.fold_data import manifest_hash
from dfer.jobs.zeroshot_config import SHORT_CLIPS, ZeroshotConfig, ZeroshotSet
from dfer.recognition import ClipBatch
from dfer.store.format import Manifest, Subset
from dfer.store.shards import Store

Ids = NDArray[np.int64]
Batches = Callable[[Sequence[int], int, int, World], Iterator[ClipBatch]]
"""From positions among the featured clips, pixels of a side and clips of a batch to batches of this rank."""


@dataclass(frozen=True, kw_only=True)
class SetData:
    """What is tested on a data set.

    dataset, generated: as in a manifest; the name of the folder for pictures. keys, labels: of the N test clips, each
    once, labels int64 [N]. folds: positions of the clips of each fold. left_out: test clips of other classes, or
    without one. frames: T. short: clips of at most T frames, 0 for stills. sha256: of the manifest, or of names and
    sizes of the pictures. featured: keys of all clips whose features are computed, those of other classes too, so that
    two sets of one folder share them. batches: their frames.
    """

    dataset: str
    generated: str = ""
    emotions: Emotions
    keys: list[str]
    labels: Ids
    folds: dict[int, Ids]
    left_out: int
    frames: int
    short: int
    sha256: str
    featured: list[str]
    batches: Batches

    @property
    def featured_sha256(self) -> str:
        """SHA-256 of the keys of the clips whose features are computed."""
        return hashlib.sha256("\n".join(self.featured).encode("utf-8", "surrogateescape")).hexdigest()


def open_set(config: ZeroshotConfig, name: str) -> SetData:
    """Open a data set of the suite that is there.

    Raises:
        DataError: it is damaged, has no test clips, or class folders that are no classes.
        UsageError: its classes are not those of the configuration. StorageError.
    """
    own = config.sets[name]
    with _named(name):
        return _of_pictures(config, own) if own.pictures is not None else _of_shards(config, own)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the key of the data set before a message."""
    try:
        yield
    except DferError as error:
        raise type(error)(f"sets.{name}: {error}") from error


# --- shards


def _of_shards(config: ZeroshotConfig, own: ZeroshotSet) -> SetData:
    store = Store(str(own.shards), cache=config.store_cache())
    have = emotions_for(None, store.manifest)
    emotions = emotions_for(own.classes, store.manifest)
    if missing := [name for name in emotions.names if name not in have.names]:
        got = f"{', '.join(have.names)} without {', '.join(missing)}"
        raise UsageError(message("classes", expected="classes of the shards", got=got, do="Correct them."))
    tested = {number: keys_of(store, fold) for number, fold in _tests(store.manifest, own).items()}
    wanted = set[str]().union(*tested.values())
    every = ClipSet.open(store, store.manifest.partitions(), emotions=have)
    clips = every.select([row for row, key in enumerate(every.keys) if key in wanted])
    lengths = np.array([clips.num_frames(row) for row in range(len(clips))], np.int64)
    frames = config.frames if lengths.max(initial=0) > 1 else 1
    keys = clips.keys
    chosen = _chosen(have, emotions)[clips.labels]
    return _set_data(
        keys,
        chosen,
        tested,
        emotions=emotions,
        dataset=store.manifest.dataset,
        generated=store.manifest.generated,
        frames=frames,
        short=int((lengths[chosen >= 0] <= frames).sum()) if frames > 1 else 0,
        sha256=manifest_hash(store),
        batches=_ShardBatches(clips=clips, data=_data_of(config, own, frames), seed=config.seed),
    )


def _tests(manifest: Manifest, own: ZeroshotSet) -> dict[int, Subset]:
    """Return the test part of every fold that is evaluated, by number.

    Raises:
        DataError: nothing says which clips are tested, as of AffectNet without its split. UsageError: no such fold.
    """
    if own.protocol not in manifest.protocols or not manifest.protocols[own.protocol].folds:
        known = ", ".join(sorted(manifest.protocols)) or "no protocol"
        do = "Build the shards with the data set's split, or set protocol to one of those that they have."
        expected, got = (
            f"a test part, as of the protocol `{own.protocol}`",
            f"shards of {manifest.dataset} with {known}",
        )
        raise DataError(message("test clips", expected=expected, got=got, do=do))
    found = folds(manifest, own.protocol)
    if missing := [number for number in own.folds if number not in found]:
        expected = f"some of {', '.join(map(str, found))}"
        raise UsageError(message("folds", expected=expected, got=str(missing[0]), do="Correct them."))
    return {number: fold.test for number, fold in found.items() if not own.folds or number in own.folds}


def _data_of(config: ZeroshotConfig, own: ZeroshotSet, frames: int) -> DataConfig:
    """How clips are read: the middle frames of the segments, whole and stretched to the tower's size."""
    return DataConfig(
        shards=str(own.shards),
        frames=frames,
        workers=config.workers,
        augment=DferClipAugment(crop=False, flip=0.0),
        train_frames="middle",
        sampling=SHORT_CLIPS[config.short_clips],
        cache=config.cache,
        cache_gib=config.cache_gib,
    )


@dataclass(frozen=True, kw_only=True)
class _ShardBatches:
    clips: ClipSet
    data: DataConfig
    seed: int

    def __call__(self, rows: Sequence[int], size: int, batch: int, world: World) -> Iterator[ClipBatch]:
        data = replace(self.data, size=size)
        return clip_batches(self.clips.select(list(rows)), data, batch, world, seed=self.seed)


# --- pictures


def _of_pictures(config: ZeroshotConfig, own: ZeroshotSet) -> SetData:
    root = Path(str(own.pictures))
    found = PictureFolder.open(root)
    of_folder = _classes_of_folders(root, sorted({*found.folders}), own)
    emotions = _picture_classes(own, of_folder)
    keys = [str(name) for name in found.names]
    labels = [
        emotions.names.index(each) if each in emotions.names else -1 for each in map(of_folder.get, found.folders)
    ]
    return _set_data(
        keys,
        np.array(labels, np.int64),
        {1: set(keys)},
        emotions=emotions,
        dataset=root.name,
        frames=1,
        short=0,
        sha256=found.sha256,
        batches=_PictureBatches(pictures=found, threads=max(1, config.workers)),
    )


def _classes_of_folders(root: Path, folders: Sequence[str], own: ZeroshotSet) -> dict[str, str]:
    """Map every folder of pictures to a class, by `folders` or by its name.

    Raises:
        DataError: names that are no names of a class. Numbered folders are not guessed: every release numbers anew.
    """
    given = own.folders
    asked = label_set(own.classes).names if isinstance(own.classes, str) else own.classes or ()
    known = {*MAFW11, *map(canonical_name, asked), *map(canonical_name, given.values())}
    found = {folder: canonical_name(given.get(folder, folder)) for folder in folders}
    odd = [folder or "pictures beside the folders" for folder, name in found.items() if name not in known]
    if odd:
        listed = ", ".join(odd[:8]) + (f" and {len(odd) - 8} more" if len(odd) > 8 else "")
        expected = f"folders named as classes ({', '.join(asked or MAFW11)})"
        do = "Give the folder of the test part, or say the class of each in `folders`, such as {'1': happiness}."
        raise DataError(message(root, expected=expected, got=listed, do=do))
    return found


def _picture_classes(own: ZeroshotSet, of_folder: Mapping[str, str]) -> Emotions:
    """Return the configured classes, or those of the folders in the order of MAFW's, others behind them."""
    if isinstance(own.classes, str):
        return label_set(own.classes)
    if own.classes is not None:
        return emotions_of([canonical_name(name) for name in own.classes])
    there = {*of_folder.values()}
    return emotions_of([*(name for name in MAFW11 if name in there), *sorted(there - {*MAFW11})])


@dataclass(frozen=True, kw_only=True)
class _PictureBatches:
    """Reads pictures in threads: the decoder and the resize work outside of Python's lock."""

    pictures: PictureFolder
    threads: int

    def __call__(self, rows: Sequence[int], size: int, batch: int, world: World) -> Iterator[ClipBatch]:
        parts = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        with ThreadPoolExecutor(self.threads) as pool:
            ahead = [pool.submit(self.pictures.read, row, size) for row in (parts[0] if parts else ())]
            for number, part in enumerate(parts):
                now, following = ahead, parts[number + 1] if number + 1 < len(parts) else ()
                ahead = [pool.submit(self.pictures.read, row, size) for row in following]
                pictures = torch.from_numpy(np.stack([each.result() for each in now]))
                yield ClipBatch(frames=pictures.permute(0, 3, 1, 2)[:, None], index=torch.tensor(part))


# --- both


def _chosen(have: Emotions, want: Emotions) -> Ids:
    """Return the number of every class of `have` in `want`, -1 for those that are not wanted."""
    return np.array([want.names.index(name) if name in want.names else -1 for name in have.names], np.int64)


def _set_data(keys: Sequence[str], labels: Ids, tested: Mapping[int, Collection[str]], **facts: Any) -> SetData:
    """Put a set together. labels: -1 for clips of other classes. tested: keys of the test clips of every fold."""
    emotions: Emotions = facts["emotions"]
    kept = [row for row, label in enumerate(labels) if label >= 0]
    at = {keys[row]: place for place, row in enumerate(kept)}
    folds = {fold: np.array(sorted(at[key] for key in own if key in at), np.int64) for fold, own in tested.items()}
    if empty := [fold for fold, own in folds.items() if not len(own)]:
        got, do = f"none in fold {empty[0]}", "Correct its classes, or its protocol."
        raise DataError(message("test clips", expected=f"some of {', '.join(emotions.names)}", got=got, do=do))
    return SetData(
        keys=[keys[row] for row in kept],
        labels=labels[kept],
        folds=folds,
        left_out=len(set[str]().union(*tested.values())) - len(kept),
        featured=list(keys),
        **facts,
    )
