"""Handle a request in a worker process: fetch the clips' frames, decode them, and prefetch the next requests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from dfer.data.clips import ClipSet
from dfer.data.decode import decode
from dfer.data.plan import Plan
from dfer.data.sampling import clip_rng, shuffled, test_frames, train_frames
from dfer.data.shared_memory import empty, shared
from dfer.errors import DataError, DferError
from dfer.recognition import PADDING, BadClip
from dfer.store.ahead import ReadAhead
from dfer.store.remote import Pending

Ids = NDArray[np.int64]
Request = tuple[int, int, int]
"""Epoch, its first step since the run was started or resumed, and the number of a micro-batch in the epoch."""
Parts = dict[str, Any]
LOOK_AHEAD = 2
"""Number of a worker's next requests whose frames are fetched while one is decoded."""


@dataclass(frozen=True)
class _Wanted:
    """Frames of a clip to read, by position. pending: the fetch of their bytes, if the store is remote."""

    positions: Ids
    pending: Pending | None


class Reader(Dataset[Parts | DferError]):
    """Reads and decodes the clips of one request; runs in a worker process or in the training process."""

    def __init__(
        self,
        clips: ClipSet,
        plan: Plan,
        *,
        frames: int,
        size: int,
        replace_bad: bool = False,
        read_ahead: bool = True,
        keys: str = "micro_batch",
        draws: bool = True,
        shuffle: bool = False,
    ) -> None:
        """keys: configuration keys that determine the size of a batch, for messages. draws: whether training draws
        frames at random. shuffle: whether the frames of each clip are put into a random order."""
        self._clips, self._plan = clips, plan
        self._frames, self._size, self._keys = frames, size, keys
        self._replace_bad, self._reads_ahead, self._draws = replace_bad, read_ahead, plan.train and draws
        self._shuffle = shuffle
        self._stretch, self._order = (-1, -1), np.empty(0, np.int64)
        self._wanted: dict[int, list[_Wanted | None]] = {}
        self._ahead: ReadAhead | None = None

    def __getitem__(self, request: Request) -> Parts | DferError:
        """Read the fields of a ClipBatch, and `bad`. Errors are returned, not raised: DataLoader would turn them into
        the text of a traceback."""
        epoch, start, number = request
        try:
            self._enter(epoch, start)
            ids = self._plan.ids(self._order, number).copy()
            wanted = self._wanted.pop(number, None) or self._want(ids, epoch)
            self._look_ahead(epoch, number)
            return self._decoded(ids, wanted, epoch)
        except DferError as error:
            return error

    def _decoded(self, ids: Ids, wanted: list[_Wanted | None], epoch: int) -> Parts:
        whole = empty((len(ids), self._frames, self._size, self._size, 3), keys=self._keys)
        frames, bad = whole.numpy(), []
        for row, clip in enumerate(wanted):
            if clip is None:
                frames[row] = 0
                continue
            try:
                self._read(int(ids[row]), clip, frames[row])
            except DataError as error:
                if not self._replace_bad:
                    raise
                ids[row], found = self._replaced(int(ids[row]), epoch, frames[row], error)
                bad.append(found)
        return {
            "frames": whole.permute(0, 1, 4, 2, 3),
            "labels": shared(torch.from_numpy(np.where(ids == PADDING, 0, self._clips.labels[ids])), keys=self._keys),
            "index": shared(torch.from_numpy(ids), keys=self._keys),
            "bad": bad,
        }

    def _read(self, index: int, wanted: _Wanted, out: NDArray[np.uint8]) -> None:
        """Decode the sampled frames of a clip into `out` [T H W C]."""
        distinct, where = wanted.positions, self._clips.where(index)
        jpegs = self._clips.read(index, distinct, wanted.pending)
        for row, (at, jpeg) in enumerate(zip(distinct, jpegs, strict=True)):
            decode(jpeg, size=self._size, where=f"{where}, frame {at}", out=out[row])
        out[len(distinct) :] = out[len(distinct) - 1]  # only the last frame of a short clip is repeated
        if self._shuffle:
            out[:] = out[shuffled(len(out), self._plan.seed, index)]

    def _replaced(self, index: int, epoch: int, out: NDArray[np.uint8], error: DataError) -> tuple[int, BadClip]:
        """Read another clip instead of a bad one. Raises `error` if all candidates are bad too."""
        for other in self._plan.replacements(epoch, index):
            try:
                self._read(other, self._wanted_of(other, epoch), out)
            except DataError:
                continue
            keys = self._clips.key(index), self._clips.key(other)
            return other, BadClip(key=keys[0], epoch=epoch, cause=str(error), replaced_by=keys[1])
        raise error

    def _want(self, ids: Ids, epoch: int) -> list[_Wanted | None]:
        return [None if index == PADDING else self._wanted_of(int(index), epoch) for index in ids]

    def _wanted_of(self, index: int, epoch: int) -> _Wanted:
        positions = np.unique(self._positions(self._clips.num_frames(index), index, epoch))
        return _Wanted(positions, self._clips.prefetch(index, positions))

    def _positions(self, num_frames: int, index: int, epoch: int) -> Ids:
        if self._draws:
            return train_frames(num_frames, self._frames, clip_rng(self._plan.seed, epoch, index))
        return test_frames(num_frames, self._frames)

    def _enter(self, epoch: int, start: int) -> None:
        """On the first request of an epoch, compute its order and start reading ahead."""
        if self._stretch == (epoch, start):
            return
        self._stretch, self._order = (epoch, start), self._plan.order(epoch)
        self._wanted.clear()
        if not self._clips.store.is_local:
            self._ahead = self._ahead or ReadAhead(self._clips.store)
            self._schedule(self._ahead, start)

    def _schedule(self, ahead: ReadAhead, start: int) -> None:
        first, last = self._plan.uses(self._order, start)
        worker, workers = _place()
        world, shards = self._plan.world, self._clips.table.shards
        used = [number for number in np.argsort(first, kind="stable").tolist() if first[number] >= 0]
        in_set = np.bincount(self._clips.shard_of, minlength=len(shards))
        # A shard is fetched whole if at least half of its clips are in this set; of others only the clips are fetched.
        whole = [shards[number] for number in used if 2 * in_set[number] >= shards[number].clips]
        share = whole[world.local_rank * workers + worker :: world.local_size * workers]
        # Also without reading ahead, the cache needs each shard's last use, so that it does not evict it earlier.
        ahead.begin(
            share if self._reads_ahead else [], {shards[number].sha256: int(last[number]) for number in used}, start
        )

    def _look_ahead(self, epoch: int, number: int) -> None:
        """Prefetch this worker's next requests: DataLoader distributes requests to the workers round-robin."""
        if self._clips.store.is_local:
            return
        workers, end = _place()[1], self._plan.numbers(0).stop
        for following in range(number + workers, min(end, number + LOOK_AHEAD * workers + 1), workers):
            if following not in self._wanted:
                self._wanted[following] = self._want(self._plan.ids(self._order, following), epoch)
        if self._ahead is not None:
            self._ahead.reach(number // self._plan.accumulation)
            if number + workers >= end:
                self._ahead.finish()


def _place() -> tuple[int, int]:
    """Return the number of this worker process, and the number of workers."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
