"""A folder of single pictures, read as it lies: in order of their paths, each resized to one size.

Letters: H height, W width.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from dfer.data.geometry import MAX_PIXELS, Picture, Resize, apply
from dfer.errors import DataError, message
from dfer.media.frames import KNOWN, NOT_READ, READ_TEXT
from dfer.media.pictures import MAX_FILE_BYTES, read_picture


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """The pictures in a folder and in the folders below it, sorted by path.

    names: path of each picture below `root`, with `/`. sizes: bytes of each file.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def open(cls, root: Path) -> "PictureFolder":
        """List the pictures. Hidden files and folders, and files that are no pictures, are ignored; links to folders
        are followed.

        Raises:
            DataError: there is no such folder, it has no pictures, or it has some of a kind that is not read, or a link
                to a folder that contains it.
        """
        expected = f"a folder with {READ_TEXT} pictures"
        if not root.is_dir():
            raise DataError(message(root, expected=expected, got="no folder", do="Correct the path."))
        found, other = {}, ""
        for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
            below[:] = sorted(name for name in below if not name.startswith("."))
            _refuse_loops(folder, below)
            for name in files:
                path, suffix = Path(folder) / name, os.path.splitext(name)[1].lower()  # noqa: PTH122 (many files)
                if name.startswith(".") or suffix not in KNOWN:
                    continue
                if suffix in NOT_READ:
                    other = other or path.relative_to(root).as_posix()
                else:
                    found[path.relative_to(root).as_posix()] = path.stat().st_size
        if other or not found:
            got = f"{other}, of a kind that is not read" if other else "none"
            raise DataError(
                message(root, expected=expected, got=got, do="Convert or remove it." if other else "Correct the path.")
            )
        names = tuple(sorted(found))
        return cls(root=root, names=names, sizes=tuple(found[name] for name in names))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sha256(self) -> str:
        """SHA-256 of all names and sizes. The contents are not read for it."""
        lines = (f"{size} {name}\n" for name, size in zip(self.names, self.sizes, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def folders(self) -> list[str]:
        """First folder below `root` of each picture, empty for one that lies in `root` itself: a class, in folders of
        classes."""
        return [name.partition("/")[0] if "/" in name else "" for name in self.names]

    def read(self, index: int, size: int) -> Picture:
        """Read a picture, uint8 [size size 3], resized with antialiasing and without keeping its proportions.

        Raises:
            DataError: it cannot be read, or is no whole picture.
        """
        path = self.root / self.names[index]
        expected = f"a whole JPEG, PNG, BMP, WebP or TIFF of at most {MAX_PIXELS:,} pixels"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES >> 20} MiB")
            return apply((Resize(size, size),), read_picture(data, max_pixels=MAX_PIXELS).rgb)
        except (OSError, ValueError) as error:
            got = str(getattr(error, "strerror", None) or error)
            raise DataError(message(path, expected=expected, got=got, do="Replace the file.")) from error


def _refuse_loops(folder: str, below: list[str]) -> None:
    """Raise DataError for links to a folder in which they lie, whose pictures would be listed again and again."""
    here = Path(os.path.realpath(folder))
    for link in (Path(folder) / name for name in below):
        if link.is_symlink() and here.is_relative_to(to := Path(os.path.realpath(link))):
            expected, do = "links to folders that do not contain them", "Remove the link."
            raise DataError(message(link, expected=expected, got=f"one to {to}", do=do))


def _raise(error: OSError) -> None:
    raise DataError(
        message(str(error.filename), expected="to read it", got=str(error.strerror), do="Correct its permissions.")
    )
