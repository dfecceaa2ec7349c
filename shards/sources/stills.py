"""What the sources of stills share: pictures of a folder, class folders by word or number, keys, counted notes."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from dfer.emotions import Emotions, canonical_name
from dfer.errors import DataError, did_you_mean, message
from dfer.media.frames import KNOWN
from dfer.store.format import KEY, Media
from shards.sources.layout import subfolders

LONGEST = 40
"""Letters of a part of a key (`dfer.store.format.KEY`)."""
JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


def pictures_of(folder: Path) -> list[Path]:
    """List the pictures of a folder by name, also those of kinds that are not read. Hidden files, folders and files
    that are no pictures are ignored."""
    found = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in found if entry.suffix.lower() in KNOWN and not entry.is_dir())


def media_of(pictures: Iterable[Path]) -> Media:
    """Return the format that keeps these pictures: JPEG if all are JPEGs by name, else PNG, which loses nothing."""
    return "jpeg" if all(picture.suffix.lower() in JPEG for picture in pictures) else "png"


def class_folders(
    base: Path,
    emotions: Emotions,
    *,
    dataset: str,
    numbers: Mapping[int, str] | None = None,
    skipped: Collection[str] = (),
) -> dict[Path, str]:
    """Map the folders of `base` to the classes that they are named after.

    numbers: what a number as a name means; without them, names are words. skipped: names of folders to ignore, like
    files.
    Raises DataError for a folder of another name, and if there is none.
    """
    found: dict[Path, str] = {}
    for name, folder in sorted(subfolders([base]).items()):
        if folder.is_dir() and name not in skipped:
            found[folder] = _class_of(name, folder, emotions, dataset, numbers)
    if not found:
        do = f"Unpack {dataset} again, or correct the path."
        raise DataError(message(base, expected="a folder for each class", got="none", do=do))
    return found


def _class_of(name: str, folder: Path, emotions: Emotions, dataset: str, numbers: Mapping[int, str] | None) -> str:
    known = numbers or {}
    word = known.get(int(name)) if name.isdecimal() and name.isascii() else canonical_name(name)
    if word is None or word not in emotions.names:
        words = f"a class of {dataset} as its name ({', '.join(emotions.names)})"
        coded = ", ".join(f"{number} {emotion}" for number, emotion in known.items())
        do = did_you_mean(canonical_name(name), emotions.names)
        expected = f"{words}, or a number out of {coded}" if coded else words
        raise DataError(message(folder, expected=expected, got=repr(name), do=f"{do} Rename or remove the folder."))
    return word


def key_of(*parts: str, where: object) -> str:
    """Make a clip's key of parts of a path; a part that is too long for one becomes several. Raises DataError."""
    cut = [part[at : at + LONGEST] for part in parts for at in range(0, max(1, len(part)), LONGEST)]
    key = "/".join(cut)
    if not KEY.fullmatch(key):
        expected = "names of letters, digits, _ and -"
        raise DataError(message(where, expected=expected, got=repr("/".join(parts))[:120], do="Rename the file."))
    return key


def counted(count: int, what: str) -> tuple[str, ...]:
    """Make a note of a number of things, `{}` of `what`; none if there are none."""
    return (what.format(count),) if count else ()
