"""The views of a clip: which of its frames, and how each is seen. One in training; in a test as many as
`data.views` says, rows of the batch with the same index."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dfer.data import crops
from dfer.data.config import DataConfig
from dfer.data.geometry import Seen
from dfer.data.sampling import clip_rng, shuffled, test_frames, train_frames

Ids = NDArray[np.int64]
Slot = tuple[int, int]
"""Number of a view, and the time of one of its frames."""


@dataclass(frozen=True)
class View:
    """One view of a clip. positions: of its frames, int64 [T], in any order and repeated. seen: their geometry."""

    positions: Ids
    seen: Seen


@dataclass(frozen=True, kw_only=True)
class Show:
    """How clips are shown: from a clip to its views, in training or in a test. Picklable.

    shuffle: put the frames of each clip into a random order, the same in every view and evaluation.
    """

    config: DataConfig
    seed: int
    train: bool
    shuffle: bool = False

    @property
    def rows(self) -> int:
        """Views of every clip."""
        return 1 if self.train else self.config.num_views

    def views(self, num_frames: int, *, index: int, epoch: int) -> list[View]:
        """The views of a clip with this number of frames; they depend only on (seed, epoch, clip)."""
        found = self._in_order(num_frames, index=index, epoch=epoch)
        if not self.shuffle:
            return found
        order = shuffled(self.config.frames, self.seed, index)
        return [replace(view, positions=view.positions[order]) for view in found]

    def _in_order(self, num_frames: int, *, index: int, epoch: int) -> list[View]:
        if not self.train:
            return fixed_views(self.config, num_frames)
        data = self.config
        seen = crops.drawn(data.augment, size=data.size, seed=self.seed, epoch=epoch, index=index)
        if data.train_frames == "middle":
            return [View(test_frames(num_frames, data.frames, data.sampling), seen)]
        rng = clip_rng(self.seed, epoch, index)
        return [View(train_frames(num_frames, data.frames, rng, data.sampling), seen)]


def fixed_views(data: DataConfig, num_frames: int) -> list[View]:
    """The views of a test clip: its crops within each of its `data.views.clips` samplings, whose places in the segments
    are evenly spaced, at the middle for one."""
    clips, per_frame = (data.views.clips, data.views.crops) if data.views is not None else (1, 1)
    sampled = [test_frames(num_frames, data.frames, data.sampling, at=(n + 0.5) / clips) for n in range(clips)]
    seen = crops.fixed(data.augment, size=data.size, crops=per_frame)
    return [View(positions, each) for positions in sampled for each in seen]


def distinct(views: Sequence[View]) -> Ids:
    """The positions of all views, int64 [N], ascending, each once."""
    return np.unique(np.concatenate([view.positions for view in views]))


def slots_of(views: Sequence[View]) -> dict[int, list[Slot]]:
    """Where each frame of a clip is shown, by its position."""
    slots: dict[int, list[Slot]] = {}
    for number, view in enumerate(views):
        for time, at in enumerate(view.positions.tolist()):
            slots.setdefault(at, []).append((number, time))
    return slots
