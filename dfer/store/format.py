"""The shard folder: manifest, member names, bounds. Shared by the builder and the reader; needs no torch.

    OUT/manifest.json                 written last; a folder without it is refused
    OUT/fold_1/00000.tar              members `key.000.jpg key.001.jpg ... key.json`, one clip after another
    OUT/fold_1/00000.index.json       where each clip's frames lie in that tar (`dfer.store.index`)
    OUT/protocols/NAME.1.test.txt     keys of the clips of a fold, where they are no whole partitions

`docs/shard_format.md` describes all fields.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

from dfer.config import ConfigProblem, from_plain
from dfer.errors import DataError, message

FORMAT_VERSION = 3
Media = Literal["jpeg", "png"]
SUFFIX: dict[Media, str] = {"jpeg": "jpg", "png": "png"}
MANIFEST = "manifest.json"
BLOCK = 512
CHUNK = 256 * 1024
"""Bytes of a tar that have a hash of their own, so that any part of it can be checked without the rest."""
KEY = re.compile(r"[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,3}")
_KEYS = re.compile(rf"{KEY.pattern}(\n{KEY.pattern})*+")
PARTITION = re.compile(r"[a-z0-9_]{1,40}")
"""Name of a partition or a protocol."""
FOLD = re.compile(r"[1-9][0-9]{0,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_CLASSES = 1_000
MAX_FRAMES = 10_000
MAX_FRAME_BYTES = 16 * 2**20
MAX_JSON_BYTES = 16 * 2**20
"""Largest manifest, index or list of keys that is parsed."""
MAX_CONTAINERS = 1_000_000
MAX_TEXT = 4_096
"""Letters of a subject, a source or a text."""
REBUILD = "Build the shards again."
NOT_OURS = "This is no manifest or index of ours: build the shards again."


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
class FaceSettings:
    """How faces were found and cut out of the raw pictures. finder: its name and version; margin: what was added on
    each side, as a share of the longer side of the face; aligned: whether pictures were turned to level the eyes."""

    finder: str
    margin: float = 0.0
    aligned: bool = False


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A clip the split files name that is not in the shards, and why."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Some clips of a shard folder: either whole partitions, or the keys that a file beside the manifest lists, one a
    line; sha256 is that file's."""

    partitions: tuple[str, ...] = ()
    keys: str = ""
    sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The partitions, or the list of keys, for results and messages."""
        return self.partitions or (self.keys,)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What trains, what tests, and what chooses the checkpoint where the data set says so."""

    train: Subset
    test: Subset
    validation: Subset | None = None

    @property
    def subsets(self) -> dict[str, Subset]:
        """What there is of train, test and validation, by name."""
        found = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: subset for name, subset in found.items() if subset is not None}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the folds of a protocol test, added up over the folds. tests: test clips; twice, never: clips that several
    folds test, and that folds train on but none tests. subjects, sources, pictures: test clips whose person, whose
    film or sequence, and whose picture, byte for byte, train in the same fold; None where that is not known."""

    tests: int
    twice: int
    never: int
    subjects: int | None = None
    sources: int | None = None
    pictures: int | None = None

    def words(self, folds: int) -> str:
        """Say what the folds test, and what of it their training has seen."""
        text = f"{self.tests:,} test clips"
        if folds > 1:
            text += f" in all folds; {self.twice:,} clips tested more than once, {self.never:,} never"
        known = {"person": self.subjects, "sequence": self.sources, "very picture": self.pictures}
        seen = [f"the {what} of {count:,}" for what, count in known.items() if count is not None]
        return f"{text}; in the training of the same fold: {', '.join(seen)}" if seen else text


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to split the clips. source: who laid it down; folds: by number, `1`, `2`, ..."""

    source: str
    folds: dict[str, Fold]
    overlap: Overlap | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a shard folder. classes: names in class order, empty where nothing is labelled. counts: labelled clips
    per class of each partition. media: the form of all frames. protocols: splits by name. faces: none where the data
    set delivers faces. licence: a note on what the data may be used for."""

    version: int = FORMAT_VERSION
    dataset: str
    classes: tuple[str, ...]
    builder: str
    media: Media = "jpeg"
    frames: FrameSettings
    faces: FaceSettings | None = None
    counts: dict[str, tuple[int, ...]]
    protocols: dict[str, Protocol] = field(default_factory=dict)
    excluded: tuple[Excluded, ...] = ()
    shards: tuple[ShardInfo, ...]
    options: dict[str, str] = field(default_factory=dict)
    licence: str = ""

    @property
    def generated(self) -> str:
        """Seed and generator when the faces are generated ones, else nothing."""
        return self.options.get("generated", "")

    def partitions(self) -> list[str]:
        return sorted({shard.partition for shard in self.shards})

    def subsets(self) -> list[Subset]:
        """Every subset that a protocol names."""
        folds = [fold for protocol in self.protocols.values() for fold in protocol.folds.values()]
        return [subset for fold in folds for subset in fold.subsets.values()]

    def shards_of(self, partitions: Sequence[str]) -> list[ShardInfo]:
        """The shards of these partitions, in manifest order. Raises DataError for a partition that is not there."""
        there = self.partitions()
        missing = [p for p in partitions if p not in there]
        if missing:
            expected = f"partitions out of {', '.join(there)}"
            do = "Correct the partition or fold, or build the missing shards."
            raise DataError(message("manifest", expected=expected, got=", ".join(missing), do=do))
        return [shard for shard in self.shards if shard.partition in partitions]


def num_chunks(size: int) -> int:
    """Chunks of a tar of `size` bytes."""
    return -(-size // CHUNK)


def data_name(dataset: str, *, generated: str) -> str:
    """Return the name of the data for readers: generated faces never get the plain name of the data set."""
    return f"generated faces in {dataset}'s layout" if generated else dataset


def to_json(manifest: Manifest) -> bytes:
    """Serialise to stable bytes: the same value gives the same text on every machine.

    A protocol without `overlap` is written without it, so that manifests from before that field keep their hash, by
    which a run knows its shards.
    """
    plain = asdict(manifest)
    for protocol in plain["protocols"].values():
        if protocol["overlap"] is None:
            del protocol["overlap"]
    return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()


def manifest_sha256(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest in its canonical form, by which a run knows its shards."""
    return hashlib.sha256(to_json(manifest)).hexdigest()


