"""Read CK+48, faces of 48 pixels cut out of the last three frames of CK+'s labelled sequences: seven emotions.

CK+48/anger/S010_004_00000017.png       a folder a word; keys and folds are those of `ckplus`
"""

from pathlib import Path

from dfer.emotions import CK7, Emotions
from dfer.errors import DataError, message
from shards.sources.ckplus import PICTURE, protocols, still
from shards.sources.clips import RawClip, RawSet
from shards.sources.layout import locate, require
from shards.sources.stills import class_folders, media_of, pictures_of

ROOTS = ("CK+48", "CK+48/CK+48", "ck+48")


def read(raw: Path) -> RawSet:
    """Read all stills; key `S010_004_00000017`, one partition `all`. Raises DataError."""
    base = locate(raw, ROOTS)
    if base is None:
        base = require(raw, [*ROOTS, "anger"], dataset="CK+48", what="class folders").parent
    emotions, found = Emotions(names=CK7), dict[str, RawClip]()
    for folder, word in class_folders(base, emotions, dataset="CK+48").items():
        for picture in pictures_of(folder):
            clip = still(_key(picture), word, picture, emotions)
            if clip.key in found:
                got = f"{found[clip.key].picture} as well"
                do = "Unpack the pictures again."
                raise DataError(message(picture, expected="every picture in one class", got=got, do=do))
            found[clip.key] = clip
    if not found:
        do = "Unpack the pictures again."
        raise DataError(message(base, expected="at least one picture", got="none", do=do))
    clips = tuple(found.values())
    return RawSet(
        dataset="ckplus48",
        emotions=emotions,
        clips=clips,
        media=media_of(clip.picture for clip in clips if isinstance(clip.picture, Path)),
        protocols=protocols(clips, emotions),
        options={"source_frames": "faces of 48 pixels"},
    )


def _key(picture: Path) -> str:
    name = PICTURE.fullmatch(picture.name)
    if name is None:
        expected = "a name such as S010_004_00000017.png: person, sequence, frame"
        do = "Person and sequence are read from the name; restore the names of the release."
        raise DataError(message(picture, expected=expected, got=repr(picture.name), do=do))
    return f"{name[1].upper()}_{name[2]}_{name[3]}"
