"""One shard: plan its clips, check whether it must be rebuilt, and write its tar, index and state.

The clips of a shard depend only on the split files, not on the number of processes or on which clips are readable: the
clips of a partition are sorted by the SHA-256 of their keys, which mixes classes evenly, and divided into shards of a
fixed number of clips.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO

from dfer.config import ConfigProblem, from_plain
from dfer.errors import UsageError
from dfer.storage import Folder
from dfer.store.format import BLOCK, CHUNK, MANIFEST, MAX_JSON_BYTES, Excluded, Media, ShardInfo, clip_name, frame_name
from dfer.store.index import OPTIONAL, ClipEntry, index_json
from shards.frames import StoredFrame, store_frame
from shards.pool import tick
from shards.sources.clips import UNREADABLE, BadClip, FrameFile, RawClip, frames_of

# Increase when the same raw clips give other bytes than before: shards of older builds are then rebuilt.
CONTENT_VERSION = 3


def state_name(shard: str) -> str:
    """Return the name of the file with the state of a shard."""
    return f"{shard}.done.json"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build. media: format of all stored frames. max_side: longest side of a frame in pixels; quality:
    JPEG quality of frames that are encoded."""

    media: Media = "jpeg"
    max_side: int = 256
    quality: int = 95
    clips_per_shard: int = 128

    def __post_init__(self) -> None:
        for name, low, high in (("max_side", 16, 4096), ("quality", 1, 100), ("clips_per_shard", 1, 10_000)):
            if not low <= getattr(self, name) <= high:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag}: expected {low}..{high}, got {getattr(self, name)}. Give a number between.")


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The clips planned for one shard, whether or not they turn out readable. name: `fold_1/00000`."""

    name: str
    partition: str
    clips: tuple[RawClip, ...]
    classes: tuple[str, ...]
    options: BuildOptions

    @property
    def state_name(self) -> str:
        return state_name(self.name)


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """The contents of `NAME.done.json`, for a finished shard. fingerprint: of all its inputs.

    hides, dark: number of raw frames that viewers show differently (see `dfer.media.pictures.Picture`). pictures: of
    every still by its key, the first 16 digits of the SHA-256 of the stored picture.
    """

    fingerprint: str
    shard: ShardInfo | None
    counts: tuple[int, ...]
    kept: int
    encoded: int
    excluded: tuple[Excluded, ...]
    hides: int = 0
    dark: int = 0
    pictures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of listing a shard's raw folders and its output. state: of the finished shard, if it is up to date."""

    fingerprint: str
    frames: int
    excluded: tuple[Excluded, ...]
    state: ShardState | None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """The arguments of a worker process: the plan of a shard and the output folder."""

    plan: ShardPlan
    out: str


def plan_shards(clips: Sequence[RawClip], classes: tuple[str, ...], options: BuildOptions) -> list[ShardPlan]:
    """Plan all shards, ordered by partition and number."""
    plans = []
    for partition in sorted({clip.partition for clip in clips}):
        members = sorted((c for c in clips if c.partition == partition), key=lambda c: _spread(c.key))
        for number, start in enumerate(range(0, len(members), options.clips_per_shard)):
            held = tuple(members[start : start + options.clips_per_shard])
            plans.append(
                ShardPlan(
                    name=f"{partition}/{number:05d}", partition=partition, clips=held, classes=classes, options=options
                )
            )
    return plans


def scan(task: ShardTask) -> Scan:
    """List the raw folders of a shard, without opening a frame, and check whether its output matches them."""
    found = _list(task.plan.clips)
    fingerprint = _fingerprint(task.plan, found)
    listed = [listing for listing in found if isinstance(listing, list)]
    excluded = _bad(task.plan.clips, found)
    tick(1)
    return Scan(
        fingerprint=fingerprint,
        frames=sum(map(len, listed)),
        excluded=excluded,
        state=_current(Folder(task.out), task.plan, fingerprint),
    )


