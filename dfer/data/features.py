"""Feature shards: the output of frozen towers, computed once and read in the same order as frames.

    FEATURES/manifest.json            written last: what the features depend on, and size and SHA-256 of every shard
    FEATURES/00000.safetensors        rows of every feature by name, float [rows ...], in the order of the keys
    FEATURES/00000.keys.json          the clip of each row and its label

Letters: N clips, B rows of a batch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.data.plan import Plan
from dfer.distributed import World
from dfer.errors import DataError, message
from dfer.recognition import PADDING, BadClip, FeatureBatch
from dfer.storage import Folder

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 * 2**20
REMAKE = "Remove the folder; the next run computes the features again."


@dataclass(frozen=True, kw_only=True)
class FeatureShard:
    """One safetensors file and its keys. sha256: of the tensors, then of the keys."""

    path: str
    rows: int
    sha256: str
    keys_sha256: str


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """What is in a feature folder. key: everything the features depend on, as plain values."""

    version: int = 1
    key: dict[str, Any]
    shards: tuple[FeatureShard, ...]


def write_shard(
    folder: Folder, number: int, features: Mapping[str, Tensor], *, keys: Sequence[str], labels: Sequence[int | None]
) -> FeatureShard:
    """Write one shard; the bytes depend on the arguments alone. features: [rows ...] by name, on the CPU.

    Raises:
        StorageError: it cannot be written.
    """
    path = f"{number:05d}.safetensors"
    tensors = save({name: value.contiguous() for name, value in sorted(features.items())})
    names = (json.dumps({"keys": list(keys), "labels": list(labels)}) + "\n").encode()
    folder.write(path, tensors)
    folder.write(_keys_path(path), names)
    return FeatureShard(path=path, rows=len(keys), sha256=_sha256(tensors), keys_sha256=_sha256(names))


def write_manifest(folder: Folder, key: Mapping[str, Any], shards: Sequence[FeatureShard]) -> None:
    """Write the manifest, which makes the folder count. Raises StorageError."""
    manifest = FeatureManifest(key=dict(key), shards=tuple(shards))
    folder.write(MANIFEST, (json.dumps(to_plain(manifest), indent=1, sort_keys=True) + "\n").encode())


def _keys_path(path: str) -> str:
    return path.removesuffix(".safetensors") + ".keys.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """N rows of features in memory. features: by name, [N ...]; labels: int64 [N], PADDING where there is none."""

    features: dict[str, Tensor]
    keys: list[str]
    labels: Tensor
    key: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def open(cls, folder: Folder) -> "FeatureSet | None":
        """All rows of a folder, every byte checked; None where no manifest stands.

        Raises:
            DataError: damaged, of another version, or not a feature folder. StorageError: it cannot be read.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        features, keys, labels = [], list[str](), list[int]()
        for shard in manifest.shards:
            tensors, names = _read_shard(folder, shard)
            features.append(tensors)
            keys += names["keys"]
            labels += [PADDING if label is None else label for label in names["labels"]]
        joined = {name: torch.cat([part[name] for part in features]) for name in features[0]} if features else {}
        return cls(features=joined, keys=keys, labels=torch.tensor(labels, dtype=torch.int64), key=manifest.key)

    def select(self, keys: Sequence[str], *, labels: Sequence[int] | NDArray[np.int64] | None = None) -> "FeatureSet":
        """The rows of these clips, in this order. labels: their class numbers, in place of those stored.

        Raises:
            DataError: a clip has no features.
        """
        place = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in place]
        if missing:
            got = f"none for {len(missing)} of them ({', '.join(missing[:3])})"
            raise DataError(message("features", expected=f"features of {len(keys)} clips", got=got, do=REMAKE))
        rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
        chosen = self.labels[rows] if labels is None else torch.as_tensor(np.asarray(labels, np.int64))
        features = {name: value[rows] for name, value in self.features.items()}
        return FeatureSet(features=features, keys=list(keys), labels=chosen, key=self.key)


def read_manifest(folder: Folder) -> FeatureManifest | None:
    """The manifest of a feature folder, None where none stands. Raises DataError, StorageError."""
    data = folder.read(MANIFEST, most=MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        manifest = from_plain(FeatureManifest, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem) as error:
        where, got = folder.where(MANIFEST), f"something else ({str(error)[:160]})"
        raise DataError(message(where, expected="a manifest of features", got=got, do=REMAKE)) from error
    return manifest


def _read_shard(folder: Folder, shard: FeatureShard) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data, names = folder.read(shard.path), folder.read(_keys_path(shard.path), most=MAX_JSON_BYTES)
    where = folder.where(shard.path)
    if data is None or names is None:
        raise DataError(message(where, expected="the shard of the manifest", got="no such file", do=REMAKE))
    if _sha256(data) != shard.sha256 or _sha256(names) != shard.keys_sha256:
        raise DataError(message(where, expected="the bytes of its manifest", got="others", do=REMAKE))
    try:
        return load(data), json.loads(names)
    except (SafetensorError, ValueError) as error:
        raise DataError(message(where, expected="tensors and keys", got=str(error)[:160], do=REMAKE)) from error


class FeatureLoader:
    """Micro-batches of one rank out of a FeatureSet, in the order in which `Loader` gives the same clips."""

    def __init__(
        self, rows: FeatureSet, *, world: World, seed: int, train: bool, global_batch: int, micro_batch: int
    ) -> None:
        """Raises ConfigProblem when the global batch does not divide by ranks and micro-batch."""
        self._rows = rows
        shard_of = np.zeros(len(rows), np.int64)
        self._plan = Plan(
            shard_of=shard_of,
            world=world,
            seed=seed,
            train=train,
            global_batch=global_batch,
            micro_batch=micro_batch,
        )
        if train:
            self._plan.check()
        self.steps_per_epoch, self.accumulation = self._plan.steps, self._plan.accumulation
        self.wait_seconds, self.max_bad = 0.0, 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[FeatureBatch]:
        """This rank's micro-batches from `start_step` (a global step) to the end of the epoch."""
        order = self._plan.order(epoch)
        for number in self._plan.numbers(start_step):
            index = torch.from_numpy(self._plan.ids(order, number).copy())
            rows = index.clamp(min=0)  # padding repeats the first row and never counts
            yield FeatureBatch(
                index=index,
                features={name: value[rows] for name, value in self._rows.features.items()},
                labels=self._rows.labels[rows],
            )

    def take_bad(self) -> list[BadClip]:
        """Features hold no clip that could not be read."""
        return []
