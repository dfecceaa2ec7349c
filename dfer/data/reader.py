"""Handle a request in a worker process: fetch the clips' frames, decode them, and prefetch the next requests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from dfer.data.clips import ClipSet
from dfer.data.decode import Decoder, seen
from dfer.data.geometry import Picture
from dfer.data.plan import Plan
from dfer.data.shared_memory import empty, shared
from dfer.data.views import Show, Slot, View, distinct, slots_of
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
    """Frames of a clip to read: its views, and the positions of all of them, each once. pending: the fetch of their
    bytes, if the store is remote."""

    views: list[View]
    positions: Ids
    pending: Pending | None


class Reader(Dataset[Parts | DferError]):
    """Reads and decodes the clips of one request; runs in a worker process or in the training process."""

    def __init__(
        self,
        clips: ClipSet,
        plan: Plan,
        show: Show,
        *,
        replace_bad: bool = False,
        skip_bad: bool = False,
        keys: str = "micro_batch",
    ) -> None:
        """show: gives the views of a clip. replace_bad: read another clip instead of one that cannot be read; skip_bad:
        return padding instead of it. keys: configuration keys that determine a batch's size, for messages."""
        self._clips, self._plan, self._show, self._keys = clips, plan, show, keys
        self._size, self._decode = show.config.size, Decoder()
        self._replace_bad, self._skip_bad = replace_bad, skip_bad
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
        views, side = self._show.rows, self._size
        shape = len(ids), views, self._show.config.frames, side, side, 3
        whole = empty(shape, keys=self._keys)
        frames, bad = whole.numpy(), []
        for row, clip in enumerate(wanted):
            if clip is None:
                frames[row] = 0
                continue
            try:
                self._read(int(ids[row]), clip, frames[row])
            except DataError as error:
                if self._skip_bad:
                    key = self._clips.key(int(ids[row]))
                    bad.append(BadClip(key=key, epoch=epoch, cause=str(error), replaced_by=""))
                    frames[row], ids[row] = 0, PADDING
                    continue
                if not self._replace_bad:
                    raise
                ids[row], found = self._replaced(int(ids[row]), epoch, frames[row], error)
                bad.append(found)
        rows = ids.repeat(views)
        return {
            "frames": whole.flatten(0, 1).permute(0, 1, 4, 2, 3),
            "labels": shared(torch.from_numpy(np.where(rows == PADDING, 0, self._clips.labels[rows])), keys=self._keys),
            "index": shared(torch.from_numpy(rows), keys=self._keys),
            "bad": bad,
        }

    def _read(self, index: int, wanted: _Wanted, out: NDArray[np.uint8]) -> None:
        """Decode the sampled frames of a clip into its views, `out` [V T H W C]."""
        where, slots = self._clips.where(index), slots_of(wanted.views)
        # A frame of the wanted size of which nothing is changed is decoded where it belongs.
        direct = len(wanted.views) == 1 and not wanted.views[0].seen(self._size, self._size)
        jpegs = self._clips.read(index, wanted.positions, wanted.pending)
        for at, jpeg in zip(wanted.positions.tolist(), jpegs, strict=True):
            told, first = f"{where}, frame {at}", out[slots[at][0]] if direct else None
            self._place(self._decode(jpeg, where=told, out=first), wanted.views, slots[at], out, where=told)

    def _place(
        self, picture: Picture, views: list[View], slots: list[Slot], out: NDArray[np.uint8], *, where: str
    ) -> None:
        """Put a decoded frame into its slots of `out` [V T H W C], as each view sees it."""
        done: dict[int, Slot] = {}
        for slot in slots:
            view = slot[0]
            if view in done:
                out[slot] = out[done[view]]
                continue
            done[view], steps = slot, views[view].seen(*picture.shape[:2])
            shown = seen(steps, picture, where=where) if steps else picture
            if not np.may_share_memory(shown, out):
                out[slot] = shown

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
        views = self._show.views(self._clips.num_frames(index), index=index, epoch=epoch)
        positions = distinct(views)
        return _Wanted(views, positions, self._clips.prefetch(index, positions))

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
            share if self._show.config.read_ahead else [],
            {shards[number].sha256: int(last[number]) for number in used},
            start,
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