def read_manifest(data: bytes, *, where: str) -> Manifest:
    """Parse and check a manifest. Raises DataError naming `where`, the field and the remedy."""
    try:
        manifest = from_plain(Manifest, read_versioned(data, where=where))
    except ConfigProblem as problem:
        raise DataError(f"{where}: {problem}. {REBUILD}") from problem
    for expected, got in _faults(manifest):
        raise DataError(message(where, expected=expected, got=got[:160], do=REBUILD))
    return manifest


def _faults(manifest: Manifest) -> list[tuple[str, str]]:
    """What is wrong with a manifest, as (expected, got)."""
    classes, partitions = manifest.classes, manifest.partitions()
    faults = [
        ("relative shard paths below the folder", shard.path)
        for shard in manifest.shards
        if not safe_path(shard.path) or not PARTITION.fullmatch(shard.partition)
    ]
    # The hashes become file names in the cache.
    faults += [
        ("a SHA-256 of every shard and index", f"none for {shard.path}")
        for shard in manifest.shards
        if not (SHA256.fullmatch(shard.sha256) and SHA256.fullmatch(shard.index_sha256))
    ]
    if len(classes) > MAX_CLASSES or len(set(classes)) < len(classes):
        faults.append((f"at most {MAX_CLASSES:,} classes, each once", f"{len(classes)}, {len(set(classes))} different"))
    faults += [
        (f"{len(classes)} class counts for every partition", f"{len(manifest.counts.get(name, ()))} for {name}")
        for name in partitions
        if len(manifest.counts.get(name, ())) != len(classes)
    ]
    return faults + [
        fault for name, protocol in manifest.protocols.items() for fault in _protocol_faults(name, protocol, partitions)
    ]