def make(task: ShardTask) -> ShardState:
    """Write the shard's tar, then its index, then its state, each whole or not at all. Raises StorageError.

    The manifest is removed before anything is changed. A shard that another process has built meanwhile is kept.
    """
    plan, out = task.plan, Folder(task.out)
    found = _list(plan.clips)
    fingerprint = _fingerprint(plan, found)
    if (made := _current(out, plan, fingerprint)) is not None:
        tick(sum(len(listing) for listing in found if isinstance(listing, list)))
        return made
    out.remove(MANIFEST)
    out.remove(plan.state_name)
    tar = _Tar(plan)
    with out.whole(f"{plan.name}.tar") as path, path.open("wb") as file:
        info = tar.fill(file, found)
    if info is None:
        out.remove(f"{plan.name}.tar")
    else:
        index = index_json(info.path, tar.chunks, tar.entries, num_classes=len(plan.classes))
        if len(index) > MAX_JSON_BYTES:
            got = f"{len(index):,} bytes of index for {plan.name}, more than {MAX_JSON_BYTES:,}"
            raise UsageError(f"--clips-per-shard: expected fewer clips, got {got}. Halve the number.")
        info = replace(info, index_sha256=hashlib.sha256(index).hexdigest())
        out.write(info.index_path, index)
    state = ShardState(
        fingerprint=fingerprint,
        shard=info,
        counts=tuple(sum(entry.label == label for entry in tar.entries) for label in range(len(plan.classes))),
        kept=tar.kept,
        encoded=tar.encoded,
        excluded=tuple(tar.excluded),
        hides=tar.hides,
        dark=tar.dark,
        pictures=tar.pictures,
    )
    out.write(plan.state_name, (json.dumps(asdict(state), sort_keys=True) + "\n").encode())
    return state


