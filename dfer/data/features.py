"""Feature shards: the output of frozen towers, computed once and read in the same order as frames.

    FEATURES/KEY/manifest.json                        written last: what the features depend on, and every shard
    FEATURES/KEY/00000-0123456789abcdef.safetensors   every feature by name, float [rows ...], and in its header the
                                                      clips' keys; its name ends in the first digits of its SHA-256

KEY is the first digits of the SHA-256 of everything the features depend on. A shard is named by its content, so that
several processes may write the same features at the same time, and the shards of a killed process can be used again.

Letters: N clips, B rows of a batch.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.data.plan import Plan
from dfer.errors import DataError, message
from dfer.recognition import BadClip, FeatureBatch
from dfer.storage import Folder

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 * 2**20
REMAKE = f"Remove {MANIFEST} there and repeat the command that made the features: it keeps whole shards."
SHARD = re.compile(r"([0-9]{5,7})-([0-9a-f]{16})\.safetensors")
_KEYS = "keys"


@dataclass(frozen=True, kw_only=True)
class FeatureShard:
    """One safetensors file. rows: number of clips in it."""

    path: str
    rows: int
    sha256: str

    def __post_init__(self) -> None:
        if not SHARD.fullmatch(self.path):
            raise ConfigProblem(f"path: expected a name as 00000-0123456789abcdef.safetensors, got {self.path[:80]!r}")


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """The contents of a feature folder. key: everything the features depend on, as plain values. origin: source of the
    tower's weights, in words."""

    version: Literal[1] = 1
    key: dict[str, Any]
    origin: str = ""
    shards: tuple[FeatureShard, ...]


def name_of(key: Mapping[str, Any]) -> str:
    """Return the name of the features' folder below FEATURES."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def write_shard(folder: Folder, number: int, features: Mapping[str, Tensor], *, keys: Sequence[str]) -> FeatureShard:
    """Write one shard; its bytes depend only on the arguments. features: [rows ...] by name, on the CPU.

    Raises:
        StorageError: it cannot be written.
    """
    tensors = {name: value.contiguous() for name, value in features.items()}
    data = save(tensors, metadata={_KEYS: json.dumps(list(keys))})
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{number:05d}-{sha256[:16]}.safetensors"
    folder.write(path, data)
    return FeatureShard(path=path, rows=len(keys), sha256=sha256)


def standing_shards(
    folder: Folder, keys: Sequence[Sequence[str]], *, only: Collection[int] | None = None
) -> dict[int, FeatureShard]:
    """Find the complete shards in a folder, by number. keys: for each shard, the keys of the clips it must hold. only:
    the numbers to look for, none = all."""
    found: dict[int, FeatureShard] = {}
    for path in folder.children():
        match = SHARD.fullmatch(path)
        if match is None or (number := int(match[1])) >= len(keys) or number in found:
            continue
        if only is not None and number not in only:
            continue
        data = folder.read(path) or b""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256[:16] == match[2] and _keys_of(data) == list(keys[number]):
            found[number] = FeatureShard(path=path, rows=len(keys[number]), sha256=sha256)
    return found


def write_manifest(folder: Folder, key: Mapping[str, Any], shards: Sequence[FeatureShard], *, origin: str = "") -> None:
    """Write the manifest, which marks the folder as complete. Raises StorageError."""
    manifest = FeatureManifest(key=dict(key), origin=origin, shards=tuple(shards))
    folder.write(MANIFEST, (json.dumps(to_plain(manifest), indent=1, sort_keys=True) + "\n").encode())


def read_manifest(folder: Folder) -> FeatureManifest | None:
    """Read the manifest of a feature folder; None if there is none. Raises DataError, StorageError."""
    data = folder.read(MANIFEST, most=MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        return from_plain(FeatureManifest, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem) as error:
        where, got = folder.where(MANIFEST), f"something else ({str(error)[:160]})"
        raise DataError(message(where, expected="a manifest of features", got=got, do=REMAKE)) from error


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """N rows of features in memory. features: by name, [N ...]; labels: int64 [N], None if there are none."""

    features: dict[str, Tensor]
    keys: list[str]
    labels: Tensor | None = None
    key: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dims(self) -> dict[str, int]:
        """Width of each feature by name."""
        return {name: value.shape[-1] for name, value in self.features.items()}

    @classmethod
    def open(cls, folder: Folder) -> "FeatureSet | None":
        """Read all rows of a folder and check every byte; None if there is no manifest.

        Raises:
            DataError: the folder is damaged, of another version, or no feature folder. StorageError: it cannot be read.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        joined: dict[str, Tensor] = {}
        keys: list[str] = []
        for shard in manifest.shards:
            tensors, names = read_shard(folder, shard)
            for name, value in tensors.items():
                if not keys:
                    joined[name] = value.new_empty(sum(each.rows for each in manifest.shards), *value.shape[1:])
                _fill(joined, name, value, at=len(keys), where=folder.where(shard.path))
            keys += names
        return cls(features=joined, keys=keys, key=manifest.key, origin=manifest.origin)

    def select(self, keys: Sequence[str], *, labels: NDArray[np.int64] | None = None) -> "FeatureSet":
        """Return the rows of these clips, in this order. labels: their class numbers.

        Raises:
            DataError: a clip has no features.
        """
        place = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in place]
        if missing:
            got = f"none for {len(missing)} of them ({', '.join(missing[:3])})"
            raise DataError(message("features", expected=f"features of {len(keys)} clips", got=got, do=REMAKE))
        rows = torch.tensor([place[key] for key in keys], dtype=torch.int64)
        features = {name: value[rows] for name, value in self.features.items()}
        chosen = None if labels is None else torch.from_numpy(np.array(labels, np.int64))
        return FeatureSet(features=features, keys=list(keys), labels=chosen, key=self.key, origin=self.origin)