def _protocol_faults(name: str, protocol: Protocol, partitions: Sequence[str]) -> list[tuple[str, str]]:
    faults = [("plain names of protocols", name)] if not PARTITION.fullmatch(name) else []
    for number, fold in protocol.folds.items():
        where = f"of fold {number[:20]} of {name}"
        if not FOLD.fullmatch(number):
            faults.append(("folds numbered from 1", where))
        for what, subset in fold.subsets.items():
            odd = [partition for partition in subset.partitions if partition not in partitions]
            listed = subset.keys and safe_path(subset.keys) and SHA256.fullmatch(subset.sha256)
            if odd or bool(subset.partitions) == bool(subset.keys) or not (subset.partitions or listed):
                got = odd[0] if odd else subset.keys or "neither"
                faults.append((f"partitions that are there, or a list of keys, as {what} {where}", got))
    return faults


def read_versioned(data: bytes, *, where: str) -> dict[str, Any]:
    """The JSON mapping of a manifest or index of this version. Raises DataError."""
    check_json_size(len(data), where=where)
    _check_containers(data, where=where)
    try:
        plain: Any = orjson.loads(data)  # opening the index of 283,000 stills takes a quarter less time than with json
    except ValueError as error:
        raise DataError(message(where, expected="JSON", got=str(error), do=REBUILD)) from error
    version = plain.get("version") if isinstance(plain, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        do = "Build the shards again with this version of dfer, or install the one that wrote them."
        if version in (1, 2):
            do = "An earlier dfer wrote these shards: run `dfer-shards build DATASET RAW OUT` with a new OUT."
        expected = f"format version {FORMAT_VERSION}"
        raise DataError(message(where, expected=expected, got=repr(version)[:40], do=do))
    return dict(plain)


def read_keys(data: bytes, *, sha256: str, where: str) -> list[str]:
    """The keys of a list beside the manifest, one a line. Raises DataError."""
    check_sha256(data, sha256, where=where)
    keys = data.decode("ascii", "replace").split("\n")
    odd = [key for key in keys[:-1] if not KEY.fullmatch(key)]
    if odd or keys[-1] or len(keys) < 2 or len(set(keys)) < len(keys):
        got = repr(odd[0][:60]) if odd else "none, a cut line or one twice"
        raise DataError(message(where, expected="a plain key a line, each once", got=got, do=REBUILD))
    return keys[:-1]


def check_sha256(data: bytes | memoryview, expected: str, *, where: str) -> None:
    """Raise DataError when the data's SHA-256 is not the one the manifest gives."""
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        do = "The file was changed or damaged after the build; copy it again or run `dfer-shards build` again."
        raise DataError(message(where, expected=f"sha256 {expected[:12]}...", got=f"{got[:12]}...", do=do))


def are_keys(keys: Sequence[str]) -> bool:
    """Whether all of these are keys of clips."""
    lines = "\n".join(keys)  # one search for all: a call a key takes three times as long
    return not keys or (lines.count("\n") == len(keys) - 1 and bool(_KEYS.fullmatch(lines)))


def safe_path(path: str) -> bool:
    """True for a relative path that stays below its folder and has no scheme."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", path)) and ".." not in path.split("/")


def frame_name(key: str, position: int, media: Media) -> str:
    """Member name of a clip's frame: `00001.000.jpg`. webdataset reads everything before the first dot as the key."""
    return f"{key}.{position:03d}.{SUFFIX[media]}"


def clip_name(key: str) -> str:
    """Member name of what a clip's `.json` says, after its frames: `00001.json`."""
    return f"{key}.json"


def _check_containers(data: bytes, *, where: str) -> None:
    """Raise DataError when the parsed values would be far larger than their text: an empty list has 3 bytes of text,
    and 64 in memory."""
    count = data.count(b"[") + data.count(b"{")
    if count > MAX_CONTAINERS:
        expected = f"at most {MAX_CONTAINERS:,} lists and mappings"
        raise DataError(message(where, expected=expected, got=f"{count:,}", do=NOT_OURS))


def check_json_size(size: int, *, where: str) -> None:
    """Raise DataError when a manifest or index is larger than any real one, before it is read or parsed."""
    if size > MAX_JSON_BYTES:
        expected = f"at most {MAX_JSON_BYTES:,} bytes"
        raise DataError(message(where, expected=expected, got=f"{size:,}", do=NOT_OURS))
