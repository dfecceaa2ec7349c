"""Class-balanced sampling: how often an epoch takes the clips of each class. Pure functions of (labels, seed, epoch).

Letters: N clips, R rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfer.data.order import epoch_order, shuffled

Ids = NDArray[np.int64]
BALANCE = 7
"""Purpose of the random draws, as those in `dfer.data.order`."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Sampling of N clips with weights count^-power, where count is that of a clip's class.

    An epoch has N places. A class of n clips gets n^(1 - power) of them in proportion, the same number in every epoch.
    These take all of its clips as often as they fit, and some of them, drawn anew in every epoch, once more. A clip
    that an epoch may take several times has a row for each time, so that its random draws differ: the first N rows are
    the clips.
    """

    labels: Ids
    power: float

    def rows(self) -> Ids:
        """Return the clip of every row, int64 [R]."""
        more = [np.tile(blocks[0], len(blocks) - 1) for blocks, _ in self._blocks()]
        return np.concatenate([np.arange(len(self.labels)), *more])

    def order(self, *, seed: int, epoch: int) -> Ids:
        """Return the rows that an epoch takes, in their order, int64 [N]."""
        chosen: list[Ids] = []
        for number, (blocks, places) in enumerate(self._blocks()):
            size = len(blocks[0])
            whole, rest = divmod(places, size)
            chosen += blocks[:whole]
            if rest:
                chosen.append(blocks[whole][shuffled(size, (BALANCE, seed, epoch, number))[:rest]])
        rows = np.sort(np.concatenate(chosen))
        return rows[epoch_order(len(rows), seed=seed, epoch=epoch)]

    def _blocks(self) -> Iterator[tuple[list[Ids], int]]:
        """Yield for each class the rows of its clips, once for every time that an epoch may take them, and the number
        of its places."""
        end = len(self.labels)
        for clips, places in self._classes():
            times = max(1, -(-places // len(clips)))
            yield [clips, *np.arange(end, end + (times - 1) * len(clips)).reshape(times - 1, len(clips))], places
            end += (times - 1) * len(clips)

    def _classes(self) -> list[tuple[Ids, int]]:
        """Return the clips of each class that has any, and the number of places that it gets: at most one more or fewer
        than its part of N."""
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        weights = np.array([len(clips) ** (1 - self.power) for clips in members])
        wanted = len(self.labels) * weights / weights.sum()
        places = np.floor(wanted).astype(np.int64)
        short = len(self.labels) - int(places.sum())
        places[np.argsort(places - wanted, kind="stable")[:short]] += 1
        return [(clips, int(count)) for clips, count in zip(members, places, strict=True)]