def _fill(joined: Mapping[str, Tensor], name: str, value: Tensor, *, at: int, where: str) -> None:
    """Put the rows of a shard into their place. Raises DataError if their shape or type is not that of the others."""
    whole = joined.get(name)
    if whole is None or (value.shape[1:], value.dtype) != (whole.shape[1:], whole.dtype):
        got = f"{name} {list(value.shape)} {value.dtype}"
        raise DataError(message(where, expected="features as in the first shard", got=got, do=REMAKE))
    whole[at : at + len(value)] = value


def read_shard(folder: Folder, shard: FeatureShard) -> tuple[dict[str, Tensor], list[str]]:
    """Read the features of one shard by name, and its clips' keys. Raises DataError, StorageError."""
    where, data = folder.where(shard.path), folder.read(shard.path)
    if data is None:
        raise DataError(message(where, expected="the shard of the manifest", got="no such file", do=REMAKE))
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DataError(message(where, expected="the bytes of its manifest", got="others", do=REMAKE))
    keys = _keys_of(data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise DataError(message(where, expected="tensors", got=str(error)[:160], do=REMAKE)) from error
    counts = {len(value) if value.dim() else 0 for value in tensors.values()}
    if keys is None or counts != {shard.rows} or len(keys) != shard.rows:
        got = f"{sorted(counts)} rows with {'no' if keys is None else len(keys)} keys"
        raise DataError(message(where, expected=f"{shard.rows} rows and their keys", got=got, do=REMAKE))
    return tensors, keys


def _keys_of(data: bytes) -> list[str] | None:
    """Read the clips' keys from a shard's header; None if it has none."""
    length = int.from_bytes(data[:8], "little")
    try:
        keys = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEYS])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return keys if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else None


class FeatureLoader:
    """Yields a rank's micro-batches from a FeatureSet, with the same clips in the same order as `Loader`."""

    def __init__(self, rows: FeatureSet, plan: Plan) -> None:
        """plan: for the rows of the set. Raises ConfigProblem if the clips of a training do not make a step."""
        self._rows, self._plan = rows, plan
        if plan.train:
            plan.check()
        self.steps_per_epoch, self.accumulation = plan.steps, plan.accumulation
        self.wait_seconds, self.max_bad = 0.0, 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[FeatureBatch]:
        """Yield this rank's micro-batches from `start_step` (a global step) to the end of the epoch."""
        order, labels = self._plan.order(epoch), self._rows.labels
        for number in self._plan.numbers(start_step):
            index = torch.from_numpy(self._plan.ids(order, number).copy())
            rows = index.clamp(min=0)  # padding reads the first row; PADDING in `index` excludes it
            yield FeatureBatch(
                index=index,
                features={name: value[rows] for name, value in self._rows.features.items()},
                labels=None if labels is None else labels[rows],
            )

    def take_bad(self) -> list[BadClip]:
        """Return an empty list: every clip has features."""
        return []

    def lack_of_memory(self) -> str:
        """Return an empty message: no shared memory is used."""
        return ""
