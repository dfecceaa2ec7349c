"""FERV39k (Wang et al., CVPR 2022): face crops by scene and emotion, one train and one test list.

2_ClipsforFaceCrop/Action/Happy/0000/01.jpg
4_setups/All_scenes/train_All.csv, test_All.csv      no header, separated by a blank: Action/Happy/0000 Happy
"""

import re
from collections.abc import Iterable
from pathlib import Path

from dfer.emotions import BASIC7, Emotions, canonical_name
from dfer.errors import DataError, did_you_mean, message
from shards.sources.clips import RawClip, RawSet, published_folds
from shards.sources.layout import locate_all, require, subfolders
from shards.sources.splits import add_row, check_disjoint, check_some
from shards.sources.tables import read_table

PARTITIONS = ("train", "test")
FACES = "2_ClipsforFaceCrop*"
CLIP = re.compile(r"[A-Za-z0-9]{1,40}/[A-Za-z]{1,40}/[0-9]{4}")


def read(raw: Path) -> RawSet:
    """Read all clips of FERV39k, partitions `train` and `test`; key `Scene/Emotion/NNNN`. Raises DataError."""
    emotions = Emotions(names=BASIC7)
    rows = {part: _read_split(_split_file(raw, part), emotions) for part in PARTITIONS}
    check_disjoint(rows, where=f"{raw}: split files")
    require(raw, [FACES], dataset="FERV39k", what="face crops")
    folders = _folders(locate_all(raw, [FACES]))
    clips = tuple(
        RawClip(key=key, label=label, partition=part, folder=folders.get(key))
        for part in PARTITIONS
        for key, label in rows[part].items()
    )
    protocols = published_folds(["train", "test"], source="Wang et al., CVPR 2022")
    options = {"source_frames": FACES.rstrip("*")}
    return RawSet(dataset="ferv39k", emotions=emotions, clips=clips, protocols=protocols, options=options)


def _split_file(raw: Path, part: str) -> Path:
    return require(raw, [f"4_setups*/All_scenes/{part}_All.csv"], dataset="FERV39k", what="split files")


def _folders(copies: Iterable[Path]) -> dict[str, Path]:
    """Map keys to folders. Scenes may be spread over several unpacked copies; the first copy of a clip is used."""
    found: dict[str, Path] = {}
    for faces in copies:
        for scene in subfolders([faces]).values():
            for emotion in subfolders([scene]).values():
                for number, folder in subfolders([emotion]).items():
                    found.setdefault(f"{scene.name}/{emotion.name}/{number}", folder)
    return found


def _read_split(path: Path, emotions: Emotions) -> dict[str, int]:
    rows: dict[str, int] = {}
    table = read_table(path)
    for number, row in enumerate(table.rows):
        where = f"{path}, line {row.line}"
        cells = [cell for cell in row.cells if cell]
        if len(cells) != 2 or not CLIP.fullmatch(cells[0]):
            expected = "no header, but " if number == 0 else ""
            raise DataError(
                message(
                    where,
                    expected=f"{expected}a clip and its emotion, as in `Action/Happy/0015 Happy`",
                    got=table.told(row),
                    do="Use the split files of the release.",
                )
            )
        clip, word = cells
        add_row(rows, clip, _label(clip, word, emotions, where=where), where=where)
    return check_some(rows, where=path)


def _label(clip: str, word: str, emotions: Emotions, *, where: str) -> int:
    name = canonical_name(word)
    if name not in emotions.names:
        raise DataError(
            message(
                where,
                expected="one of the seven emotions as a word",
                got=repr(word),
                do=f"{did_you_mean(name, emotions.names)} Use the split files of the release.",
            )
        )
    if canonical_name(clip.split("/")[1]) != name:
        raise DataError(
            message(
                where,
                expected=f"the emotion of the folder, {clip.split('/')[1]}",
                got=repr(word),
                do="Folder and label never differ in the release; use its split files.",
            )
        )
    return emotions.index(name)
