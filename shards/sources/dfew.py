"""DFEW (Jiang et al., ACM MM 2020): aligned face frames and five single-labelled folds.

EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv .. set_5.csv    or label/single_{train,test}set_1.csv
Clip/clip_224x224/00001/00001_00001.jpg                                   or data/, clip_224x224_part_1/, ..._16f/
"""

import re
from pathlib import Path

from dfer.emotions import BASIC7, Emotions
from dfer.errors import DataError, message
from shards.sources.clips import RawClip, RawSet, published_folds
from shards.sources.layout import locate, require, subfolders
from shards.sources.splits import add_row, check_folds, check_some
from shards.sources.tables import Row, read_table

FOLDS = 5
LAST_ID = 16_372
PARTS = 11
NUMBER = re.compile(r"[0-9]{1,5}")
# Number in the split files -> name, as in the distributor's README.
NUMBERS = {1: "happy", 2: "sad", 3: "neutral", 4: "angry", 5: "surprise", 6: "disgust", 7: "fear"}
# The distribution with 16 interpolated frames per clip differs from that with all frames; the two are never mixed.
FRAME_FOLDERS = ("Clip/clip_224x224", "clip_224x224", "data", "Clip/data")
PART_FOLDERS = (
    "Clip/clip_224x224_part_{}",
    "clip_224x224_part_{}",
    "Clip/clip_224x224/clip_224x224_part_{}",
    "clip_224x224/clip_224x224_part_{}",
)
FRAMES_16 = ("Clip/clip_224x224_16f", "clip_224x224_16f")


def read(raw: Path) -> RawSet:
    """Read all single-labelled clips of DFEW; partition `fold_k` is the test set of fold k. Raises DataError."""
    emotions = Emotions(names=BASIC7)
    tests = [_read_split(_split_file(raw, "test", fold), emotions) for fold in range(1, FOLDS + 1)]
    trains = [_read_split(_split_file(raw, "train", fold), emotions) for fold in range(1, FOLDS + 1)]
    check_folds(tests, trains, where=f"{raw}: split files")
    kind, folders = _frame_folders(raw)
    clips = tuple(
        RawClip(key=key, label=label, partition=f"fold_{fold}", folder=folders.get(key))
        for fold, rows in enumerate(tests, start=1)
        for key, label in rows.items()
    )
    protocols = published_folds([f"fold_{fold}" for fold in range(1, FOLDS + 1)], source="Jiang et al., ACM MM 2020")
    return RawSet(dataset="dfew", emotions=emotions, clips=clips, protocols=protocols, options={"source_frames": kind})


def _split_file(raw: Path, side: str, fold: int) -> Path:
    forms = [
        f"{base}{side}{suffix}/set_{fold}.csv"
        for base in ("EmoLabel_DataSplit/", "")
        for suffix in ("(single-labeled)", "(single_labeled)", "")
    ]
    forms.append(f"label/single_{side}set_{fold}.csv")
    return require(raw, forms, dataset="DFEW", what="split files")


def _frame_folders(raw: Path) -> tuple[str, dict[str, Path]]:
    """Find the frame folders; returns a description of the frames used, and clip id -> folder."""
    parts = [locate(raw, [form.format(k) for form in PART_FOLDERS]) for k in range(1, PARTS + 1)]
    whole = [locate(raw, [form]) for form in FRAME_FOLDERS]
    full = [path for path in (*whole, *parts) if path is not None]
    if full:
        return "clip_224x224", subfolders(full)
    forms = (*FRAMES_16, *FRAME_FOLDERS, PART_FOLDERS[0].format(1))
    return "clip_224x224_16f", subfolders([require(raw, forms, dataset="DFEW", what="face frames")])


def _read_split(path: Path, emotions: Emotions) -> dict[str, int]:
    rows: dict[str, int] = {}
    table = read_table(path)
    header = table.rows[0] if table.rows else None
    names = header.cells if header else ()
    if not {"video_name", "label"} <= set(names):
        raise DataError(
            message(
                f"{path}, line {header.line if header else 1}",
                expected="the header video_name,label",
                got=table.told(header),
                do="Without it the first clip would be lost; put the header back or unpack the file again.",
            )
        )
    name_at, label_at = names.index("video_name"), names.index("label")
    for row in table.rows[1:]:
        where = f"{path}, line {row.line}"
        clip, label = _cell(row, name_at), _cell(row, label_at)
        if not NUMBER.fullmatch(clip) or not 1 <= int(clip) <= LAST_ID:
            raise DataError(
                message(where, expected=f"a clip number 1..{LAST_ID}", got=repr(clip), do="Unpack the file again.")
            )
        if not NUMBER.fullmatch(label) or int(label) not in NUMBERS:
            raise DataError(
                message(
                    where,
                    expected="a label 1..7 (1 happy, 2 sad, 3 neutral, 4 angry, 5 surprise, 6 disgust, 7 fear)",
                    got=repr(label),
                    do="Use DFEW's own split files; files that number from 0 or in another order are refused.",
                )
            )
        add_row(rows, f"{int(clip):05d}", emotions.index(NUMBERS[int(label)]), where=where)
    return check_some(rows, where=path)


def _cell(row: Row, position: int) -> str:
    return row.cells[position] if position < len(row.cells) else ""
