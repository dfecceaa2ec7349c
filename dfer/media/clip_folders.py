"""Clips as folders of pictures on a disk: found below a folder, or listed in a file. No picture is read for it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfer.errors import DataError, message
from dfer.media.frames import KNOWN, READ_TEXT

MAX_LIST_BYTES = 256 * 2**20
"""Largest file that is read as a list of clips."""
EXPECTED = f"a folder whose folders are clips of {READ_TEXT} frames, or a text file that lists such folders"


@dataclass(frozen=True, kw_only=True)
class ClipFolders:
    """N clips. names: paths below the folder, with `/`, or lines of the list. folders: their paths. contents: SHA-256
    of the names and sizes of the pictures in each; empty for a listed folder that does not exist."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    contents: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "ClipFolders":
        """Find the clips: every folder at or below `path` with a picture in it, sorted by path; or, if `path` is a
        file, one folder a line, relative to the file's folder. Empty lines and lines that begin with # do not count.

        Raises:
            DataError: there is no such folder or file, it has no clips, or a clip is listed twice.
        """
        found = _listed(path) if path.is_file() else dict(sorted(_below(path)))
        if not found:
            do = "Give the cropped faces, one file a frame, a folder a clip."
            raise DataError(message(path, expected=EXPECTED, got="no clips", do=do))
        contents = tuple(_contents(folder) for folder in found.values())
        return cls(names=tuple(found), folders=tuple(found.values()), contents=contents)

    def __len__(self) -> int:
        return len(self.names)


def _below(root: Path) -> Iterator[tuple[str, Path]]:
    if not root.is_dir():
        raise DataError(message(root, expected=EXPECTED, got="neither", do="Correct the path."))
    seen = set()
    for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
        info = os.stat(folder)  # noqa: PTH116 (many folders)
        if (info.st_dev, info.st_ino) in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        if any(_is_picture(name) for name in files):
            yield Path(folder).relative_to(root).as_posix(), Path(folder)


def _listed(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in found:
            where = f"{path}, line {number}"
            raise DataError(message(where, expected="every clip once", got=f"{name} again", do="Remove the line."))
        found[name] = path.parent / name
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    got = f"more than {MAX_LIST_BYTES >> 20} MiB" if len(data) > MAX_LIST_BYTES else ""
    try:
        text = data.decode() if not got else ""
    except UnicodeDecodeError:
        got = "bytes that are no UTF-8"
    if got or "\0" in text:
        do = "Write a folder of frames on each line."
        raise DataError(message(path, expected=EXPECTED, got=got or "a binary file", do=do))
    return text


def _contents(folder: Path) -> str:
    """Return the SHA-256 of the names and sizes of a folder's pictures; empty if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            sizes = sorted((entry.name, _size(entry)) for entry in entries if _is_picture(entry.name))
    except OSError:
        return ""
    lines = "".join(f"{size} {name}\n" for name, size in sizes)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1  # a broken link, which reading the clip names


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in KNOWN  # noqa: PTH122 (many files)


def _raise(error: OSError) -> None:
    do = "Correct its permissions."
    raise DataError(message(str(error.filename), expected="to list it", got=str(error.strerror), do=do))
