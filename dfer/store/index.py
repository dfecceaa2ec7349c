"""The index of one tar: a column a field, so that hundreds of thousands of stills open in well under a second.

A clip's members are consecutive and every header is one 512-byte USTAR block, so the first frame's offset and the frame
sizes give every other offset. Needs no torch.

Letters: N clips of the tar, F frames of them all, K classes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfer.errors import DataError, message
from dfer.store.format import (
    BLOCK,
    FORMAT_VERSION,
    KEY,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    MAX_TEXT,
    REBUILD,
    SHA256,
    ShardInfo,
    are_keys,
    check_sha256,
    num_chunks,
    read_versioned,
)

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]
Box = tuple[float, float, float, float]

NO_LABEL = -1
MAX_NUMBER = 2**31
"""Largest number of votes, and of a box in pixels."""
WORDS = ("subject", "source", "text")
OPTIONAL = (*WORDS, "votes", "faces")
"""Columns of facts that few data sets know; an index leaves one out where no clip of it has a value."""


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """One clip in a shard. offset: byte of the first frame's data; sizes: bytes of each frame, in time order.

    label: class number, None for a clip that nobody labelled. subject: who is seen. source: the clip or film it was cut
    from. text: what is said about it. votes: how many annotators chose each class. faces: left, top, width and height
    of the face in each frame, in pixels of the raw picture.
    """

    key: str
    label: int | None
    offset: int
    sizes: tuple[int, ...]
    subject: str | None = None
    source: str | None = None
    text: str | None = None
    votes: tuple[int, ...] | None = None
    faces: tuple[Box, ...] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.sizes)

    def frame_spans(self) -> list[tuple[int, int]]:
        """(offset, size) in bytes of every frame's picture in the tar."""
        return frame_spans(self.offset, self.sizes)

    def facts(self) -> dict[str, object]:
        """The optional values that are known, as JSON has them, by name."""
        found: dict[str, object] = {name: getattr(self, name) for name in OPTIONAL if getattr(self, name) is not None}
        if self.votes is not None:
            found["votes"] = list(self.votes)
        if self.faces is not None:
            found["faces"] = [list(box) for box in self.faces]
        return found


