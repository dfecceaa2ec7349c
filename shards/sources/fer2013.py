"""Read FER2013 (Goodfellow et al., ICONIP 2013): grey stills of 48 pixels, seven emotions, three parts.

fer2013.csv or icml_face_data.csv     header emotion,pixels,Usage in any order, with or without blanks before the names
or train/angry/*.jpg, test/angry/*    folders by word; the names may say which pictures of test/ are PublicTest
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dfer.emotions import BASIC7, Emotions
from dfer.errors import DataError, message
from shards.sources.clips import Pixels, RawClip, RawFold, RawProtocol, RawSet, RawSubset, published_folds
from shards.sources.layout import locate, require
from shards.sources.stills import class_folders, counted, key_of, media_of, pictures_of
from shards.sources.tables import MAX_LINE, open_file

SIDE = 48
HEADER = ("emotion", "pixels", "usage")
# Number in the csv -> name, as in the challenge's description.
NUMBERS = {0: "angry", 1: "disgust", 2: "fear", 3: "happy", 4: "sad", 5: "surprise", 6: "neutral"}
USAGES = {"training": "train", "publictest": "public", "privatetest": "private"}
TABLES = tuple(f"{base}{name}" for base in ("", "fer2013/", "data/") for name in ("fer2013.csv", "icml_face_data.csv"))
TRAINS = ("train", "fer2013/train")
SOURCE = "Goodfellow et al., ICONIP 2013"


@dataclass(frozen=True, kw_only=True)
class PixelRow:
    """One row of the csv. number: from 0; line: of the file, from 1; emotion: the number as written."""

    number: int
    line: int
    emotion: str
    partition: str
    pixels: Pixels


def read(raw: Path) -> RawSet:
    """Read all stills; partitions `train`, `public` and `private`; key: row of the csv, `00000`. Raises DataError."""
    path = locate(raw, TABLES)
    if path is None and locate(raw, TRAINS) is not None:
        return _of_folders(raw)
    path = path or require(raw, (*TABLES, *TRAINS), dataset="FER2013", what="pictures")
    emotions = Emotions(names=BASIC7)
    clips = [
        RawClip(
            key=f"{row.number:05d}",
            label=_label(row, emotions, f"{path}, line {row.line}"),
            partition=row.partition,
            picture=row.pixels,
        )
        for row in read_pixels(path)
    ]
    return _set(clips, _challenge(clips), path.name)


def _set(clips: list[RawClip], protocols: dict[str, RawProtocol], frames: str, notes: tuple[str, ...] = ()) -> RawSet:
    files = [clip.picture for clip in clips if isinstance(clip.picture, Path)]
    return RawSet(
        dataset="fer2013",
        emotions=Emotions(names=BASIC7),
        clips=tuple(clips),
        media=media_of(files) if files else "png",
        protocols=protocols,
        notes=notes,
        options={"source_frames": frames},
    )


def _challenge(clips: list[RawClip]) -> dict[str, RawProtocol]:
    """Make the two protocols of the challenge: `private` validates on PublicTest and tests on PrivateTest, `public`
    tests on PublicTest."""
    there = {clip.partition for clip in clips}
    train, public, private = (RawSubset(partitions=(name,)) for name in USAGES.values())
    found = {}
    if {"train", "private"} <= there:
        validation = public if "public" in there else None
        fold = RawFold(train=train, test=private, validation=validation)
        found["private"] = RawProtocol(source=SOURCE, folds=(fold,))
    if {"train", "public"} <= there:
        found["public"] = RawProtocol(source=SOURCE, folds=(RawFold(train=train, test=public),))
    return found


def _label(row: PixelRow, emotions: Emotions, where: str) -> int:
    if not row.emotion.isdecimal() or int(row.emotion) not in NUMBERS:
        known = ", ".join(f"{number} {name}" for number, name in NUMBERS.items())
        do = "Use the csv of the challenge."
        raise DataError(message(where, expected=f"an emotion 0..6 ({known})", got=repr(row.emotion)[:40], do=do))
    return emotions.index(NUMBERS[int(row.emotion)])


def read_pixels(path: Path) -> Iterator[PixelRow]:
    """Yield the rows of a csv of pixels. The numbers themselves are read when the shards are built.

    Raises DataError: no header, a row of another form, a use that is not known, no rows.
    """
    columns: tuple[int, ...] = ()
    number = -1
    for line, at, text in _lines(path):
        cells = text.split(b",")
        where = f"{path}, line {line}"
        if not columns:
            columns = _header(cells, where)
            continue
        number += 1
        yield _pixel_row(path, where, cells, columns, at=at, line=line, number=number)
    if number < 0:
        do = "Unpack the csv again; a file of a few bytes is only a placeholder."
        raise DataError(message(path, expected="a header and at least one picture", got="none", do=do))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, first byte and text of every line that is not blank. Raises DataError."""
    at, line = 0, 0
    try:
        with open_file(path) as file:
            while text := file.readline(MAX_LINE):
                line += 1
                if len(text) == MAX_LINE or b"\0" in text:
                    got = "a longer one" if len(text) == MAX_LINE else "UTF-16 or no text"
                    do = "Save the file as UTF-8, or unpack it again."
                    expected = f"a line of text of at most {MAX_LINE:,} bytes"
                    raise DataError(message(f"{path}, line {line}", expected=expected, got=got, do=do))
                if text.strip():
                    yield line, at, text
                at += len(text)
    except OSError as error:
        raise DataError(message(path, expected="a readable csv", got=str(error), do="Unpack it again.")) from error


