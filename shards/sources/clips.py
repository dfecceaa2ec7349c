"""The data that every source passes to the builder, and the listing of a clip's frames."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from dfer.emotions import Emotions
from dfer.media.frames import NOT_READ, list_pictures
from dfer.store.format import MAX_FRAMES, FaceSettings, Media
from dfer.store.index import Box

UNREADABLE = "cannot be read"


class BadClip(Exception):
    """Raised if a clip cannot be packed. The text is the reason, which the manifest records."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """A grey picture that a text file holds as numbers: `side` x `side` values from 0 to 255, row by row, separated by
    blanks, in the `size` bytes of the file from byte `start` on."""

    path: Path
    start: int
    size: int
    side: int


@dataclass(frozen=True, kw_only=True)
class RawClip:
    """One clip. folder: of its frames, None if it does not exist. picture: of a still, in place of a folder. crop: the
    part of the still that is stored, all of it if None. label: class number, None if there is no label.
    subject, source, text, votes, faces: as in `dfer.store.index.ClipEntry`."""

    key: str
    label: int | None
    partition: str
    folder: Path | None = None
    picture: Path | Pixels | None = None
    crop: Box | None = None
    subject: str | None = None
    source: str | None = None
    text: str | None = None
    votes: tuple[int, ...] | None = None
    faces: tuple[Box, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RawSubset:
    """Either whole partitions, or the clips with these keys."""

    partitions: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RawFold:
    """The training and the test set of a fold, and the validation set if the data set defines one."""

    train: RawSubset
    test: RawSubset
    validation: RawSubset | None = None


@dataclass(frozen=True, kw_only=True)
class RawProtocol:
    """A way to split the clips. source: where it comes from, such as a paper; folds: fold 1, fold 2, ..."""

    source: str
    folds: tuple[RawFold, ...]


def published_folds(partitions: Sequence[str], *, source: str) -> dict[str, RawProtocol]:
    """Make the protocol `published`. Of the partitions `train` and `test` it has one fold; of other partitions it has
    one fold each, which tests on that partition and trains on the others."""
    tests = ["test"] if set(partitions) == {"train", "test"} else list(partitions)
    folds = tuple(
        RawFold(
            train=RawSubset(partitions=tuple(other for other in partitions if other != test)),
            test=RawSubset(partitions=(test,)),
        )
        for test in tests
    )
    return {"published": RawProtocol(source=source, folds=folds)}


@dataclass(frozen=True, kw_only=True)
class RawSet:
    """A raw data set as read by its source. media: format of stored frames; max_side: their longest side in pixels,
    unless the user asks for another. protocols: splits by name. faces: how faces were detected, None if the data set
    provides face crops. notes: remarks for the user; options, licence: for the manifest."""

    dataset: str
    emotions: Emotions
    clips: tuple[RawClip, ...]
    media: Media = "jpeg"
    max_side: int = 256
    protocols: dict[str, RawProtocol] = field(default_factory=dict)
    faces: FaceSettings | None = None
    licence: str = ""
    notes: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrameFile:
    """One picture of a clip. size in bytes, mtime in nanoseconds. crop: the part to store, all if None.

    side: 0 for a picture file; else the picture is `Pixels` of this side, in `size` bytes from byte `start` on.
    """

    path: str
    name: str
    size: int
    mtime: int
    crop: Box | None = None
    start: int = 0
    side: int = 0


def frames_of(clip: RawClip) -> list[FrameFile]:
    """List the pictures of a clip: the one of a still, or those of its folder. Raises BadClip."""
    if clip.picture is None:
        return list_frames(clip.folder)
    numbers = clip.picture if isinstance(clip.picture, Pixels) else None
    path = numbers.path if numbers else clip.picture
    assert isinstance(path, Path)
    if path.suffix.lower() in NOT_READ:
        raise BadClip(f"a picture of a kind that is not read ({path.suffix})")
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BadClip("no picture") from None
    except OSError as error:
        raise BadClip(f"picture {UNREADABLE} ({error.strerror})") from error
    if not S_ISREG(status.st_mode):
        raise BadClip("no picture but something else of its name")
    size, start, side = (numbers.size, numbers.start, numbers.side) if numbers else (status.st_size, 0, 0)
    mtime = status.st_mtime_ns
    return [FrameFile(path=str(path), name=path.name, size=size, mtime=mtime, crop=clip.crop, start=start, side=side)]


def list_frames(folder: Path | None) -> list[FrameFile]:
    """List the clip's pictures in time order (`dfer.media.frames`).

    Raises:
        BadClip: no folder, no frames, pictures of a kind that is not read, or names that give no order.
    """
    if folder is None:
        raise BadClip("no folder")
    try:
        found = list_pictures(folder)
        if len(found) > MAX_FRAMES:
            raise BadClip(f"{len(found)} frames, more than {MAX_FRAMES}")
        return [_described(entry) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        raise BadClip("no folder") from None
    except OSError as error:
        raise BadClip(f"folder {UNREADABLE} ({error.strerror})") from error
    except ValueError as error:
        raise BadClip(str(error)) from error


def _described(entry: "os.DirEntry[str]") -> FrameFile:
    status = entry.stat()
    return FrameFile(path=entry.path, name=entry.name, size=status.st_size, mtime=status.st_mtime_ns)
