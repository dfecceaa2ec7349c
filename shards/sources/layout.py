"""Find files in raw trees that were unpacked in slightly different ways, with messages when they are missing."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dfer.errors import DataError, message


def locate_all(root: Path, alternatives: Iterable[str]) -> Iterator[Path]:
    """Yield every existing path below `root` that matches one of the relative alternatives, best match first.

    An archive that was unpacked into a folder of its own name results in `frames/frames`: the inner folder comes first.
    A path component that ends in `*` also matches names given by download sites (`4_setups-002/4_setups`).
    """
    root = root.resolve()
    for alternative in alternatives:
        for start in (root / root.name, root):
            yield from _walk(start, alternative.split("/"))


def locate(root: Path, alternatives: Iterable[str]) -> Path | None:
    """Return the first path of `locate_all`, None when there is none."""
    return next(locate_all(root, alternatives), None)


def _walk(path: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield path
        return
    for step in _steps(path, parts[0]):
        if step.exists():
            yield from _walk(step, parts[1:])


def _steps(path: Path, part: str) -> Iterator[Path]:
    name = part.rstrip("*")
    matches = sorted(path.glob(f"{glob.escape(name)}*")) if part != name else [path / name]
    for match in matches:
        yield match / match.name
        if match.name != name:
            yield match / name
        yield match


def require(root: Path, alternatives: Sequence[str], *, dataset: str, what: str) -> Path:
    """As `locate`, but raise DataError that names the expected paths and what the folder contains instead."""
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(message(root, expected=f"the folder of {dataset}", got=got, do="Correct the path."))
    found = locate(root, alternatives)
    if found is None:
        raise DataError(
            message(
                root,
                expected=f"{dataset}'s {what} at {' or '.join(alternatives)}",
                got=f"a folder with {_listing(root)}",
                do=f"Give the folder that {dataset}'s distributor calls its root.",
            )
        )
    return found


def subfolders(folders: Iterable[Path]) -> dict[str, Path]:
    """Map names to paths of all entries of the folders; the first of equal names is used. One listing per folder is
    faster than a look-up per clip."""
    found: dict[str, Path] = {}
    for folder in folders:
        for entry in folder.iterdir() if folder.is_dir() else ():
            if not entry.name.startswith("."):
                found.setdefault(entry.name, entry)
    return found


def read_small(path: Path, *, most: int) -> bytes:
    """Read a file. Raises OSError, also for a pipe or a device, or ValueError when it is larger than `most` bytes."""
    if not path.is_file():
        raise OSError("no file there")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most >> 20} MiB")
    return data


def _listing(root: Path) -> str:
    names = sorted(entry.name for entry in root.iterdir())
    shown = ", ".join(names[:6]) or "nothing in it"
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
