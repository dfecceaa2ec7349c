"""Read RAF-DB, basic emotions (Li, Deng & Du, CVPR 2017): stills, seven emotions, one split.

basic/EmoLabel/list_patition_label.txt               no header: train_00001.jpg 5
basic/Image/aligned/train_00001_aligned.jpg          or basic/Image/original/train_00001.jpg
or DATASET/train/5/train_00001_aligned.jpg           a folder a number, as a mirror packs the aligned faces
"""

import re
from pathlib import Path

from dfer.emotions import BASIC7, Emotions
from dfer.errors import DataError, message
from shards.sources.clips import RawClip, RawSet, published_folds
from shards.sources.layout import locate, require
from shards.sources.splits import add_row, check_some
from shards.sources.stills import class_folders, key_of, media_of, pictures_of
from shards.sources.tables import Table, read_table

PARTITIONS = ("train", "test")
# Number -> name, as in the release's readme.
NUMBERS = {1: "surprise", 2: "fear", 3: "disgust", 4: "happiness", 5: "sadness", 6: "anger", 7: "neutral"}
PICTURE = re.compile(r"((train|test)_[0-9]{1,5})(?:_aligned)?\.jpg", re.IGNORECASE)
LISTS = tuple(
    f"{base}list_{word}_label.txt"
    for base in ("basic/EmoLabel/", "EmoLabel/", "")
    for word in ("patition", "partition")  # the release writes the first
)
ALIGNED = ("basic/Image/aligned", "Image/aligned", "aligned")
ORIGINAL = ("basic/Image/original", "Image/original", "original")
FOLDERS = ("DATASET/train", "train")
NAMED = ", ".join(f"{number} {name}" for number, name in NUMBERS.items())


def read(raw: Path) -> RawSet:
    """Read all stills with a basic emotion, partitions `train` and `test`; key `train_00001`. Raises DataError."""
    found = locate(raw, LISTS)
    if found is None and locate(raw, FOLDERS) is not None:
        return _of_folders(raw)
    path = found or require(raw, LISTS, dataset="RAF-DB", what="list of labels")
    base = require(raw, (*ALIGNED, *ORIGINAL), dataset="RAF-DB", what="pictures")
    aligned = locate(raw, ALIGNED) is not None
    end = "_aligned.jpg" if aligned else ".jpg"
    emotions = Emotions(names=BASIC7)
    clips = [
        RawClip(key=key, label=label, partition=key.partition("_")[0], picture=base / f"{key}{end}")
        for key, label in _read_list(path, emotions).items()
    ]
    note = f"{base} holds whole pictures, not faces; published results are on the aligned faces of Image/aligned"
    return _set(clips, emotions, () if aligned else (note,), "aligned" if aligned else "original")


def _set(clips: list[RawClip], emotions: Emotions, notes: tuple[str, ...], frames: str) -> RawSet:
    return RawSet(
        dataset="raf_db",
        emotions=emotions,
        clips=tuple(clips),
        media=media_of(clip.picture for clip in clips if isinstance(clip.picture, Path)),
        protocols=published_folds(PARTITIONS, source="Li, Deng & Du, CVPR 2017"),
        notes=notes,
        options={"source_frames": frames},
    )


def _read_list(path: Path, emotions: Emotions) -> dict[str, int]:
    rows: dict[str, int] = {}
    table = read_table(path)
    for row in table.rows:
        where = f"{path}, line {row.line}"
        key, label = _row(table, tuple(cell for cell in row.cells if cell), where)
        add_row(rows, key, emotions.index(NUMBERS[label]), where=where)
    return check_some(rows, where=path)


def _row(table: Table, cells: tuple[str, ...], where: str) -> tuple[str, int]:
    """Take key and number of a row: a name and a number, and in some copies a column `train` or `test` beside them."""
    name = PICTURE.fullmatch(cells[0]) if cells else None
    rest = [cell for cell in cells[1:] if name and cell.lower() != name[2].lower()]
    if name is None or len(cells) > 3 or len(rest) != 1:
        expected = "no header, but a picture and its label, as in `train_00001.jpg 5`"
        do = "The part, train or test, is that of the name. Use the list of basic/EmoLabel."
        raise DataError(message(where, expected=expected, got=repr(" ".join(cells))[:80], do=do))
    if not rest[0].isdecimal() or int(rest[0]) not in NUMBERS:
        do = "Use the list of basic/EmoLabel; compound emotions and lists that number from 0 are refused."
        raise DataError(message(where, expected=f"a label 1..7 ({NAMED})", got=repr(rest[0]), do=do))
    return name[1].lower(), int(rest[0])


def _of_folders(raw: Path) -> RawSet:
    emotions, clips, homes = Emotions(names=BASIC7), [], dict[str, Path]()
    for part in PARTITIONS:
        base = require(raw, [f"DATASET/{part}", part], dataset="RAF-DB", what=f"{part} pictures")
        for folder, word in class_folders(base, emotions, dataset="RAF-DB", numbers=NUMBERS).items():
            for picture in pictures_of(folder):
                name = PICTURE.fullmatch(picture.name)
                key = name[1] if name else key_of(part, folder.name, picture.stem, where=picture)
                _refuse_twice(homes, key, picture)
                clips.append(RawClip(key=key, label=emotions.index(word), partition=part, picture=picture))
    return _set(clips, emotions, (), "class folders")


def _refuse_twice(homes: dict[str, Path], key: str, picture: Path) -> None:
    other = homes.setdefault(key, picture)
    if other is not picture:
        do = "Unpack the pictures again."
        raise DataError(message(picture, expected="every picture in one folder", got=f"{other} as well", do=do))
