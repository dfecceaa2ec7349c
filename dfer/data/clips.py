"""The clips of some partitions of a shard folder: labels, keys, and where their frames lie."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfer.emotions import LABEL_SETS, Emotions, canonical_name
from dfer.errors import UsageError, message
from dfer.store.chunks import Bytes, Span
from dfer.store.format import MANIFEST, ClipEntry, Manifest, ShardInfo
from dfer.store.remote import Pending
from dfer.store.shards import Store

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All clips of the partitions as flat arrays; a million Python integers would be copied into every worker."""

    shards: tuple[ShardInfo, ...]
    shard: Ids
    offset: Ids
    label: Ids
    first: Ids
    sizes: NDArray[np.int32]
    keys: list[str]
    subjects: list[str | None]


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """An ordered set of N clips; a clip's number is its position in it. Picklable; copies share their tables."""

    store: Store
    num_classes: int
    table: _Table
    ids: Ids

    @classmethod
    def open(cls, store: Store, partitions: Sequence[str], *, emotions: Emotions) -> "ClipSet":
        """The clips of these partitions, in the order of the manifest; labels numbered as in `emotions`.

        Raises:
            DataError: a partition or an index is missing or damaged.
            UsageError: the classes of the shards are not those of `emotions`.
        """
        to_class = _class_numbers(store, emotions)
        shards = tuple(store.manifest.shards_of(partitions))
        entries = [(number, clip) for number, index in enumerate(store.indexes(shards)) for clip in index.clips]
        table = _table(shards, entries, to_class)
        return cls(store=store, num_classes=len(emotions), table=table, ids=np.arange(len(entries)))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Ids:
        """Class numbers, int64 [N]."""
        return self.table.label[self.ids]

    @property
    def shard_of(self) -> Ids:
        """Number of the shard each clip lies in, int64 [N]."""
        return self.table.shard[self.ids]

    @property
    def keys(self) -> list[str]:
        """The clips' keys in the data set."""
        return [self.table.keys[i] for i in self.ids]

    @property
    def subjects(self) -> list[str | None]:
        """Who is seen, where the data set says so."""
        return [self.table.subjects[i] for i in self.ids]

    @property
    def counts(self) -> Ids:
        """Clips of each class, int64 [K]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def select(self, ids: Sequence[int] | Ids) -> "ClipSet":
        """The clips at these positions, in this order."""
        return replace(self, ids=self.ids[np.asarray(ids, np.int64)])

    def num_frames(self, index: int) -> int:
        """Frames of a clip."""
        row = self.ids[index]
        return int(self.table.first[row + 1] - self.table.first[row])

    def prefetch(self, index: int, positions: Sequence[int] | Ids) -> Pending | None:
        """Start to fetch these frames of a clip where they are far away; what `read` is to be given."""
        return self.store.prefetch(self._shard(index), self._spans(index, positions), where=self.where(index))

    def read(self, index: int, positions: Sequence[int] | Ids, pending: Pending | None = None) -> list[Bytes]:
        """The JPEGs of a clip's frames at these positions in time. Raises DataError, StorageError."""
        spans = self._spans(index, positions)
        return self.store.read(self._shard(index), spans, where=self.where(index), pending=pending)

    def key(self, index: int) -> str:
        """A clip's key in the data set."""
        return str(self.table.keys[self.ids[index]])

    def where(self, index: int) -> str:
        """Shard and key of a clip, for messages."""
        return f"{self.store.url}/{self._shard(index).path}, clip {self.table.keys[self.ids[index]]}"

    def _shard(self, index: int) -> ShardInfo:
        return self.table.shards[int(self.table.shard[self.ids[index]])]

    def _spans(self, index: int, positions: Sequence[int] | Ids) -> list[Span]:
        spans = self._entry(index).frame_spans()
        return [spans[at] for at in positions]

    def _entry(self, index: int) -> ClipEntry:
        row, table = int(self.ids[index]), self.table
        sizes = table.sizes[table.first[row] : table.first[row + 1]]
        return ClipEntry(
            key=table.keys[row],
            label=int(table.label[row]),
            offset=int(table.offset[row]),
            sizes=tuple(sizes.tolist()),
            subject=table.subjects[row],
        )


def _table(shards: tuple[ShardInfo, ...], entries: list[tuple[int, ClipEntry]], to_class: Ids) -> _Table:
    clips = [clip for _, clip in entries]
    lengths = [clip.num_frames for clip in clips]
    return _Table(
        shards=shards,
        shard=np.array([number for number, _ in entries], np.int64),
        offset=np.array([clip.offset for clip in clips], np.int64),
        label=to_class[np.array([clip.label for clip in clips], np.int64)],
        first=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        sizes=np.array([size for clip in clips for size in clip.sizes], np.int32),
        keys=[clip.key for clip in clips],
        subjects=[clip.subject for clip in clips],
    )


def _class_numbers(store: Store, emotions: Emotions) -> Ids:
    """Class number in `emotions` of every class of the manifest: by name, never number to number."""
    names = [canonical_name(name) for name in store.manifest.classes]
    if sorted(names) != sorted(emotions.names):
        raise UsageError(
            message(
                f"{store.url}/{MANIFEST}",
                expected=f"the {len(emotions)} classes {', '.join(emotions.names)}",
                got=f"{len(names)}: {', '.join(names)}",
                do=_other_label_set(store.manifest, names),
            )
        )
    return np.array([emotions.index(name) for name in names], np.int64)


def _other_label_set(manifest: Manifest, names: list[str]) -> str:
    for known, members in LABEL_SETS.items():
        if sorted(members) == sorted(names):
            return f"Set data.classes={known}, or data.shards to other shards than {manifest.dataset}."
    return "Build the shards with these classes."
