"""Annotators' votes as training targets.

Letters: N clips, K classes of the run, M classes of the shards.
"""

import numpy as np
from numpy.typing import NDArray

from dfer.data.clips import ClipSet
from dfer.emotions import Emotions, canonical_name

Floats = NDArray[np.float32]


def vote_shares(clips: ClipSet, emotions: Emotions) -> tuple[Floats, int]:
    """Return the class probabilities of clips, float [N K], and the number of clips that have a label instead.

    Votes for classes that the run does not select are left out, and the others divided by their sum. A clip without
    votes, or without any for these classes, gets probability 1 for its label.
    """
    votes = _votes(clips)[clips.ids][:, _columns(clips, emotions)]
    sums = votes.sum(axis=1, keepdims=True)
    alone = ~(sums[:, 0] > 0)  # also true for NaN, which stands for no votes
    shares = np.divide(votes, sums, out=np.zeros_like(votes), where=~alone[:, None])
    shares[alone, clips.labels[alone]] = 1
    return shares.astype(np.float32), int(alone.sum())


def _votes(clips: ClipSet) -> NDArray[np.float64]:
    """Read the votes of all rows of the clips' table, float [rows M], NaN where there are none."""
    num_classes = len(clips.store.manifest.classes)
    parts = [
        np.full((len(index), num_classes), np.nan) if index.votes is None else index.votes
        for index in clips.store.indexes(clips.table.shards)
    ]
    return np.concatenate([np.empty((0, num_classes)), *parts])


def _columns(clips: ClipSet, emotions: Emotions) -> list[int]:
    """Return the column of each of the run's classes among those of the shards."""
    names = [canonical_name(name) for name in clips.store.manifest.classes]
    return [names.index(name) for name in emotions.names]
