"""The data that every source passes to the builder, and the listing of a clip's frames."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dfer.emotions import Emotions
from dfer.media.frames import list_pictures
from dfer.store.format import MAX_FRAMES

UNREADABLE = "cannot be read"


class BadClip(Exception):
    """A clip cannot be packed; the text is the reason, which the manifest records."""


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
