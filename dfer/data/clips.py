"""The clips of some partitions of a shard folder: labels, keys, and where their frames lie."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfer.emotions import LABEL_SETS, Emotions, canonical_name, emotions_of, label_set
from dfer.errors import DataError, UsageError, message
from dfer.store.chunks import Bytes, Span
from dfer.store.format import MANIFEST, REBUILD, Fold, Manifest, ShardInfo, Subset, read_keys
from dfer.store.index import NO_LABEL, ShardIndex, frame_spans
from dfer.store.remote import Pending
from dfer.store.shards import Shards

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All clips of the partitions as flat arrays, since Python objects would be copied into every worker."""

    shards: tuple[ShardInfo, ...]
    shard: Ids
    offset: Ids
    label: Ids
    first: Ids
    sizes: NDArray[np.int32]
    keys: list[str]
    subjects: list[str | None]
    texts: list[str | None]


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """An ordered set of N clips; a clip's number is its position in the set. Picklable; copies share their tables.

    left_out: number of clips that were excluded for having no label, or the label of a class that was not selected.
    """

    store: Shards
    num_classes: int
    table: _Table
    ids: Ids
    left_out: int = 0

    @classmethod
    def open(cls, store: Shards, partitions: Sequence[str], *, emotions: Emotions, partial: bool = False) -> "ClipSet":
        """Open the clips of these partitions, in the order of the manifest; labels are numbered as in `emotions`. Clips
        without a label, or of a class that `emotions` does not name, are left out. partial: the shards may lack some of
        the classes.

        Raises:
            DataError: a partition or an index is missing or damaged.
            UsageError: the shards lack a class of `emotions`; all of them, if `partial`.
        """
        numbers = class_numbers(store, emotions, partial=partial)
        to_class = np.append(numbers, NO_LABEL)  # NO_LABEL (-1) indexes the last entry
        shards = tuple(store.manifest.shards_of(partitions))
        table = _table(shards, store.indexes(shards), to_class)
        chosen = np.flatnonzero(table.label != NO_LABEL)
        left_out = len(table.label) - len(chosen)
        return cls(store=store, num_classes=len(emotions), table=table, ids=chosen, left_out=left_out)

    @classmethod
    def every(cls, store: Shards, partitions: Sequence[str]) -> "ClipSet":
        """Open all clips of these partitions, labelled or not, in the order of the manifest, without their labels.

        Raises:
            DataError: a partition or an index is missing or damaged.
        """
        shards = tuple(store.manifest.shards_of(partitions))
        nothing = np.full(len(store.manifest.classes) + 1, NO_LABEL, np.int64)
        table = _table(shards, store.indexes(shards), nothing)
        return cls(store=store, num_classes=0, table=table, ids=np.arange(len(table.label)))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Ids:
        """Class numbers, int64 [N]."""
        return self.table.label[self.ids]

    @property
    def shard_of(self) -> Ids:
        """Number of the shard that holds each clip, int64 [N]."""
        return self.table.shard[self.ids]

    @property
    def keys(self) -> list[str]:
        """The clips' keys in the data set."""
        return [self.table.keys[i] for i in self.ids]

    @property
    def subjects(self) -> list[str | None]:
        """The person in each clip, None if the data set does not say."""
        return [self.table.subjects[i] for i in self.ids]

    @property
    def texts(self) -> list[str | None]:
        """What is said about each clip, None if the data set says nothing."""
        return [self.table.texts[i] for i in self.ids]

    @property
    def counts(self) -> Ids:
        """Clips of each class, int64 [K]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def with_keys(self, keys: Sequence[str], *, where: str) -> "ClipSet":
        """Return the clips with these keys, in their order. Raises DataError for a key that these shards lack."""
        rows = {key: row for row, key in enumerate(self.table.keys)}
        missing = [key for key in keys if key not in rows]
        if missing:
            got = f"{len(missing)} others ({', '.join(missing[:3])})"
            raise DataError(message(where, expected="keys of clips in these shards", got=got, do=REBUILD))
        ids = np.array([rows[key] for key in keys], np.int64)
        chosen = ids[self.table.label[ids] != NO_LABEL]
        return replace(self, ids=chosen, left_out=len(ids) - len(chosen))

    def select(self, ids: Sequence[int] | Ids) -> "ClipSet":
        """Return the clips at these positions, in this order."""
        return replace(self, ids=self.ids[np.asarray(ids, np.int64)])

    def num_frames(self, index: int) -> int:
        """Return the number of frames of a clip."""
        row = self.ids[index]
        return int(self.table.first[row + 1] - self.table.first[row])

    def prefetch(self, index: int, positions: Sequence[int] | Ids) -> Pending | None:
        """Start fetching these frames of a clip from a remote store; returns the argument `pending` of `read`."""
        return self.store.prefetch(self._shard(index), self._spans(index, positions), where=self.where(index))

    def read(self, index: int, positions: Sequence[int] | Ids, pending: Pending | None = None) -> list[Bytes]:
        """Read the encoded frames of a clip at these positions in time. Raises DataError, StorageError."""
        spans = self._spans(index, positions)
        return self.store.read(self._shard(index), spans, where=self.where(index), pending=pending)

    def key(self, index: int) -> str:
        """Return a clip's key in the data set."""
        return str(self.table.keys[self.ids[index]])

    def where(self, index: int) -> str:
        """Return shard and key of a clip, for messages."""
        return f"{self.store.url}/{self._shard(index).path}, clip {self.table.keys[self.ids[index]]}"

    def _shard(self, index: int) -> ShardInfo:
        return self.table.shards[int(self.table.shard[self.ids[index]])]

    def _spans(self, index: int, positions: Sequence[int] | Ids) -> list[Span]:
        row, table = int(self.ids[index]), self.table
        sizes = table.sizes[table.first[row] : table.first[row + 1]]
        spans = frame_spans(int(table.offset[row]), sizes.tolist())
        return [spans[at] for at in positions]