def _header(cells: list[bytes], where: str) -> tuple[int, ...]:
    """Return the columns of HEADER."""
    names = [_text(cell.removeprefix(b"\xef\xbb\xbf")).lower() for cell in cells]
    if sorted(names) != sorted(HEADER):
        do = "Without it the first picture would be lost; put the header back or unpack the file again."
        expected = "the header emotion,pixels,Usage, in any order"
        raise DataError(message(where, expected=expected, got=repr(",".join(names))[:80], do=do))
    return tuple(map(names.index, HEADER))


def _pixel_row(
    path: Path, where: str, cells: list[bytes], columns: tuple[int, ...], *, at: int, line: int, number: int
) -> PixelRow:
    if len(cells) != len(HEADER):
        got = f"{len(cells)} cells"
        do = "Unpack the csv again."
        raise DataError(message(where, expected="an emotion, the pixels and a use", got=got, do=do))
    emotion, usage = (_text(cells[column]) for column in (columns[0], columns[2]))
    if usage.lower() not in USAGES:
        expected = "Training, PublicTest or PrivateTest"
        raise DataError(message(where, expected=expected, got=repr(usage)[:40], do="Use the csv of the challenge."))
    before, pixels = cells[: columns[1]], cells[columns[1]]
    start = sum(map(len, before)) + len(before) + len(pixels) - len(pixels.lstrip(b' "'))
    size = len(pixels.strip(b' "\r\n'))
    place = Pixels(path=path, start=at + start, size=size, side=SIDE)
    return PixelRow(number=number, line=line, emotion=emotion, partition=USAGES[usage.lower()], pixels=place)


def _text(cell: bytes) -> str:
    return cell.decode("utf-8", "replace").strip().strip('"').strip()


def _of_folders(raw: Path) -> RawSet:
    train, test = (_class_pictures(raw, part) for part in ("train", "test"))
    parts = [_named_part(clip) for clip in test]
    if None not in parts:
        named = [replace(clip, partition=part) for clip, part in zip(test, parts, strict=True) if part]
        return _set([*train, *named], _challenge([*train, *named]), "folders")
    note = "the {} pictures of test/ are PublicTest and PrivateTest together: their names do not say which are which"
    protocols = published_folds(["train", "test"], source=SOURCE)
    return _set([*train, *test], protocols, "folders", counted(len(test), note))


def _class_pictures(raw: Path, part: str) -> list[RawClip]:
    base = require(raw, [part, f"fer2013/{part}"], dataset="FER2013", what=f"{part} pictures")
    emotions = Emotions(names=BASIC7)
    return [
        RawClip(
            key=key_of(part, folder.name, picture.stem, where=picture),
            label=emotions.index(word),
            partition=part,
            picture=picture,
        )
        for folder, word in class_folders(base, emotions, dataset="FER2013").items()
        for picture in pictures_of(folder)
    ]


def _named_part(clip: RawClip) -> str | None:
    """Return the part that the name of a picture of test/ says: `PublicTest_92130541.jpg`."""
    match = re.match(r"(public|private)test", clip.key.rpartition("/")[2], re.IGNORECASE)
    return match[1].lower() if match else None
