"""Read AFEW 7.0 (Dhall et al., ICMI 2017): clips of aligned face frames, seven emotions; the validation part tests.

Train_AFEW/Angry/013736360.avi                                       the label of a clip is its folder
Train_AFEW/AlignedFaces_LBPTOP_Points/Faces/013736360/001.jpg        its faces
Val_AFEW/..., Val_AFEW/AlignedFaces_LBPTOP_Points_Val/Faces/...      the same; or train_afew, train, val_afew, val
Where there is no Faces folder, frames lie in Train_AFEW/Angry/013736360/.
"""

import re
from pathlib import Path

from dfer.emotions import BASIC7, Emotions, canonical_name
from dfer.errors import DataError, message
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.layout import locate, require, subfolders
from shards.sources.splits import check_disjoint, check_some

PARTS = {"train": ("Train_AFEW", "train_afew", "train", "Train"), "val": ("Val_AFEW", "val_afew", "val", "Val")}
FACES = (
    "AlignedFaces_LBPTOP_Points{}/Faces",
    "AlignedFaces_LBPTOP_Points{}",
    "Faces",
)
SUFFIX = {"train": "", "val": "_Val"}
CLIP = re.compile(r"([0-9]{9})(?:\.avi)?", re.IGNORECASE)


def read(raw: Path) -> RawSet:
    """Read all clips; key: their nine digits, partitions `train` and `val`. Raises DataError."""
    emotions, rows, folders = Emotions(names=BASIC7), dict[str, dict[str, int]](), dict[str, Path]()
    kinds = set()
    for part, names in PARTS.items():
        base = require(raw, names, dataset="AFEW", what=f"{part} clips")
        rows[part], own = _labels(base, emotions)
        faces = locate(base, [form.format(SUFFIX[part]) for form in FACES])
        kinds.add("aligned faces" if faces else "frames of the class folders")
        folders |= subfolders([faces]) if faces else own
    check_disjoint(rows, where=str(raw))
    clips = tuple(
        RawClip(key=key, label=label, partition=part, folder=folders.get(key))
        for part, labels in rows.items()
        for key, label in labels.items()
    )
    train, test = RawSubset(partitions=("train",)), RawSubset(partitions=("val",))
    source = "Dhall et al., ICMI 2017: the validation part tests, the labels of the test part are not public"
    return RawSet(
        dataset="afew",
        emotions=emotions,
        clips=clips,
        protocols={"published": RawProtocol(source=source, folds=(RawFold(train=train, test=test),))},
        options={"source_frames": " and ".join(sorted(kinds))},
    )


def _labels(base: Path, emotions: Emotions) -> tuple[dict[str, int], dict[str, Path]]:
    """Read the class folders: labels by clip, and the folders of frames in them. Other folders are skipped."""
    labels: dict[str, int] = {}
    frames: dict[str, Path] = {}
    homes: dict[str, str] = {}
    for name, folder in sorted(subfolders([base]).items()):
        word = canonical_name(name)
        if word not in emotions.names or not folder.is_dir():
            continue
        for entry_name, entry in sorted(subfolders([folder]).items()):
            clip = CLIP.fullmatch(entry_name)
            if clip is None:
                continue
            if homes.setdefault(clip[1], name) != name:
                got = f"{clip[1]} in {homes[clip[1]]} and in {name}"
                do = "Some copies of AFEW hold clips under two emotions; use the folders of the release."
                raise DataError(message(base, expected="every clip in one class", got=got, do=do))
            labels[clip[1]] = emotions.index(word)
            if entry.is_dir():
                frames[clip[1]] = entry
    return check_some(labels, where=base), frames
