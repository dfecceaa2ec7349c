"""List the frames of a clip in a folder, in time order. A frame that cannot be read is an error, never skipped."""

import os
from collections import Counter
from pathlib import Path

from dfer.media.order import time_order

READ = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff"})
"""Suffixes of pictures that `dfer.media.pictures` reads."""
NOT_READ = frozenset(
    {
        ".apng",
        ".arw",
        ".avif",
        ".cr2",
        ".dng",
        ".exr",
        ".gif",
        ".hdr",
        ".heic",
        ".heif",
        ".j2k",
        ".jp2",
        ".jxl",
        ".nef",
        ".pam",
        ".pbm",
        ".pcx",
        ".pfm",
        ".pgm",
        ".pnm",
        ".ppm",
        ".psd",
        ".ras",
        ".tga",
    }
)
"""Suffixes of pictures that are not read. They are refused: ignoring them would lose frames of the clip."""
KNOWN = READ | NOT_READ
READ_TEXT = ".jpg, .png, .bmp, .webp or .tif"


def list_pictures(folder: Path) -> "list[os.DirEntry[str]]":
    """List the pictures of a folder in time order. Hidden files, folders and files that are no pictures are ignored.

    Raises:
        ValueError: no frames, pictures of a kind that is not read, a frame that is no file, names without an order.
        OSError: the folder does not exist or cannot be read.
    """
    found: dict[str, os.DirEntry[str]] = {}
    others: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a million calls: no Path objects)
            if entry.name.startswith(".") or suffix not in KNOWN or entry.is_dir(follow_symlinks=False):
                continue
            if suffix in NOT_READ:
                others[suffix] += 1
            elif _is_file(entry):
                found[entry.name] = entry
    if others:
        raise ValueError(_not_read(others, beside=len(found)))
    if not found:
        raise ValueError("no frames")
    return [found[name] for name in time_order(sorted(found))]


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a file; False for a link to a folder. Raises ValueError for a broken link or other entry."""
    try:
        if entry.is_file():
            return True
        if entry.is_dir():
            return False
    except OSError as error:
        raise ValueError(f"frame {entry.name} cannot be read ({error.strerror})") from error
    raise ValueError(f"frame {entry.name} is a link to nothing, or no file")


def _not_read(others: Counter[str], *, beside: int) -> str:
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    rest = f" beside {beside} that can be read" if beside else ""
    return f"pictures of a kind that is not read ({kinds}){rest}"
