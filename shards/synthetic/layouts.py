"""Plan the clips and files of a generated data set: DFEW, FERV39k and MAFW here, the others in `stills`.

The plan depends only on (data set, number of clips, seed) and is made before any picture is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dfer.emotions import BASIC7, MAFW11
from dfer.errors import UsageError, message

CLIPS_PER_IDENTITY = 6
SCENES = (
    "Action",
    "Argue",
    "Business",
    "Conflict",
    "Contest",
    "Crime",
    "Crisis",
    "DailyLife",
    "ElegantArt",
    "Experiment",
    "History",
    "Interview",
    "Liveshow",
    "Medicine",
    "OfficialEvent",
    "ScholarReport",
    "School",
    "Social",
    "Speech",
    "Talkshow",
    "Terror",
    "War",
)
FERV39K_WORDS = dict(zip(BASIC7, ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"), strict=True))
# Uneven as in the real sets, but no class is too rare to be learned from a few hundred clips.
SHARES7 = (0.18, 0.16, 0.17, 0.15, 0.13, 0.10, 0.11)
SHARES11 = (0.12, 0.12, 0.11, 0.11, 0.10, 0.08, 0.08, 0.07, 0.08, 0.07, 0.06)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to draw. folder: relative to the tree. name: format of a frame's file name, counted from `first`."""

    index: int
    key: str
    emotion: str
    identity: int
    fold: int
    frames: int
    folder: str
    name: str
    first: int = 1


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the pictures of a set of stills, or of sequences up to an apex, are drawn and written.

    start: intensity of the expression in the first frame, of that in the last one. canvas: width and height of a
    picture in sides of the face. grey: one channel. csv: file that holds all pictures as rows of numbers. described:
    each folder of pictures has a file of what they show.
    """

    start: float = 1.0
    canvas: tuple[float, float] = (1.0, 1.0)
    grey: bool = False
    csv: str = ""
    described: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The raw form of one data set.

    fold_shares: relative sizes of the disjoint folds, which share no identity. lengths: (first, last, probability)
    ranges of the number of frames. place: makes the clips' keys, folders and file names. splits: makes the split files
    and their content, of the clips and the side of a face in pixels. size: that side, unless another one is asked for.
    form: of stills; None for clips in folders of their own, with the motion of `clip_motion`. arrange: completes the
    planned clips.
    """

    name: str
    emotions: tuple[str, ...]
    shares: tuple[float, ...]
    fold_shares: tuple[float, ...]
    lengths: tuple[tuple[int, int, float], ...]
    place: Callable[[list[str], np.random.Generator], list[tuple[str, str, str]]]
    splits: Callable[[Sequence[Clip], int], dict[str, str | bytes]]
    size: int = 224
    form: Form | None = None
    arrange: Callable[[list[Clip]], list[Clip]] = list


def apportion(total: int, *, shares: Sequence[float], least: int = 1) -> list[int]:
    """Divide `total` into whole numbers near `shares`, none below `least`, by the largest-remainder method."""
    spare = total - least * len(shares)
    exact = np.array(shares) / sum(shares) * total - least
    exact = np.clip(exact, 0, None) * (spare / max(np.clip(exact, 0, None).sum(), 1e-9))
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: spare - counts.sum()]:
        counts[i] += 1
    return [int(count) + least for count in counts]


def draw_frames(layout: Layout, *, rng: np.random.Generator) -> int:
    """Draw a clip length from the layout's ranges."""
    first, last, _ = layout.lengths[int(rng.choice(len(layout.lengths), p=[p for *_, p in layout.lengths]))]
    return int(rng.integers(first, last + 1))


def plan_clips(layout: Layout, *, clips: int, seed: int) -> list[Clip]:
    """Plan all clips of the data set, in the order of their numbers. Raises UsageError when `clips` is too small."""
    least = len(layout.emotions) * len(layout.fold_shares)
    if clips < least:
        each = f"one of each of {len(layout.emotions)} classes in each of {len(layout.fold_shares)} parts"
        raise UsageError(
            message(
                "--clips", expected=f"at least {least} for {layout.name} ({each})", got=str(clips), do="Ask for more."
            )
        )
    rng = np.random.default_rng([seed, 0])
    emotions: list[str] = []
    folds: list[int] = []
    identities: list[int] = []
    for fold, count in enumerate(apportion(clips, shares=layout.fold_shares, least=len(layout.emotions)), start=1):
        per_class = apportion(count, shares=layout.shares)
        block = [e for e, n in zip(layout.emotions, per_class, strict=True) for _ in range(n)]
        emotions += [block[i] for i in rng.permutation(count)]
        folds += [fold] * count
        people = max(2, round(count / CLIPS_PER_IDENTITY))
        first = max(identities, default=-1) + 1
        identities += (first + rng.permutation(np.arange(count) % people)).tolist()
    places = layout.place(emotions, rng)
    planned = [
        Clip(
            index=i,
            key=places[i][0],
            emotion=emotions[i],
            identity=identities[i],
            fold=folds[i],
            frames=draw_frames(layout, rng=rng),
            folder=places[i][1],
            name=places[i][2],
        )
        for i in range(clips)
    ]
    return layout.arrange(planned)


