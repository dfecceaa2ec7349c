"""Read CK+ (Lucey et al., CVPRW 2010): the last three frames of each labelled sequence as stills, seven emotions.

cohn-kanade-images/S005/001/S005_001_00000001.png        640x490 or 640x480, from neutral to the peak
Emotion/S005/001/S005_001_00000011_emotion.txt           "   3.0000000e+00"; many of the folders are empty

`ckplus48` reads the faces of 48 pixels that others cut out of the same frames.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer.emotions import CK7, Emotions
from dfer.errors import DataError, message
from shards.sources.clips import RawClip, RawProtocol, RawSet
from shards.sources.folds import TestSizes, by_subject, positional
from shards.sources.layout import require, subfolders
from shards.sources.stills import counted, pictures_of
from shards.sources.tables import read_table

# Number -> name, as in the release's readme. 0 neutral: no sequence of the release has it.
NUMBERS = {1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happy", 6: "sadness", 7: "surprise"}
NEUTRAL = 0
FRAMES = 3
"""Last frames of a sequence that are its stills."""
IMAGES = ("cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", "extended-cohn-kanade-images")
LABELS = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels")
LABEL = re.compile(r"(S[0-9]{3})_([0-9]{3})_([0-9]{8})_emotion\.txt")
PICTURE = re.compile(r"(S[0-9]{3})_([0-9]{3})_([0-9]{8})\.png", re.IGNORECASE)
NUMBER = re.compile(r"[0-9](\.[0-9]{1,12})?(e[+]?0{1,3})?", re.IGNORECASE)
# WuJie1010/Facial-Expression-Recognition.Pytorch, CK.py at fefe665: the order of the classes, and how many stills of
# each a fold tests, for the set's 981 stills.
ORDER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "contempt")
TESTS: TestSizes = {(135, 177, 75, 207, 84, 249, 54): (12, 18, 9, 21, 9, 24, 6)}
BY_POSITION = "WuJie1010, CK.py: ten blocks of positions, the tenth from the end"
BY_SUBJECT = "Meng et al., ICIP 2019: every tenth person, in ascending order"


@dataclass(frozen=True, kw_only=True)
class LabelledSequence:
    """One labelled sequence. name: `S005_001`; peak: number of its last frame; word: its emotion."""

    name: str
    peak: int
    word: str

    @property
    def folder(self) -> str:
        return self.name.replace("_", "/")


def read(raw: Path) -> RawSet:
    """Read three stills of every labelled sequence; key `S005_001_00000011`, one partition `all`. Raises DataError."""
    labels = require(raw, LABELS, dataset="CK+", what="labels")
    images = require(raw, IMAGES, dataset="CK+", what="frames")
    emotions, tally = Emotions(names=CK7), Counter[str]()
    clips = [
        still(f"{sequence.name}_{number:08d}", sequence.word, path, emotions)
        for sequence in _sequences(labels, tally)
        for number, path in _last_frames(images / sequence.folder, sequence)
    ]
    if not clips:
        do = "Unpack the labels again."
        raise DataError(message(labels, expected="at least one labelled sequence", got="none", do=do))
    note = f"{images} holds whole pictures, not faces; published results are on face crops"
    neutral = counted(tally["neutral"], "{} sequences labelled neutral are left out")
    return RawSet(
        dataset="ckplus",
        emotions=emotions,
        clips=tuple(clips),
        media="png",
        max_side=640,
        protocols=protocols(clips, emotions),
        notes=(note, *neutral),
        options={"source_frames": f"whole pictures, last {FRAMES} of a sequence"},
    )


def still(key: str, word: str, path: Path, emotions: Emotions) -> RawClip:
    """Make the clip of one frame. key: `S005_001_00000011`, of which the person and the sequence are parts."""
    person, number, _ = key.split("_")
    return RawClip(
        key=key,
        label=emotions.index(word),
        partition="all",
        picture=path,
        subject=person,
        source=f"{person}_{number}",
    )


def protocols(clips: Sequence[RawClip], emotions: Emotions) -> dict[str, RawProtocol]:
    """Make the protocols `positional` and `subjects`."""
    order = [emotions.index(name) for name in ORDER]
    return positional(clips, order, tests=TESTS, source=BY_POSITION) | by_subject(clips, source=BY_SUBJECT)


def _sequences(labels: Path, tally: Counter[str]) -> Iterator[LabelledSequence]:
    """Yield the labelled sequences by name. Folders without a label, and other files, are skipped."""
    for person in _folders(labels):
        for sequence in _folders(person):
            found = [name for name in map(LABEL.fullmatch, sorted(subfolders([sequence]))) if name]
            for name in _one(found, sequence, person):
                path = sequence / name[0]
                number = _number(path)
                if number == NEUTRAL:
                    tally["neutral"] += 1
                else:
                    yield LabelledSequence(name=f"{name[1]}_{name[2]}", peak=int(name[3]), word=NUMBERS[number])


def _folders(base: Path) -> list[Path]:
    return sorted(entry for entry in subfolders([base]).values() if entry.is_dir())


def _one(found: list[re.Match[str]], sequence: Path, person: Path) -> list[re.Match[str]]:
    """Return the label of a sequence, none if there is none. Raises DataError for a second one, or one of another."""
    odd = [name[0] for name in found if (name[1], name[2]) != (person.name, sequence.name)]
    if odd or len(found) > 1:
        got = odd[0] if odd else f"{len(found)} of them"
        do = "Unpack the labels again."
        expected = f"one label of sequence {person.name}_{sequence.name}"
        raise DataError(message(sequence, expected=expected, got=got, do=do))
    return found


def _number(path: Path) -> int:
    rows = read_table(path).rows
    text = rows[0].cells[0] if len(rows) == 1 and len(rows[0].cells) == 1 else ""
    number = float(text) if NUMBER.fullmatch(text) else -1.0
    if number != NEUTRAL and number not in NUMBERS:
        known = ", ".join(f"{n} {name}" for n, name in NUMBERS.items())
        got = " ".join(cell for row in rows for cell in row.cells)
        do = "Use the labels of the release; those of other repositories number the emotions differently."
        raise DataError(message(path, expected=f"one number out of {known}", got=repr(got)[:60], do=do))
    return int(number)


def _last_frames(folder: Path, sequence: LabelledSequence) -> list[tuple[int, Path]]:
    """Return number and path of the last frames up to the peak; the paths of absent ones if the peak is not there."""
    there = {}
    for path in pictures_of(folder) if folder.is_dir() else ():
        name = PICTURE.fullmatch(path.name)
        if name and f"{name[1]}_{name[2]}" == sequence.name:
            there[int(name[3])] = path
    if sequence.peak in there:
        last = sorted(number for number in there if number <= sequence.peak)[-FRAMES:]
        return [(number, there[number]) for number in last]
    absent = range(max(1, sequence.peak - FRAMES + 1), sequence.peak + 1)
    return [(number, there.get(number, folder / f"{sequence.name}_{number:08d}.png")) for number in absent]
