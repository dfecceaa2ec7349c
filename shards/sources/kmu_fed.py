"""Read KMU-FED (Jeong & Ko, Sensors 2018): stills of twelve drivers, six emotions, no label file.

01_AN_mr_005.jpg          person, emotion, session, frame; all in one folder, or in a folder a class
"""

import re
from pathlib import Path

from dfer.emotions import BASIC6, Emotions, canonical_name
from dfer.errors import DataError, message
from dfer.media.pictures import MAX_FILE_BYTES
from shards.sources.clips import RawClip, RawSet
from shards.sources.folds import TestSizes, by_subject, positional
from shards.sources.layout import locate, read_small, require, subfolders
from shards.sources.stills import counted, media_of, pictures_of

# Code in the file names -> name.
CODES = {"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "SA": "sadness", "SU": "surprise"}
PICTURE = re.compile(r"([0-9]{1,2})_([A-Z]{2})_([A-Za-z0-9]{1,10})_([0-9]{1,5})\.(?:jpe?g|png|bmp)", re.IGNORECASE)
ROOTS = ("KMU-FED", "KMU_FED", "KMUFED")
# CLIVP-FER's folds: the order of the classes, and how many stills of each a fold tests; for the release without its six
# byte copies, and for the 1,104 stills that its code counts, among which the copies are, without these. Folds with the
# copies in them are not made: the same picture would train and test.
ORDER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
SIZES = (19, 12, 20, 21, 18, 20)
TESTS: TestSizes = {(190, 120, 200, 210, 180, 200): SIZES, (190, 120, 200, 209, 180, 199): SIZES}
BY_POSITION = "CLIVP-FER: ten blocks of positions, the tenth from the end, pictures by name"
OTHER_COUNTS = (
    f"CLIVP-FER has other numbers of pictures than these ({', '.join(ORDER)}: {{}}); each block of `positional` is "
    "here a tenth of every class, and not CLIVP-FER's"
)
BY_SUBJECT = "ours: every tenth person, in ascending order"


def read(raw: Path) -> RawSet:
    """Read all stills but byte copies; key `01_AN_mr_005`, one partition `all`. Raises DataError."""
    require(raw, ["."], dataset="KMU-FED", what="pictures")
    base = locate(raw, ROOTS) or raw
    emotions = Emotions(names=BASIC6)
    found: dict[str, RawClip] = {}
    copies: list[str] = []
    for picture in _pictures(base):
        clip = _still(picture, base, emotions)
        first = found.setdefault(clip.key, clip)
        if first is not clip:
            _refuse_unlike(first, clip)
            copies.append(f"{picture.name} of {_path(first).name}")
    if not found:
        do = "Give the folder of the pictures."
        raise DataError(message(base, expected="pictures such as 01_AN_mr_005.jpg", got="none", do=do))
    clips = tuple(found.values())
    order = [emotions.index(name) for name in ORDER]
    counts = tuple(sum(clip.label == label for clip in clips) for label in order)
    blocks = positional(clips, order, tests=TESTS, source=BY_POSITION)
    shown = f", such as {copies[0]}" if copies else ""
    return RawSet(
        dataset="kmu_fed",
        emotions=emotions,
        clips=clips,
        media=media_of(map(_path, clips)),
        max_side=1600,
        protocols=blocks | by_subject(clips, source=BY_SUBJECT),
        notes=(
            f"{base} holds whole pictures, not faces; published results are on face crops",
            *counted(len(copies), f"{{}} pictures are byte copies of others{shown}, and are left out"),
            *((OTHER_COUNTS.format(", ".join(map(str, counts))),) if blocks and counts not in TESTS else ()),
        ),
        options={"source_frames": "whole pictures"},
    )


def _pictures(base: Path) -> list[Path]:
    """List the pictures of the folder and of the folders in it; names with a leading zero first, as they are kept."""
    folders = [base, *(entry for _, entry in sorted(subfolders([base]).items()) if entry.is_dir())]
    return sorted((path for folder in folders for path in pictures_of(folder)), key=lambda path: (path.name, str(path)))


def _still(picture: Path, base: Path, emotions: Emotions) -> RawClip:
    name = PICTURE.fullmatch(picture.name)
    word = CODES.get(name[2].upper()) if name else None
    if name is None or word is None:
        expected = f"a name such as 01_AN_mr_005.jpg, with a code out of {', '.join(CODES)}"
        do = "The label is in the name: restore the names of the release, and move other pictures elsewhere."
        raise DataError(message(picture, expected=expected, got=repr(picture.name), do=do))
    folder = canonical_name(picture.parent.name)
    if picture.parent != base and folder in emotions.names and folder != word:
        do = "Put the picture into the folder of its class."
        raise DataError(message(picture, expected=f"a picture of {folder}", got=f"one of {word} by its name", do=do))
    person, source = f"{int(name[1]):02d}", f"{int(name[1]):02d}_{name[2].upper()}_{name[3]}"
    return RawClip(
        key=f"{source}_{name[4]}",
        label=emotions.index(word),
        partition="all",
        picture=picture,
        subject=person,
        source=source,
    )


def _path(clip: RawClip) -> Path:
    assert isinstance(clip.picture, Path)
    return clip.picture


def _refuse_unlike(first: RawClip, second: RawClip) -> None:
    """Raise DataError unless two pictures with one name, but for leading zeros, hold the same bytes."""
    one, other = _path(first), _path(second)
    try:
        same = read_small(one, most=MAX_FILE_BYTES) == read_small(other, most=MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(message(other, expected="a readable picture", got=str(error), do="Unpack it again.")) from error
    if not same:
        do = "Unpack the pictures again."
        raise DataError(message(other, expected=f"a byte copy of {one}", got="another picture", do=do))
