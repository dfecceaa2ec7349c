"""Read MAFW (Liu et al., ACM MM 2022): single-labelled clips, eleven emotions, five folds. The user crops the faces.

data/faces/00025/*.png|jpg                                     or faces/00025/
Train & Test Set/single/no_caption/set_1/train.txt, test.txt   no header: 00025.mp4 anger
"""

import re
from pathlib import Path

from dfer.emotions import MAFW11, Emotions, canonical_name
from dfer.errors import DataError, did_you_mean, message
from shards.sources.clips import RawClip, RawSet, published_folds
from shards.sources.layout import locate, require, subfolders
from shards.sources.splits import add_row, check_folds, check_some
from shards.sources.tables import read_table

FOLDS = 5
CLIP = re.compile(r"([0-9]{5})(?:\.mp4)?")
FACES = ("data/faces", "faces")
WHOLE_PICTURES = ("data/frames", "frames")
SPLITS = (
    "Train & Test Set/single/no_caption/set_{}/{}.txt",
    "Train&Test Set/single/no_caption/set_{}/{}.txt",
    "single/no_caption/set_{}/{}.txt",
)


def read(raw: Path) -> RawSet:
    """Read all single-labelled clips of MAFW; partition `fold_k` is the test set of fold k. Raises DataError."""
    emotions = Emotions(names=MAFW11)
    tests = [_read_split(_split_file(raw, "test", fold), emotions) for fold in range(1, FOLDS + 1)]
    trains = [_read_split(_split_file(raw, "train", fold), emotions) for fold in range(1, FOLDS + 1)]
    check_folds(tests, trains, where=f"{raw}: split files")
    base = require(raw, (*FACES, *WHOLE_PICTURES), dataset="MAFW", what="face folders")
    faces = locate(raw, FACES) is not None
    folders = subfolders([base])
    clips = tuple(
        RawClip(key=key, label=label, partition=f"fold_{fold}", folder=folders.get(key))
        for fold, rows in enumerate(tests, start=1)
        for key, label in rows.items()
    )
    note = f"{base} holds whole pictures, not faces; published results are on face crops, expected in {raw}/data/faces"
    protocols = published_folds([f"fold_{fold}" for fold in range(1, FOLDS + 1)], source="Liu et al., ACM MM 2022")
    return RawSet(
        dataset="mafw",
        emotions=emotions,
        clips=clips,
        protocols=protocols,
        notes=() if faces else (note,),
        options={"source_frames": "faces" if faces else "whole pictures"},
    )


def _split_file(raw: Path, side: str, fold: int) -> Path:
    return require(raw, [form.format(fold, side) for form in SPLITS], dataset="MAFW", what="split files")


def _read_split(path: Path, emotions: Emotions) -> dict[str, int]:
    rows: dict[str, int] = {}
    table = read_table(path)
    for number, row in enumerate(table.rows):
        where = f"{path}, line {row.line}"
        cells = [cell for cell in row.cells if cell]
        clip = CLIP.fullmatch(cells[0]) if len(cells) == 2 else None
        if clip is None:
            expected = "no header, but " if number == 0 else ""
            raise DataError(
                message(
                    where,
                    expected=f"{expected}a clip and its emotion, as in `00025.mp4 anger`",
                    got=table.told(row),
                    do="Use the files of single/no_caption.",
                )
            )
        name = canonical_name(cells[1])
        if name not in emotions.names:
            raise DataError(
                message(
                    where,
                    expected="one of the eleven emotions as a word",
                    got=repr(cells[1]),
                    do=f"{did_you_mean(name, emotions.names)} Use the split files of the release.",
                )
            )
        add_row(rows, clip[1], emotions.index(name), where=where)
    return check_some(rows, where=path)