def frame_spans(offset: int, sizes: Iterable[int]) -> list[tuple[int, int]]:
    """(offset, size) of consecutive frames, the first of which begins at `offset`."""
    spans = []
    for size in sizes:
        spans.append((offset, size))
        offset += -(-size // BLOCK) * BLOCK + BLOCK
    return spans


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Contents of one `*.index.json`: the clips of one tar in order.

    chunks: SHA-256 of every CHUNK bytes of the tar, the last one shorter, in hexadecimal digits. labels: int64 [N],
    NO_LABEL where there is none. offsets: int64 [N]. first: int64 [N + 1]; `sizes` int32 [F] holds those of clip i from
    first[i] to first[i + 1]. words: columns of text by name, None where a clip has no value. votes: float [N K], faces:
    float [F 4], NaN where there are none. Columns that are left out are not in `words`, or None.
    """

    shard: str
    chunks: tuple[str, ...]
    keys: list[str]
    labels: Ids
    offsets: Ids
    first: Ids
    sizes: NDArray[np.int32]
    words: dict[str, list[str | None]] = field(default_factory=dict)
    votes: Numbers | None = None
    faces: Numbers | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def entry(self, row: int) -> ClipEntry:
        """One clip of the tar."""
        label, frames = int(self.labels[row]), slice(self.first[row], self.first[row + 1])
        votes = None if self.votes is None or np.isnan(self.votes[row]).any() else self.votes[row]
        boxes = None if self.faces is None or np.isnan(self.faces[frames]).any() else self.faces[frames]
        return ClipEntry(
            key=self.keys[row],
            label=None if label == NO_LABEL else label,
            offset=int(self.offsets[row]),
            sizes=tuple(self.sizes[frames].tolist()),
            votes=None if votes is None else tuple(votes.astype(np.int64).tolist()),
            faces=None if boxes is None else tuple(map(tuple, boxes.tolist())),
            **{name: column[row] for name, column in self.words.items()},
        )

    def column(self, name: str) -> list[str | None]:
        """A column of text, None for every clip where it is left out."""
        return self.words.get(name, [None] * len(self))


def index_json(shard: str, chunks: Sequence[str], clips: Sequence[ClipEntry], *, num_classes: int) -> bytes:
    """The bytes of a shard's index: the same clips, the same text."""
    plain: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "shard": shard,
        "chunks": list(chunks),
        "key": [clip.key for clip in clips],
        "offset": [clip.offset for clip in clips],
        "frames": [clip.num_frames for clip in clips],
        "sizes": [size for clip in clips for size in clip.sizes],
    }
    columns: dict[str, list[Any]] = {name: [getattr(clip, name) for clip in clips] for name in ("label", *WORDS)}
    columns["votes"] = [count for clip in clips for count in clip.votes or (None,) * num_classes]
    boxes = (box for clip in clips for box in clip.faces or ((None,) * 4,) * clip.num_frames)
    columns["faces"] = [number for box in boxes for number in box]
    plain |= {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return (json.dumps(plain, sort_keys=True) + "\n").encode()


def read_index(data: bytes, *, where: str, shard: ShardInfo, num_classes: int) -> ShardIndex:
    """Parse a shard's index, and check it against the manifest and bounds, whole columns at once. Raises DataError."""
    check_sha256(data, shard.index_sha256, where=where)
    plain = read_versioned(data, where=where)
    try:
        index = _columns(plain, num_classes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise DataError(message(where, expected="the columns of an index", got=got, do=REBUILD)) from error
    if len(index) != shard.clips:
        raise DataError(message(where, expected=f"{shard.clips} clips", got=str(len(index)), do=REBUILD))
    if len(index.chunks) != num_chunks(shard.bytes) or not all(map(SHA256.fullmatch, index.chunks)):
        expected = f"the SHA-256 of each of {num_chunks(shard.bytes)} chunks"
        raise DataError(message(where, expected=expected, got=f"{len(index.chunks)} entries", do=REBUILD))
    _check_places(index, where=where, shard_bytes=shard.bytes)
    return index


def _columns(plain: dict[str, Any], num_classes: int) -> ShardIndex:
    """The columns as arrays, each value within its bounds. Raises KeyError, TypeError, ValueError, OverflowError."""
    unknown = plain.keys() - {"version", "shard", "chunks", "key", "label", "offset", "frames", "sizes", *OPTIONAL}
    if unknown:
        raise ValueError(f"an unknown column {min(unknown)[:40]!r}")
    keys = _column(plain, "key", str)
    if not are_keys(keys):
        raise ValueError(f"a key {next(key for key in keys if not KEY.fullmatch(key))[:60]!r}")
    labels = _labels(plain.get("label", [None] * len(keys)), num_classes)
    frames = _numbers(plain, "frames", 1, MAX_FRAMES)
    offsets = _numbers(plain, "offset", BLOCK, 2**62)
    sizes = _numbers(plain, "sizes", 1, MAX_FRAME_BYTES)
    if not len(keys) == len(labels) == len(frames) == len(offsets) or int(frames.sum()) != len(sizes):
        raise ValueError("columns of unequal lengths")
    return ShardIndex(
        shard=str(plain["shard"]),
        chunks=tuple(_column(plain, "chunks", str)),
        keys=keys,
        labels=labels,
        offsets=offsets,
        first=np.concatenate([np.zeros(1, np.int64), np.cumsum(frames)]),
        sizes=sizes.astype(np.int32),
        words={name: _words(plain[name], name, len(keys)) for name in WORDS if name in plain},
        votes=_table(plain, "votes", len(keys), num_classes) if "votes" in plain else None,
        faces=_table(plain, "faces", len(sizes), 4) if "faces" in plain else None,
    )


def _column(plain: dict[str, Any], name: str, kind: type) -> list[Any]:
    column = plain[name]
    if not isinstance(column, list) or not _all_of(kind, column):
        raise ValueError(f"a column {name} of something else than {'texts' if kind is str else 'whole numbers'}")
    return column


def _all_of(kind: type, items: list[Any]) -> bool:
    return set(map(type, items)) <= {kind}


def _numbers(plain: dict[str, Any], name: str, low: int, high: int) -> Ids:
    return _within(np.array(_column(plain, name, int), np.int64), name, low, high)


def _within(column: Ids, name: str, low: int, high: int) -> Ids:
    if len(column) and not (low <= column.min() and column.max() <= high):
        odd = int(column.min()) if column.min() < low else int(column.max())
        raise ValueError(f"{name}: {odd}, not {low} to {high:,}")
    return column


def _labels(column: Any, num_classes: int) -> Ids:
    kinds = set(map(type, column)) if isinstance(column, list) else {str}
    if not kinds <= {int, type(None)}:
        raise ValueError("a column label of something else than whole numbers or null")
    if kinds == {int}:
        return _within(np.array(column, np.int64), "label", 0, num_classes - 1)
    given = np.array([label for label in column if label is not None], np.int64)
    _within(given, "label", 0, num_classes - 1)
    labels = np.full(len(column), NO_LABEL, np.int64)
    labels[[label is not None for label in column]] = given
    return labels


def _words(column: Any, name: str, count: int) -> list[str | None]:
    if not isinstance(column, list) or len(column) != count or not set(map(type, column)) <= {str, type(None)}:
        raise ValueError(f"a column {name} of something else than {count} texts or null")
    if max(map(len, filter(None, column)), default=0) > MAX_TEXT:
        raise ValueError(f"a {name} of more than {MAX_TEXT:,} letters")
    return column


def _table(plain: dict[str, Any], name: str, rows: int, width: int) -> Numbers:
    """float [rows width] of a flat column, whose rows are numbers or null throughout; votes are counts."""
    column, kinds = plain[name], {int, type(None)} if name == "votes" else {int, float, type(None)}
    if not isinstance(column, list) or len(column) != rows * width or not set(map(type, column)) <= kinds:
        raise ValueError(f"a column {name} of something else than {rows} x {width} numbers or null")
    table = np.array(column, np.float64).reshape(rows, width)  # null becomes NaN
    low = 0 if name == "votes" else -MAX_NUMBER
    if not column or (low <= table.min() and table.max() <= MAX_NUMBER):  # false if there is a NaN
        return table
    missing = np.isnan(table)
    if (missing.any(axis=1) != missing.all(axis=1)).any() or not (
        (low <= table) & (table <= MAX_NUMBER) | missing
    ).all():
        raise ValueError(f"a row of {name} that is not whole, or a number outside {low} to {MAX_NUMBER}")
    return table


def _check_places(index: ShardIndex, *, where: str, shard_bytes: int) -> None:
    """Raise DataError for a clip whose frames do not lie inside the tar."""
    if not len(index):
        return
    # Every value is bounded by now, so no sum leaves 64 bits.
    sizes = index.sizes.astype(np.int64)
    padded = -(-sizes // BLOCK) * BLOCK + BLOCK
    last = index.first[1:] - 1
    lengths = np.add.reduceat(padded, index.first[:-1]) - padded[last] + sizes[last]
    outside = np.flatnonzero(lengths > shard_bytes - index.offsets)
    if len(outside):
        row = int(outside[0])
        place = f"{where}, clip {index.keys[row]}"
        got = f"{lengths[row]} bytes of frames from {index.offsets[row]} on"
        expected = f"frames inside the {shard_bytes} bytes of the shard"
        raise DataError(message(place, expected=expected, got=got, do=REBUILD))