def _table(shards: tuple[ShardInfo, ...], indexes: Sequence[ShardIndex], to_class: Ids) -> _Table:
    frames = [np.diff(index.first) for index in indexes]
    return _Table(
        shards=shards,
        shard=np.repeat(np.arange(len(indexes)), [len(index) for index in indexes]),
        offset=_joined([index.offsets for index in indexes]),
        label=to_class[_joined([index.labels for index in indexes])],
        first=np.concatenate([np.zeros(1, np.int64), np.cumsum(_joined(frames))]),
        sizes=np.concatenate([np.empty(0, np.int32), *(index.sizes for index in indexes)]),
        keys=[key for index in indexes for key in index.keys],
        subjects=[subject for index in indexes for subject in index.column("subject")],
        texts=[text for index in indexes for text in index.column("text")],
    )


def _joined(columns: Sequence[Ids]) -> Ids:
    return np.concatenate([np.empty(0, np.int64), *columns])


def fold_clips(store: Shards, fold: Fold, *, emotions: Emotions, partial: bool = False) -> dict[str, ClipSet]:
    """Open the clips of each subset of a fold, by the name of the subset. Raises as `ClipSet.open`, and DataError if a
    list of keys is damaged."""
    listed = any(subset.keys for subset in fold.subsets.values())
    every = store.manifest.partitions()
    whole = ClipSet.open(store, every, emotions=emotions, partial=partial) if listed else None
    return {
        name: whole.with_keys(_listed(store, subset), where=_where(store, subset))
        if whole and subset.keys
        else ClipSet.open(store, subset.partitions, emotions=emotions, partial=partial)
        for name, subset in fold.subsets.items()
    }


def keys_of(store: Shards, subset: Subset) -> set[str]:
    """Return the keys of all clips of a subset, labelled or not. Raises as `fold_clips`."""
    if not subset.partitions:
        return set(_listed(store, subset))
    return {key for index in store.indexes(store.manifest.shards_of(subset.partitions)) for key in index.keys}


def _listed(store: Shards, subset: Subset) -> list[str]:
    return read_keys(store.file(subset.keys), sha256=subset.sha256, where=_where(store, subset))


def _where(store: Shards, subset: Subset) -> str:
    return f"{store.url}/{subset.keys}"


def class_numbers(store: Shards, emotions: Emotions, *, partial: bool) -> Ids:
    """Map every class of the manifest, by name, to its number in `emotions`; NO_LABEL if it is not selected.

    partial: some of the classes may be missing in the manifest. Raises UsageError.
    """
    names = [canonical_name(name) for name in store.manifest.classes]
    missing = [name for name in emotions.names if name not in names]
    if missing and (not partial or len(missing) == len(emotions)):
        got = f"{len(names)} without {', '.join(missing)}: {', '.join(names) or 'none'}"
        do = _other_label_set(store.manifest, names)
        expected = f"the {len(emotions)} classes {', '.join(emotions.names)}"
        raise UsageError(message(f"{store.url}/{MANIFEST}", expected=expected, got=got, do=do))
    return np.array([emotions.names.index(name) if name in emotions.names else NO_LABEL for name in names], np.int64)


def emotions_for(classes: str | Sequence[str] | None, manifest: Manifest) -> Emotions:
    """Determine the classes of a run.

    classes: None for all classes of the shards; the name of a label set, whose classes must be exactly those of the
    shards; or a list of names, which selects and orders classes of the shards.

    Raises:
        UsageError: the label set is unknown, a name is repeated, or the shards have other classes.
    """
    names = [canonical_name(name) for name in manifest.classes]
    if not names:
        got, do = f"none: nothing in {manifest.dataset} is labelled", "Set data.shards to labelled shards."
        raise UsageError(message("data.shards", expected="shards with classes", got=got, do=do))
    if classes is None:
        return emotions_of(names)
    if not isinstance(classes, str):
        return emotions_of([canonical_name(name) for name in classes])
    chosen = label_set(classes)
    if sorted(chosen.names) != sorted(names):
        expected = f"the {len(chosen)} classes {', '.join(chosen.names)}"
        got = f"{len(names)}: {', '.join(names)}"
        do = _other_label_set(manifest, names)
        raise UsageError(message(f"data.classes={classes}", expected=expected, got=got, do=do))
    return chosen


def _other_label_set(manifest: Manifest, names: list[str]) -> str:
    for known, members in LABEL_SETS.items():
        if sorted(members) == sorted(names):
            return f"Set data.classes={known}, or data.shards to other shards than {manifest.dataset}."
    return "List the classes you want in data.classes, by name, or leave it out for all of them."
