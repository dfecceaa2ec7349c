"""`dfer-shards verify`: read back everything that a manifest lists, and report what differs from the build.

The tar is not trusted. Its headers are parsed one block at a time, at the offsets in the index, so that an unexpected
path, link or size in the tar has no effect other than an error.
"""

import hashlib
import itertools
import json
import mmap
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dfer.errors import DataError, message
from dfer.media.bounds import TooMuch
from dfer.media.pictures import read_picture
from dfer.storage import Folder
from dfer.store.format import (
    BLOCK,
    CHUNK,
    MANIFEST,
    MAX_JSON_BYTES,
    Manifest,
    Media,
    ShardInfo,
    Subset,
    clip_name,
    frame_name,
    read_keys,
    read_manifest,
)
from dfer.store.index import ClipEntry, ShardIndex, read_index
from shards import pool
from shards.output import shard_folder, storage_errors
from shards.pool import tick

MAX_CLIP_JSON_BYTES = 2**20
"""Most bytes of a clip's `.json`; enough for the face boxes of 10,000 frames."""
MAX_FRAME_PIXELS = 2**24
"""Most pixels of a frame, whatever `max_side` in the manifest says; no build stores larger frames."""
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class VerifyTask:
    """One shard to verify. media, max_side: of its frames. decode: decode every frame, instead of only hashing."""

    out: str
    shard: ShardInfo
    classes: tuple[str, ...]
    media: Media
    max_side: int
    decode: bool


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """Result for one shard. labels: clips per class; keys: of its clips; problems: one sentence each."""

    problems: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Totals of a data set that passed."""

    shards: int
    clips: int
    frames: int
    bytes: int


def load_manifest(url: str) -> Manifest:
    """Read the manifest below `url`. Raises DataError if it is missing or cannot be used."""
    with storage_errors(url):
        data = shard_folder(url).read(MANIFEST)
    if data is None:
        raise DataError(
            message(
                url,
                expected=f"a folder of shards with its {MANIFEST}",
                got="none there",
                do="Correct the path, or finish the build: the manifest is written last.",
            )
        )
    return read_manifest(data, where=f"{url}/{MANIFEST}")


def verify(url: str, *, quick: bool = False, jobs: int = 1, progress: bool = True) -> VerifyReport:
    """Verify every shard. quick: only compare hashes and indexes, without decoding frames.

    Raises:
        DataError: lists everything that differs from the manifest.
        StorageError: the store cannot be read.
    """
    manifest = load_manifest(url)
    tasks = [
        VerifyTask(
            out=url,
            shard=shard,
            classes=manifest.classes,
            media=manifest.media,
            max_side=manifest.frames.max_side,
            decode=not quick,
        )
        for shard in manifest.shards
    ]
    frames = sum(shard.frames for shard in manifest.shards)
    with storage_errors(url), pool.progress_bar(frames, label="verifying", unit="frames", show=progress) as bar:
        checks = pool.run(check_shard, tasks, jobs=jobs, bar=bar)
    problems = [problem for check in checks for problem in check.problems]
    # Checking the totals of damaged shards would only report the same problems again.
    problems = problems or [*_check_totals(manifest, checks), *_check_protocols(url, manifest, checks)]
    if problems:
        raise DataError(_problem_text(url, problems))
    return VerifyReport(
        shards=len(tasks),
        clips=sum(shard.clips for shard in manifest.shards),
        frames=frames,
        bytes=sum(shard.bytes for shard in manifest.shards),
    )


def check_shard(task: VerifyTask) -> ShardCheck:
    """Compare one shard with its index and the manifest."""
    shard, out = task.shard, Folder(task.out)
    try:
        index_data = out.read(shard.index_path)
        if index_data is None:
            raise DataError(f"{shard.index_path}: missing")
        index = read_index(index_data, where=shard.index_path, shard=shard, num_classes=len(task.classes))
        with _content(out, shard) as data:
            if hashlib.sha256(data).hexdigest() != shard.sha256:
                raise DataError(f"{shard.path}: sha256 is not the manifest's; the file was changed or damaged")
            problems = _check_tar(data, index, task)
    except DataError as error:
        return ShardCheck(problems=(str(error),))
    labels = Counter(index.labels.tolist())
    return ShardCheck(
        problems=tuple(problems),
        keys=tuple(index.keys),
        labels=tuple(labels[label] for label in range(len(task.classes))),
    )


@contextmanager
def _content(out: Folder, shard: ShardInfo) -> Iterator[memoryview]:
    """Give access to the tar's bytes, memory-mapped if it is a local file. Raises DataError if its size is not that in
    the manifest."""
    size = out.size(shard.path)
    if not size or size != shard.bytes:
        raise DataError(
            f"{shard.path}: missing" if size is None else f"{shard.path}: {size} bytes instead of {shard.bytes}"
        )
    if out.local is None:
        with memoryview(out.read(shard.path) or b"") as view:
            yield view
        return
    with (
        (out.local / shard.path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        yield view


def _check_tar(data: memoryview, index: ShardIndex, task: VerifyTask) -> list[str]:
    problems, at = [], 0
    for number, expected in enumerate(index.chunks):
        if hashlib.sha256(data[number * CHUNK : (number + 1) * CHUNK]).hexdigest() != expected:
            return [f"{task.shard.index_path}: the sha256 of chunk {number} is not that of the tar"]
    if index.shard != task.shard.path:
        problems.append(f"{task.shard.index_path}: is the index of {index.shard[:100]}")
    for clip in map(index.entry, range(len(index))):
        try:
            at = _check_clip(data, clip, at, task)
        except DataError as error:
            return [*problems, f"{task.shard.path}, clip {clip.key}: {error}"]
        tick(clip.num_frames)
    if len(data) - at < 2 * BLOCK or any(data[at:]):
        problems.append(f"{task.shard.path}: something follows the last clip")
    return problems


def _check_clip(data: memoryview, clip: ClipEntry, at: int, task: VerifyTask) -> int:
    """Check the clip whose first header is at byte `at`; returns the position after the clip."""
    for position, (offset, size) in enumerate(clip.frame_spans()):
        name = frame_name(clip.key, position, task.media)
        if offset != at + BLOCK or _member_size(data, at, name) != size:
            raise DataError(f"the index does not say where {name} lies")
        if task.decode:
            _check_frame(bytes(data[offset : offset + size]), name, task)
        at = offset + _padded(size)
    name = clip_name(clip.key)
    size = _member_size(data, at, name)
    if not 0 < size <= MAX_CLIP_JSON_BYTES:
        raise DataError(f"{name} has {size} bytes")
    _check_json(bytes(data[at + BLOCK : at + BLOCK + size]), clip, task)
    return at + BLOCK + _padded(size)


def _member_size(data: memoryview, at: int, name: str) -> int:
    """Return the size in bytes of the plain file `name` with its header at `at`. Raises DataError for anything else."""
    try:
        info = tarfile.TarInfo.frombuf(bytes(data[at : at + BLOCK]), "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise DataError(f"expected the tar header of {name}, got {error}") from error
    if info.name != name or info.type != tarfile.REGTYPE:
        raise DataError(f"expected the plain file {name}, got {info.name[:100]!r} of type {info.type!r}")
    if at + BLOCK + info.size > len(data):
        raise DataError(f"{name} reaches beyond the end of the tar")
    return info.size


def _check_frame(data: bytes, name: str, task: VerifyTask) -> None:
    try:
        picture = read_picture(data, max_pixels=MAX_FRAME_PIXELS)
    except TooMuch as error:
        raise DataError(f"{name} has {error}") from error
    except ValueError as error:
        raise DataError(f"{name} cannot be decoded ({error})") from error
    if picture.media != task.media:
        raise DataError(f"{name} is a {picture.media.upper()}, the manifest says {task.media.upper()}")
    height, width = picture.rgb.shape[:2]
    if max(height, width) > task.max_side:
        raise DataError(f"{name} has {width}x{height} pixels, more than {task.max_side} a side")


def _check_json(data: bytes, clip: ClipEntry, task: VerifyTask) -> None:
    expected: dict[str, object] = {
        "key": clip.key,
        "num_frames": clip.num_frames,
        "partition": task.shard.partition,
        **clip.facts(),
    }
    if clip.label is not None:
        expected |= {"label": clip.label, "class_name": task.classes[clip.label]}
    try:
        got = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{clip_name(clip.key)} is not JSON ({error})") from error
    if got != expected:
        raise DataError(f"{clip_name(clip.key)} does not agree with the index and the manifest")


def _check_protocols(url: str, manifest: Manifest, checks: Sequence[ShardCheck]) -> list[str]:
    """Find lists of keys that are damaged or name unknown clips, and folds with a clip in two of their subsets."""
    problems: list[str] = []
    members = _partition_keys(manifest, checks)
    there = frozenset().union(*members.values())
    for name, protocol in manifest.protocols.items():
        for number, fold in protocol.folds.items():
            where = f"fold {number} of {name}"
            try:
                keys = {what: _subset_keys(url, subset, members) for what, subset in fold.subsets.items()}
            except DataError as error:
                problems.append(str(error))
                continue
            problems += [f"{where}: {what} names clips that are not here" for what, own in keys.items() if own - there]
            problems += [
                f"{where}: {len(keys[one] & keys[other])} clips are in {one} and in {other}"
                for one, other in itertools.combinations(keys, 2)
                if keys[one] & keys[other]
            ]
    return problems


def _partition_keys(manifest: Manifest, checks: Sequence[ShardCheck]) -> dict[str, set[str]]:
    members: dict[str, set[str]] = {}
    for shard, check in zip(manifest.shards, checks, strict=True):
        members.setdefault(shard.partition, set()).update(check.keys)
    return members


def _subset_keys(url: str, subset: Subset, members: Mapping[str, set[str]]) -> frozenset[str]:
    if subset.partitions:
        return frozenset().union(*(members[name] for name in subset.partitions))
    data = Folder(url).read(subset.keys, most=MAX_JSON_BYTES)
    if data is None:
        raise DataError(f"{subset.keys}: missing")
    return frozenset(read_keys(data, sha256=subset.sha256, where=subset.keys))


def _check_totals(manifest: Manifest, checks: Sequence[ShardCheck]) -> list[str]:
    problems = []
    keys = Counter(key for check in checks for key in check.keys)
    twice = sorted(key for key, count in keys.items() if count > 1)
    if twice:
        problems.append(f"{len(twice)} clips stand in two shards: {', '.join(twice[:5])}")
    for partition in manifest.partitions():
        rows = [c.labels for s, c in zip(manifest.shards, checks, strict=True) if s.partition == partition]
        got = tuple(map(sum, zip(*rows, strict=True)))
        if got != manifest.counts[partition]:
            problems.append(f"{partition}: the manifest counts {manifest.counts[partition]}, its shards hold {got}")
    frames = sum(shard.frames for shard in manifest.shards)
    if frames != manifest.frames.kept + manifest.frames.encoded:
        kept, encoded = manifest.frames.kept, manifest.frames.encoded
        problems.append(f"the manifest counts {kept} kept and {encoded} encoded frames, its shards hold {frames}")
    return problems


def _problem_text(url: str, problems: Sequence[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    things = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return (
        f"{url}: expected the shards as they were built, got {things}:\n"
        + "\n".join(lines)
        + ("\nCopy these files again from where they were built, or run `dfer-shards build` again.")
    )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
