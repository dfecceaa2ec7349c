"""Plan a generated tree of stills with a sentence about each (`shards.sources.described`): captioned faces to train a
CLIP on, unlabelled ones whose action units are described, and others to test on. No person is in two of the parts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dfer.emotions import BASIC7
from shards.sources.described import CAPTIONED, HEADER, LABELS, TEST, UNLABELLED
from shards.synthetic.layouts import Clip, Form, Layout

PARTS = (CAPTIONED, UNLABELLED, TEST)
SHARES = (0.42, 0.42, 0.16)


def _nowhere(emotions: list[str], _: np.random.Generator) -> list[tuple[str, str, str]]:
    return [("", "", "")] * len(emotions)


def _arrange(clips: list[Clip]) -> list[Clip]:
    """Number the pictures of each part from 0."""
    taken: Counter[int] = Counter()
    placed = []
    for clip in clips:
        number, part = taken[clip.fold], PARTS[clip.fold - 1]
        taken[clip.fold] += 1
        placed.append(replace(clip, key=f"{part}/{number:05d}", folder=part, name=f"{number:05d}.jpg"))
    return placed


def _splits(clips: Sequence[Clip], _: int) -> dict[str, str | bytes]:
    """Make the list of classes and persons, which names no class of the unlabelled faces."""
    rows = (
        f"{clip.folder}/{clip.name},{'' if clip.folder == UNLABELLED else clip.emotion},person{clip.identity}\n"
        for clip in clips
    )
    return {LABELS: "".join((f"{','.join(HEADER)}\n", *rows))}


DESCRIBED = Layout(
    name="described",
    emotions=BASIC7,
    shares=(1 / 7,) * 7,
    fold_shares=SHARES,
    lengths=((1, 1, 1.0),),
    place=_nowhere,
    splits=_splits,
    size=64,
    form=Form(described=True),
    arrange=_arrange,
)
