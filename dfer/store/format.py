"""The shard folder: manifest, per-shard index, member names. Shared by the builder and the reader; needs no torch.

    OUT/manifest.json                 written last; a folder without it is refused
    OUT/fold_1/00000.tar              members `key.000.jpg key.001.jpg ... key.json`, one clip after another
    OUT/fold_1/00000.index.json       where each clip's frames lie in that tar

A clip's members are consecutive and every header is one 512-byte USTAR block, so the first frame's offset and the
frame sizes give every other offset. `docs/shard_format.md` describes all fields.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from dfer.config import ConfigProblem, from_plain
from dfer.errors import DataError, message

T = TypeVar("T")

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
BLOCK = 512
CHUNK = 256 * 1024
"""Bytes of a tar that have a hash of their own, so that any part of it can be checked without the rest."""
KEY = re.compile(r"[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,3}")
PARTITION = re.compile(r"[a-z0-9_]{1,40}")
MAX_FRAMES = 10_000
MAX_FRAME_BYTES = 16 * 2**20
MAX_JSON_BYTES = 16 * 2**20
"""Largest manifest or index that is parsed."""
MAX_CONTAINERS = 1_000_000
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """One clip in a shard. offset: byte of the first frame's data; sizes: bytes of each frame, in time order."""

    key: str
    label: int
    offset: int
    sizes: tuple[int, ...]
    subject: str | None = None

    @property
    def num_frames(self) -> int:
        return len(self.sizes)

    def frame_spans(self) -> list[tuple[int, int]]:
        """(offset, size) in bytes of every frame's JPEG in the tar."""
        spans, at = [], self.offset
        for size in self.sizes:
            spans.append((at, size))
            at += -(-size // BLOCK) * BLOCK + BLOCK
        return spans


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Contents of one `*.index.json`: the clips of one tar in order.

    chunks: SHA-256 of every CHUNK bytes of the tar, the last one shorter, in hexadecimal digits.
    """

    version: int = FORMAT_VERSION
    shard: str
    chunks: tuple[str, ...]
    clips: tuple[ClipEntry, ...]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar as the manifest lists it. Paths are relative to the manifest; sizes in bytes."""

    path: str
    partition: str
    clips: int
    frames: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_path(self) -> str:
        return self.path.removesuffix(".tar") + ".index.json"


@dataclass(frozen=True, kw_only=True)
class FrameSettings:
    """How frames were stored. Frames at most `max_side` pixels long are kept byte for byte, others re-encoded."""

    max_side: int
    quality: int
    kept: int
    encoded: int


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A clip the split files name that is not in the shards, and why."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a shard folder. counts: clips per class of each partition, in class order."""

    version: int = FORMAT_VERSION
    dataset: str
    classes: tuple[str, ...]
    builder: str
    frames: FrameSettings
    counts: dict[str, tuple[int, ...]]
    excluded: tuple[Excluded, ...] = ()
    shards: tuple[ShardInfo, ...]
    options: dict[str, str] = field(default_factory=dict)

    @property
    def generated(self) -> str:
        """Seed and generator when the faces are generated ones, else nothing."""
        return self.options.get("generated", "")

    def partitions(self) -> list[str]:
        return sorted({shard.partition for shard in self.shards})

    def shards_of(self, partitions: Sequence[str]) -> list[ShardInfo]:
        """The shards of these partitions, in manifest order. Raises DataError for a partition that is not there."""
        missing = [p for p in partitions if p not in self.partitions()]
        if missing:
            raise DataError(
                message(
                    "manifest",
                    expected=f"partitions out of {', '.join(self.partitions())}",
                    got=", ".join(missing),
                    do="Correct the partition or fold, or build the missing shards.",
                )
            )
        return [shard for shard in self.shards if shard.partition in partitions]


def num_chunks(size: int) -> int:
    """Chunks of a tar of `size` bytes."""
    return -(-size // CHUNK)


def data_name(dataset: str, *, generated: str) -> str:
    """Return the name of the data for readers: generated faces never get the plain name of the data set."""
    return f"generated faces in {dataset}'s layout" if generated else dataset


def to_json(value: Manifest | ShardIndex) -> bytes:
    """Serialise to stable bytes: the same value gives the same text on every machine."""
    plain = asdict(value)
    return (json.dumps(plain, indent=1 if isinstance(value, Manifest) else None, sort_keys=True) + "\n").encode()


def read_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse and check a manifest. Raises DataError naming `where`, the field and the remedy."""
    manifest = _parse(data, Manifest, where)
    bad = [s.path for s in manifest.shards if not safe_path(s.path) or not PARTITION.fullmatch(s.partition)]
    if bad:
        raise DataError(
            message(where, expected="relative shard paths below the folder", got=bad[0], do="Build the shards again.")
        )
    # The hashes become file names in the cache.
    unnamed = [s.path for s in manifest.shards if not (SHA256.fullmatch(s.sha256) and SHA256.fullmatch(s.index_sha256))]
    if unnamed:
        raise DataError(
            message(where, expected="a SHA-256 of every shard and index", got=f"none for {unnamed[0]}",
                    do="Build the shards again.")
        )  # fmt: skip
    wrong = [p for p in manifest.partitions() if len(manifest.counts.get(p, ())) != len(manifest.classes)]
    if wrong:
        raise DataError(
            message(
                where,
                expected=f"{len(manifest.classes)} class counts for every partition",
                got=f"{len(manifest.counts.get(wrong[0], ()))} for {wrong[0]}",
                do="Build the shards again.",
            )
        )
    return manifest


def read_index(data: bytes, *, where: str, shard: ShardInfo, num_classes: int) -> ShardIndex:
    """Parse a shard's index and check it against the manifest's hash and bounds. Raises DataError."""
    check_sha256(data, shard.index_sha256, where=where)
    index = _parse(data, ShardIndex, where)
    for clip in index.clips:
        _check_clip(clip, where=where, shard_bytes=shard.bytes, num_classes=num_classes)
    if len(index.clips) != shard.clips:
        raise DataError(
            message(where, expected=f"{shard.clips} clips", got=str(len(index.clips)), do="Build the shards again.")
        )
    if len(index.chunks) != num_chunks(shard.bytes) or not all(map(SHA256.fullmatch, index.chunks)):
        raise DataError(
            message(where, expected=f"the SHA-256 of each of {num_chunks(shard.bytes)} chunks",
                    got=f"{len(index.chunks)} entries", do="Build the shards again.")
        )  # fmt: skip
    return index


def _check_clip(clip: ClipEntry, *, where: str, shard_bytes: int, num_classes: int) -> None:
    spans = clip.frame_spans()
    if not KEY.fullmatch(clip.key) or not 0 < len(spans) <= MAX_FRAMES:
        raise DataError(message(where, expected="a plain key and 1..10,000 frames", got=f"{clip.key[:60]!r} with "
                                f"{len(spans)} frames", do="Build the shards again."))  # fmt: skip
    inside = clip.offset >= BLOCK and all(0 < size <= MAX_FRAME_BYTES for size in clip.sizes)
    if not inside or sum(spans[-1]) > shard_bytes:
        raise DataError(message(f"{where}, clip {clip.key}", expected=f"frames inside the {shard_bytes} bytes of the "
                                "shard", got=f"a frame at {spans[-1]}", do="Build the shards again."))  # fmt: skip
    if not 0 <= clip.label < num_classes:
        raise DataError(message(f"{where}, clip {clip.key}", expected=f"a label in 0..{num_classes - 1}",
                                got=str(clip.label), do="Build the shards again."))  # fmt: skip


def check_sha256(data: bytes | memoryview, expected: str, *, where: str) -> None:
    """Raise DataError when the data's SHA-256 is not the one the manifest gives."""
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise DataError(
            message(
                where,
                expected=f"sha256 {expected[:12]}...",
                got=f"{got[:12]}...",
                do="The file was changed or damaged after the build; copy it again or run `dfer-shards build` again.",
            )
        )


def safe_path(path: str) -> bool:
    """True for a relative path that stays below its folder and has no scheme."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", path)) and ".." not in path.split("/")


def frame_name(key: str, position: int) -> str:
    """Member name of a clip's frame: `00001.000.jpg`. webdataset reads everything before the first dot as the key."""
    return f"{key}.{position:03d}.jpg"


def clip_name(key: str) -> str:
    """Member name of what a clip's `.json` says, after its frames: `00001.json`."""
    return f"{key}.json"


def _check_containers(data: bytes, *, where: str) -> None:
    """Raise DataError when the parsed values would be far larger than their text: an empty list has 3 bytes of text,
    and 64 in memory."""
    count = data.count(b"[") + data.count(b"{")
    if count > MAX_CONTAINERS:
        raise DataError(
            message(where, expected=f"at most {MAX_CONTAINERS:,} lists and mappings", got=f"{count:,}",
                    do="This is no manifest or index of ours: build the shards again.")
        )  # fmt: skip


def check_json_size(size: int, *, where: str) -> None:
    """Raise DataError when a manifest or index is larger than any real one, before it is read or parsed."""
    if size > MAX_JSON_BYTES:
        raise DataError(
            message(where, expected=f"at most {MAX_JSON_BYTES:,} bytes", got=f"{size:,}",
                    do="This is no manifest or index of ours: build the shards again.")
        )  # fmt: skip


def _parse(data: bytes, kind: type[T], where: str) -> T:
    check_json_size(len(data), where=where)
    _check_containers(data, where=where)
    try:
        plain: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(message(where, expected="JSON", got=str(error), do="Build the shards again.")) from error
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            message(
                where,
                expected=f"format version {FORMAT_VERSION}",
                got=repr(version)[:40],
                do="Build the shards again with this version of dfer, or install the one that wrote them.",
            )
        )
    try:
        return from_plain(kind, plain)
    except ConfigProblem as problem:
        raise DataError(f"{where}: {problem}. Build the shards again.") from problem
