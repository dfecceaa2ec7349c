"""Read AffectNet (Mollahosseini, Hasani & Mahoor, IEEE TAC 2019): stills, eight emotions; the validation part tests.

training.csv, validation.csv                         also in Manually_Annotated_file_lists/; with a header or without:
                                                     subDirectory_filePath,face_x,face_y,face_width,face_height,...
Manually_Annotated_Images/689/737db2...ca.jpg        whole pictures: the face is cut out along its box
or train_set/images/0.jpg, annotations/0_exp.npy     and val_set: faces of 224 pixels, one small file a number
or train/0/*.jpg, val/0/*.jpg                        a folder a class, by number or word
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfer.emotions import BASIC8, Emotions
from dfer.errors import DataError, message
from dfer.store.format import FaceSettings
from dfer.store.index import Box
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.layout import locate, read_small, require
from shards.sources.splits import listed
from shards.sources.stills import class_folders, counted, key_of, media_of, pictures_of
from shards.sources.tables import Row, read_long

# Number -> name, as in the release's description; 8 none, 9 uncertain, 10 no face are left out.
NUMBERS = dict(enumerate(("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")))
LEFT_OUT = {8: "none", 9: "uncertain", 10: "no face"}
KNOWN = ", ".join(f"{number} {name}" for number, name in (NUMBERS | LEFT_OUT).items())
COLUMNS = ("subdirectory_filepath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression")
PICTURE = re.compile(r"([A-Za-z0-9_-]{1,40})/([A-Za-z0-9_-]{1,80})\.[A-Za-z]{1,8}")
NUMBER = re.compile(r"-?[0-9]{1,7}(\.[0-9]{1,9})?")
LISTS = {"train": "training.csv", "val": "validation.csv"}
LIST_FOLDERS = ("", "Manually_Annotated_file_lists/", "Manually_Annotated/")
IMAGES = ("Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated")
RESIZED = {"train": "train_set", "val": "val_set"}
MAX_NPY = 4_096
"""Most bytes of an annotation: a header of 128 bytes and one number or word."""


def read(raw: Path) -> RawSet:
    """Read all stills of the eight emotions in whichever of the three forms is there; partitions `train`, `val`.

    Raises DataError.
    """
    if _list(raw, "train") is not None:
        return _original(raw)
    if locate(raw, [RESIZED["train"]]) is not None:
        return _resized(raw)
    forms = [f"{base}{LISTS['train']}" for base in LIST_FOLDERS[:2]]
    require(raw, [*forms, f"{RESIZED['train']}/images", "train"], dataset="AffectNet", what="pictures")
    return _folders(raw)


def _set(clips: list[RawClip], form: str, notes: tuple[str, ...], *, crops: bool = False) -> RawSet:
    train, test = RawSubset(partitions=("train",)), RawSubset(partitions=("val",))
    source = "Mollahosseini et al., IEEE TAC 2019: the validation part tests, no test part is public"
    return RawSet(
        dataset="affectnet",
        emotions=Emotions(names=BASIC8),
        clips=tuple(clips),
        media="jpeg" if crops else media_of(clip.picture for clip in clips if isinstance(clip.picture, Path)),
        protocols={"published": RawProtocol(source=source, folds=(RawFold(train=train, test=test),))},
        faces=FaceSettings(finder="the boxes of AffectNet's lists") if crops else None,
        notes=notes,
        options={"source_frames": form},
    )


def _expression(text: str, where: object) -> int | None:
    """Return the label of a number as written; None for the numbers that are left out. Raises DataError."""
    number = int(text) if re.fullmatch(r"[0-9]{1,2}", text) else -1
    if number in LEFT_OUT:
        return None
    if number not in NUMBERS:
        do = "Use the numbers of the release; other orders are refused."
        raise DataError(message(where, expected=f"an expression out of {KNOWN}", got=repr(text)[:40], do=do))
    return BASIC8.index(NUMBERS[number])


def _left_out(tally: Counter[str]) -> tuple[str, ...]:
    return counted(tally["left out"], "{} pictures are left out: none, uncertain or no face")


# The original release


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One row of a list with one of the eight emotions. file: below the folder of pictures; box: of the face."""

    file: str
    label: int
    box: Box | None