class _Tar:
    """Writes the tar of one shard, and collects its index entries and counts."""

    def __init__(self, plan: ShardPlan) -> None:
        self.plan = plan
        self.entries: list[ClipEntry] = []
        self.excluded: list[Excluded] = []
        self.kept = self.encoded = self.hides = self.dark = 0
        self.chunks: tuple[str, ...] = ()
        self.pictures: dict[str, str] = {}

    def fill(self, file: IO[bytes], found: "Sequence[list[FrameFile] | BadClip]") -> ShardInfo | None:
        """Write every readable clip; returns None if there is none."""
        hashed = _HashingFile(file)
        with tarfile.open(fileobj=hashed, mode="w:", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for clip, listing in zip(self.plan.clips, found, strict=True):
                try:
                    self._add(tar, clip, _stored(listing, self.plan.options))
                except BadClip as bad:
                    self.excluded.append(Excluded(key=clip.key, reason=str(bad)))
        if not self.entries:
            return None
        self.chunks = hashed.chunks()
        return ShardInfo(
            path=f"{self.plan.name}.tar",
            partition=self.plan.partition,
            clips=len(self.entries),
            frames=self.kept + self.encoded,
            bytes=hashed.tell(),
            sha256=hashed.sha256.hexdigest(),
            index_sha256="",
        )

    def _add(self, tar: tarfile.TarFile, clip: RawClip, frames: list[StoredFrame]) -> None:
        # All frames of the clip have been read and checked before, so that a bad clip leaves no part in the tar.
        offset = tar.offset + BLOCK
        for position, frame in enumerate(frames):
            _add_member(tar, frame_name(clip.key, position, self.plan.options.media), frame.data)
        entry = _entry(clip, offset, frames)
        _add_member(tar, clip_name(clip.key), clip_json(entry, self.plan.partition, self.plan.classes))
        self.entries.append(entry)
        kept = sum(frame.kept for frame in frames)
        self.kept, self.encoded = self.kept + kept, self.encoded + len(frames) - kept
        self.hides += sum(frame.hides for frame in frames)
        self.dark += sum(frame.dark for frame in frames)
        if len(frames) == 1:
            self.pictures[clip.key] = hashlib.sha256(frames[0].data).hexdigest()[:16]


class _HashingFile:
    """A file for tarfile to write to, which hashes the whole and every chunk on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self.sha256, self._chunk = hashlib.sha256(), hashlib.sha256()
        self._done: list[str] = []

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        view = memoryview(data)
        while view:
            part = view[: CHUNK - self._at % CHUNK]
            self._chunk.update(part)
            self._at += len(part)
            if self._at % CHUNK == 0:
                self._done.append(self._chunk.hexdigest())
                self._chunk = hashlib.sha256()
            view = view[len(part) :]
        return self._file.write(data)

    def tell(self) -> int:
        return self._at

    def chunks(self) -> tuple[str, ...]:
        """SHA-256 of every chunk written; the last one may be shorter."""
        return (*self._done, self._chunk.hexdigest()) if self._at % CHUNK else tuple(self._done)


def _entry(clip: RawClip, offset: int, frames: Sequence[StoredFrame]) -> ClipEntry:
    facts = {name: getattr(clip, name) for name in OPTIONAL}
    if clip.faces is not None and len(clip.faces) != len(frames):
        raise BadClip(f"{len(clip.faces)} face boxes for {len(frames)} frames")
    sizes = tuple(len(frame.data) for frame in frames)
    return ClipEntry(key=clip.key, label=clip.label, offset=offset, sizes=sizes, **facts)


def clip_json(clip: ClipEntry, partition: str, classes: Sequence[str]) -> bytes:
    """Make the clip's `.json` member, for readers that do not use the index."""
    plain: dict[str, object] = {"key": clip.key, "num_frames": clip.num_frames, "partition": partition}
    if clip.label is not None:
        plain |= {"label": clip.label, "class_name": classes[clip.label]}
    return (json.dumps(plain | clip.facts(), sort_keys=True) + "\n").encode()


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's owner, group and time are zero: the same clips give the same bytes.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _stored(listing: "list[FrameFile] | BadClip", options: BuildOptions) -> list[StoredFrame]:
    if isinstance(listing, BadClip):
        raise listing
    frames = []
    for frame in listing:
        frames.append(store_frame(frame, media=options.media, max_side=options.max_side, quality=options.quality))
        tick(1)
    return frames


def _list(clips: Sequence[RawClip]) -> "list[list[FrameFile] | BadClip]":
    return [_listing(clip) for clip in clips]


def _listing(clip: RawClip) -> "list[FrameFile] | BadClip":
    try:
        return frames_of(clip)
    except BadClip as bad:
        return bad


def _bad(clips: Sequence[RawClip], found: "Sequence[list[FrameFile] | BadClip]") -> tuple[Excluded, ...]:
    pairs = zip(clips, found, strict=True)
    return tuple(Excluded(key=clip.key, reason=str(bad)) for clip, bad in pairs if isinstance(bad, BadClip))


def _fingerprint(plan: ShardPlan, found: "Sequence[list[FrameFile] | BadClip]") -> str:
    """Compute the SHA-256 of options, labels, and the names, sizes and times of all frames."""
    digest = hashlib.sha256(json.dumps([CONTENT_VERSION, plan.name, plan.classes, asdict(plan.options)]).encode())
    for clip, listing in zip(plan.clips, found, strict=True):
        files = str(listing) if isinstance(listing, BadClip) else list(_times(listing))
        facts = [getattr(clip, name) for name in OPTIONAL]
        digest.update(json.dumps([clip.key, clip.label, facts, files]).encode())
    return digest.hexdigest()


def _times(frames: Sequence[FrameFile]) -> Iterator[tuple[object, ...]]:
    for frame in frames:
        part = (frame.crop, frame.start, frame.side) if frame.crop or frame.side else ()
        yield frame.name, frame.size, frame.mtime, *part


def _current(out: Folder, plan: ShardPlan, fingerprint: str) -> ShardState | None:
    """Read the finished shard's state; None if the shard must be rebuilt."""
    state = finished(out, plan.name, fingerprint)
    if state is not None and any(UNREADABLE in excluded.reason for excluded in state.excluded):
        return None  # the cause may have been a disk or network error: try again
    return state


def finished(out: Folder, name: str, fingerprint: str) -> ShardState | None:
    """Read the finished shard's state; None unless it was built from that input and its files exist."""
    state = _read_state(out.read(state_name(name)))
    if state is None or state.fingerprint != fingerprint:
        return None
    if state.shard is None:
        return state
    index = out.read(state.shard.index_path)
    whole = out.size(state.shard.path) == state.shard.bytes
    same = index is not None and hashlib.sha256(index).hexdigest() == state.shard.index_sha256
    return state if whole and same else None


def _read_state(data: bytes | None) -> ShardState | None:
    """Parse a shard's state; None if it is missing or damaged, so that the shard is rebuilt."""
    try:
        return None if data is None else from_plain(ShardState, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem):
        return None


def _spread(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