def place_dfew(emotions: list[str], _: np.random.Generator) -> list[tuple[str, str, str]]:
    """DFEW numbers its clips from 1 and repeats the number in the frame names."""
    ids = [f"{i:05d}" for i in range(1, len(emotions) + 1)]
    return [(str(int(i)), f"Clip/clip_224x224/{i}", f"{i}_{{:05d}}.jpg") for i in ids]


def place_ferv39k(emotions: list[str], rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """FERV39k numbers its clips from 0 in each folder of a scene and an emotion."""
    taken: dict[str, int] = {}
    places = []
    for emotion in emotions:
        parent = f"{SCENES[int(rng.integers(len(SCENES)))]}/{FERV39K_WORDS[emotion]}"
        key = f"{parent}/{taken.setdefault(parent, 0):04d}"
        taken[parent] += 1
        places.append((key, f"2_ClipsforFaceCrop/{key}", "{:02d}.jpg"))
    return places


def place_mafw(emotions: list[str], rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """MAFW's numbers rise with gaps."""
    ids = [f"{i:05d}" for i in 18 + np.cumsum(rng.choice((1, 1, 1, 2, 3), len(emotions)))]
    return [(i, f"data/faces/{i}", "{:05d}.jpg") for i in ids]


def splits_dfew(clips: Sequence[Clip], _: int) -> dict[str, str | bytes]:
    """Make the CSV files of five folds; the test clips of one fold are training clips of the others."""
    out: dict[str, str | bytes] = {}
    for fold in range(1, 6):
        for part, chosen in parts(clips, fold=fold).items():
            rows = "".join(f"{clip.key},{BASIC7.index(clip.emotion) + 1}\n" for clip in chosen)
            out[f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"] = f"video_name,label\n{rows}"
    return out


def splits_ferv39k(clips: Sequence[Clip], _: int) -> dict[str, str | bytes]:
    """Make the files of the one split: no header, separated by a blank although the files are named .csv."""
    chosen = {"train": [c for c in clips if c.fold == 1], "test": [c for c in clips if c.fold == 2]}
    return {
        f"4_setups/All_scenes/{part}_All.csv": "".join(f"{c.key} {FERV39K_WORDS[c.emotion]}\n" for c in of)
        for part, of in chosen.items()
    }


def splits_mafw(clips: Sequence[Clip], _: int) -> dict[str, str | bytes]:
    """Make the files of five folds, with lines such as `00025.mp4 anger`, the last line without a newline."""
    out: dict[str, str | bytes] = {}
    for fold in range(1, 6):
        for part, chosen in parts(clips, fold=fold).items():
            lines = "\n".join(f"{clip.key}.mp4 {clip.emotion}" for clip in chosen)
            out[f"Train & Test Set/single/no_caption/set_{fold}/{part}.txt"] = lines
    return out


def parts(clips: Sequence[Clip], *, fold: int) -> dict[str, list[Clip]]:
    """Split into the clips of `fold` as test and all others as train."""
    return {"train": [c for c in clips if c.fold != fold], "test": [c for c in clips if c.fold == fold]}


LENGTHS = ((8, 15, 0.05), (16, 32, 0.95))
LAYOUTS: dict[str, Layout] = {
    "dfew": Layout(
        name="dfew",
        emotions=BASIC7,
        shares=SHARES7,
        fold_shares=(1, 1, 1, 1, 1),
        lengths=LENGTHS,
        place=place_dfew,
        splits=splits_dfew,
    ),
    "ferv39k": Layout(
        name="ferv39k",
        emotions=BASIC7,
        shares=SHARES7,
        fold_shares=(4, 1),
        lengths=((8, 15, 0.10), (16, 32, 0.85), (33, 47, 0.05)),
        place=place_ferv39k,
        splits=splits_ferv39k,
    ),
    "mafw": Layout(
        name="mafw",
        emotions=MAFW11,
        shares=SHARES11,
        fold_shares=(1, 1, 1, 1, 1),
        lengths=LENGTHS,
        place=place_mafw,
        splits=splits_mafw,
    ),
}