def _list(raw: Path, part: str) -> Path | None:
    return locate(raw, [f"{base}{LISTS[part]}" for base in LIST_FOLDERS])


def _original(raw: Path) -> RawSet:
    images = require(raw, IMAGES, dataset="AffectNet", what="pictures")
    tally: Counter[str] = Counter()
    clips: dict[str, RawClip] = {}
    for part, name in LISTS.items():
        path = require(raw, [f"{base}{name}" for base in LIST_FOLDERS], dataset="AffectNet", what="lists")
        for key, row in _read_list(path, tally).items():
            if key in clips:
                do = "Scores would count training pictures; unpack the lists again."
                got = f"{row.file} in training.csv and in {name}"
                raise DataError(message(path, expected="every picture in one list", got=got, do=do))
            faces = (row.box,) if row.box else None
            picture = images / row.file
            clips[key] = RawClip(key=key, label=row.label, partition=part, picture=picture, crop=row.box, faces=faces)
    notes = (
        *_left_out(tally),
        *counted(tally["boxless"], "{} pictures have no face box, and are stored whole"),
        *counted(tally["twice"], "{} rows repeat another one, and are left out"),
    )
    return _set([*clips.values()], "faces cut out of the original pictures", notes, crops=True)


def _read_list(path: Path, tally: Counter[str]) -> dict[str, Listed]:
    """Read one list: key -> row."""
    found: dict[str, Listed] = {}
    columns: dict[str, int] = {}
    for row in read_long(path):
        if not columns:
            first = row.cells[0].lower()
            columns = _header(row, path) if first == COLUMNS[0] else {name: at for at, name in enumerate(COLUMNS)}
            if first == COLUMNS[0]:
                continue
        key, listed_row = _listed(row, columns, f"{path}, line {row.line}")
        if listed_row is None or key in found:
            _count_repeated(found, key, listed_row, path, tally)
            continue
        tally["boxless"] += listed_row.box is None
        found[key] = listed_row
    if not found:
        do = "Unpack the list again."
        raise DataError(message(path, expected="at least one picture", got="none", do=do))
    return found


def _header(row: Row, path: Path) -> dict[str, int]:
    names = [cell.lower() for cell in row.cells]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        do = "Use the lists of the release, with or without their header."
        raise DataError(message(path, expected=f"columns {', '.join(COLUMNS)}", got=f"no {missing[0]}", do=do))
    return {name: names.index(name) for name in COLUMNS}


def _listed(row: Row, columns: dict[str, int], where: str) -> tuple[str, Listed | None]:
    """Take one row: its key, and None where the expression is left out. Raises DataError."""
    cells = {name: row.cells[at] for name, at in columns.items() if at < len(row.cells)}
    file = PICTURE.fullmatch(cells.get(COLUMNS[0], ""))
    numbers = [cells.get(name, "") for name in COLUMNS[1:5]]
    if file is None or "expression" not in cells or not all(n == "NULL" or NUMBER.fullmatch(n) for n in numbers):
        expected = "a picture such as 689/737db248.jpg, its face box in four numbers, landmarks, an expression"
        do = "Use the lists of the release."
        raise DataError(message(where, expected=expected, got=repr(",".join(row.cells))[:100], do=do))
    label = _expression(cells["expression"], where)
    key = key_of(file[1], file[2], where=where)
    return key, None if label is None else Listed(file=file[0], label=label, box=_box(numbers))


def _box(numbers: list[str]) -> Box | None:
    """Return left, top, width, height; None where there is no face: a width or height of nothing or below zero."""
    if "NULL" in numbers:
        return None
    left, top, width, height = map(float, numbers)
    return (left, top, width, height) if width > 0 and height > 0 else None


