"""Read pictures with a sentence about each, in folders of their own: faces that a user has described.

train/00001.jpg, test/00001.jpg, unlabelled/00001.jpg     a folder a partition; other names are allowed
train/descriptions.csv                                    file,text: 00001.jpg,"A person with short brown hair."
labels.csv                                                file,class,subject: train/00001.jpg,happiness,person7

Either kind of file may be missing; so may the class, the subject or the text of a picture.
"""

from collections.abc import Iterator
from pathlib import Path

from dfer.emotions import MAFW11, Emotions, canonical_name, emotions_of
from dfer.errors import DataError, message
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.layout import subfolders
from shards.sources.stills import key_of, media_of, pictures_of
from shards.sources.tables import read_long

CAPTIONED, UNLABELLED, TEST = "train", "unlabelled", "test"
DESCRIPTIONS, LABELS = "descriptions.csv", "labels.csv"
HEADER, COLUMNS = ("file", "class", "subject"), ("file", "text")


def read(raw: Path) -> RawSet:
    """Read all pictures; key and partition by folder and file. Folders `train` and `test` make the one fold of the
    protocol `published`. Raises DataError."""
    folders = {name: path for name, path in sorted(subfolders([raw]).items()) if path.is_dir()}
    found = {f"{name}/{path.name}": path for name, folder in folders.items() for path in pictures_of(folder)}
    if not found:
        do = "Give the folder that holds train/, test/ or others."
        raise DataError(message(raw, expected="folders of pictures", got="none with any", do=do))
    labels = _rows(raw / LABELS, HEADER, found, "")
    texts: dict[str, list[str]] = {}
    for name, folder in folders.items():
        texts |= _rows(folder / DESCRIPTIONS, COLUMNS, found, f"{name}/")
    emotions = _classes(labels)
    clips = [_clip(name, path, labels.get(name), texts.get(name), emotions) for name, path in found.items()]
    return RawSet(
        dataset="described",
        emotions=emotions,
        clips=tuple(clips),
        media=media_of(found.values()),
        protocols=_protocols({clip.partition for clip in clips}),
    )


def _clip(name: str, path: Path, row: list[str] | None, text: list[str] | None, emotions: Emotions) -> RawClip:
    part = name.partition("/")[0]
    word, subject = row or ("", "")
    return RawClip(
        key=key_of(part, path.stem, where=path),
        label=emotions.index(word) if word else None,
        partition=part,
        picture=path,
        subject=subject or None,
        text=(text[0] if text else "") or None,
    )


def _protocols(partitions: set[str]) -> dict[str, RawProtocol]:
    if not {CAPTIONED, TEST} <= partitions:
        return {}
    fold = RawFold(train=RawSubset(partitions=(CAPTIONED,)), test=RawSubset(partitions=(TEST,)))
    return {"published": RawProtocol(source="the folders train and test", folds=(fold,))}


def _classes(labels: dict[str, list[str]]) -> Emotions:
    """Return the classes that occur: those that are known in their usual order, then the others by name."""
    words = {canonical_name(row[0]) for row in labels.values() if row[0]}
    names = (*filter(words.__contains__, MAFW11), *sorted(words - {*MAFW11}))
    return emotions_of(names) if names else Emotions(names=())


def _rows(path: Path, columns: tuple[str, ...], pictures: dict[str, Path], prefix: str) -> dict[str, list[str]]:
    """Read a table by picture; nothing if there is no such file. Raises DataError."""
    found: dict[str, list[str]] = {}
    for line, name, cells in _lines(path, columns) if path.exists() else ():
        where, key = f"{path}, line {line}", f"{prefix}{name}"
        if key not in pictures or key in found:
            got = f"{name!r} twice" if key in found else repr(name)[:80]
            raise DataError(message(where, expected="each picture once", got=got, do="Correct the file."))
        found[key] = cells
    return found


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, str, list[str]]]:
    rows = read_long(path)
    head = next(rows, None)
    if head is None or head.cells != columns:
        got = "nothing" if head is None else ",".join(head.cells)[:80]
        raise DataError(message(path, expected=f"the columns {','.join(columns)}", got=got, do="Correct the file."))
    for row in rows:
        if len(row.cells) != len(columns):
            got, do = f"{len(row.cells)}", "Put a text with commas into quotation marks."
            raise DataError(message(f"{path}, line {row.line}", expected=f"{len(columns)} cells", got=got, do=do))
        yield row.line, row.cells[0], list(row.cells[1:])
