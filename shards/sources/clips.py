"""What every source hands to the builder, and how a clip's folder of frames is listed."""

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from dfer.data.format import MAX_FRAMES
from dfer.emotions import Emotions

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
UNREADABLE = "cannot be read"
TRAILING_NUMBER = re.compile(r"([0-9]{1,12})\Z")


class BadClip(Exception):
    """A clip that cannot be packed; the text is the reason the manifest gives."""


@dataclass(frozen=True, kw_only=True)
class RawClip:
    """One labelled clip. folder: where its frames lie, None when there is no such folder; label: class number."""

    key: str
    label: int
    partition: str
    folder: Path | None
    subject: str | None = None


@dataclass(frozen=True, kw_only=True)
class RawSet:
    """A raw data set as its source read it. notes: what the user should know; options: go into the manifest."""

    dataset: str
    emotions: Emotions
    clips: tuple[RawClip, ...]
    notes: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrameFile:
    """One picture of a clip. size in bytes, mtime in nanoseconds."""

    path: str
    name: str
    size: int
    mtime: int


def list_frames(folder: Path | None) -> list[FrameFile]:
    """The clip's pictures in time order: by the number at the end of the name, since `10.jpg` sorts before `2.jpg`.

    Hidden files and files that are not pictures are passed over.

    Raises:
        BadClip: no folder, no frames, or names that give no order.
    """
    if folder is None:
        raise BadClip("no folder")
    try:
        with os.scandir(folder) as entries:
            found = [_numbered(entry) for entry in entries if _is_picture(entry)]
    except (FileNotFoundError, NotADirectoryError):
        raise BadClip("no folder") from None
    except OSError as error:
        raise BadClip(f"folder {UNREADABLE} ({error.strerror})") from error
    found.sort(key=lambda pair: pair[0])
    for (number, frame), (following, other) in itertools.pairwise(found):
        if number == following:
            first, second = sorted((frame.name, other.name))
            raise BadClip(f"frames {first} and {second} have the same number")
    if not found:
        raise BadClip("no frames")
    if len(found) > MAX_FRAMES:
        raise BadClip(f"{len(found)} frames, more than {MAX_FRAMES}")
    return [frame for _, frame in found]


def _is_picture(entry: "os.DirEntry[str]") -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a million calls: no Path objects)
    return suffix in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def _numbered(entry: "os.DirEntry[str]") -> tuple[int, FrameFile]:
    stem = os.path.splitext(entry.name)[0]  # noqa: PTH122
    number = TRAILING_NUMBER.search(stem)
    if number is None:
        raise BadClip(f"frame {entry.name} has no number at the end of its name")
    status = entry.stat()
    frame = FrameFile(path=entry.path, name=entry.name, size=status.st_size, mtime=status.st_mtime_ns)
    return int(number[1]), frame
