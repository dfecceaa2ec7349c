"""Prefetch whole shards in the background, in the order in which an epoch first uses them.

Each worker of a node prefetches a part of the shards. It never evicts shards that the node still needs in this epoch;
when the cache is full, it waits until other shards are past their last use. So if the cache holds all shards, every
byte is fetched once.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait

from dfer.errors import DferError
from dfer.store.cached_shard import CachedShard, Evicted
from dfer.store.chunks import runs
from dfer.store.format import CHUNK, ShardInfo, num_chunks
from dfer.store.remote import RANGE_BYTES
from dfer.store.shards import Shards
from dfer.store.threads import Threads

MAX_CONCURRENT = 4
"""Most concurrent range reads; few, to leave bandwidth for the clips that are read now."""


class ReadAhead:
    """Prefetches this worker's part of the shards. It ignores errors: the reader meets them again and can name the
    clip."""

    def __init__(self, store: Shards) -> None:
        self._store = store
        self._threads = Threads(MAX_CONCURRENT, name="ahead")
        self._lock = threading.Lock()
        self._running: list[Future[None]] = []
        self._ranges: Iterator[tuple[CachedShard, ShardInfo, int, int]] = iter(())
        self._todo: list[ShardInfo] = []
        self._last_use: dict[str, int] = {}
        self._ends: list[int] = []
        self._step, self._blocked = 0, False

    def begin(self, todo: Sequence[ShardInfo], last_use: dict[str, int], step: int) -> None:
        """Start a new schedule at `step`. todo: shards in order of use; last_use: step of last use by SHA-256, of all
        shards of the node."""
        with self._lock:
            self._step, self._last_use, self._ends = step, last_use, sorted(last_use.values())
            self._todo, self._ranges = list(reversed(todo)), iter(())
        self._store.cache.keep = self._needed
        self._start()

    def reach(self, step: int) -> None:
        """Record the epoch's current step; look for room again when a shard is past its last use."""
        used_up = bisect_left(self._ends, step) > bisect_left(self._ends, self._step)
        self._step = step
        if used_up:
            self._store.cache.forget_refusals()
        if used_up and self._blocked:
            self._start()

    def finish(self) -> None:
        """Wait until every shard for which there is room is fetched."""
        wait(self._running)

    def _start(self) -> None:
        self._blocked = False
        self._running = [future for future in self._running if not future.done()]
        self._running += [self._threads.submit(self._work) for _ in range(MAX_CONCURRENT)]

    def _needed(self) -> frozenset[str]:
        return frozenset(sha256 for sha256, step in self._last_use.items() if step >= self._step)

    def _work(self) -> None:
        while (part := self._next()) is not None:
            file, shard, first, last = part
            try:
                self._store.complete(file, shard, first, last)
            except (Evicted, DferError, OSError):
                continue

    def _next(self) -> tuple[CachedShard, ShardInfo, int, int] | None:
        with self._lock:
            while (part := next(self._ranges, None)) is None:
                if not self._todo or self._blocked:
                    return None
                shard = self._todo[-1]
                file = self._store.cache.shard(shard.sha256, shard.bytes)
                if file is None:
                    self._blocked = True
                    return None
                self._todo.pop()
                self._ranges = _ranges(file, shard)
            return part


def _ranges(file: CachedShard, shard: ShardInfo) -> Iterator[tuple[CachedShard, ShardInfo, int, int]]:
    for first, last in runs(range(num_chunks(shard.bytes)), longest=RANGE_BYTES // CHUNK):
        yield file, shard, first, last