def _count_repeated(found: dict[str, Listed], key: str, row: Listed | None, path: Path, tally: Counter[str]) -> None:
    if row is None:
        tally["left out"] += 1
        return
    if row.label != found[key].label:
        do = "Unpack the list again."
        raise DataError(message(path, expected="one expression a picture", got=f"two for {row.file}", do=do))
    tally["twice"] += 1


# The resized release


def _resized(raw: Path) -> RawSet:
    clips, tally = [], Counter[str]()
    for part, name in RESIZED.items():
        images = require(raw, [f"{name}/images"], dataset="AffectNet", what="pictures")
        notes = require(raw, [f"{name}/annotations"], dataset="AffectNet", what="annotations")
        pictures = pictures_of(images)
        there = {entry.name for entry in notes.iterdir()}
        missing = [picture.stem for picture in pictures if f"{picture.stem}_exp.npy" not in there]
        if missing:
            do = "Unpack the annotations again."
            raise DataError(
                message(notes, expected="N_exp.npy for every picture", got=f"none for {listed(missing)}", do=do)
            )
        for picture in pictures:
            path = notes / f"{picture.stem}_exp.npy"
            label = _expression(read_npy(path), path)
            tally["left out"] += label is None
            if label is not None:
                key = key_of(part, picture.stem, where=picture)
                clips.append(RawClip(key=key, label=label, partition=part, picture=picture))
    return _set(clips, "resized faces", _left_out(tally))


def read_npy(path: Path) -> str:
    """Read the one number or word of a .npy file, as text. Nothing in the file is executed. Raises DataError."""
    try:
        data = read_small(path, most=MAX_NPY)
        return _scalar(data)
    except (OSError, ValueError) as error:
        do = "Unpack the annotations again."
        expected = "a .npy of one number or word"
        raise DataError(message(path, expected=expected, got=str(error)[:120], do=do)) from error


def _scalar(data: bytes) -> str:
    """Parse format 1 to 3 of numpy's files by hand: numpy would allocate what a header asks for."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise ValueError("a file of something else")
    wide = 2 if data[6] == 1 else 4
    start = 8 + wide
    end = start + int.from_bytes(data[8:start], "little")
    try:
        head = ast.literal_eval(data[start:end].decode())
        dtype, shape = np.dtype(str(head["descr"])), tuple(head["shape"])
    except (SyntaxError, TypeError, KeyError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("a damaged header") from error
    if dtype.kind not in "iufUS" or shape not in ((), (1,)) or len(data) - end != dtype.itemsize:
        raise ValueError(f"{dtype} of shape {shape}"[:80])
    value = np.frombuffer(data, dtype, offset=end)[0]
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip().removesuffix(".0")


# Class folders


def _folders(raw: Path) -> RawSet:
    emotions, clips, notes = Emotions(names=BASIC8), list[RawClip](), tuple[str, ...]()
    bases = {part: locate(raw, [part]) for part in ("train", "val", "test")}
    if bases["val"] is None:
        bases["val"] = bases["test"]
    elif bases["test"] is not None:
        notes = (f"{bases['test']} is left out: AffectNet's validation part tests, and no test part is public",)
    for part in ("train", "val"):
        base = bases[part] or require(raw, [part, "test"], dataset="AffectNet", what=f"{part} pictures")
        for folder, picture, word in _class_pictures(base, emotions):
            key = key_of(part, folder.name, picture.stem, where=picture)
            clips.append(RawClip(key=key, label=emotions.index(word), partition=part, picture=picture))
    return _set(clips, "class folders", notes)


def _class_pictures(base: Path, emotions: Emotions) -> Iterator[tuple[Path, Path, str]]:
    """Yield folder, picture and class. Folders of the numbers that are left out are skipped."""
    skipped = tuple(map(str, LEFT_OUT))
    for folder, word in class_folders(base, emotions, dataset="AffectNet", numbers=NUMBERS, skipped=skipped).items():
        for picture in pictures_of(folder):
            yield folder, picture, word
