"""Whole shards fetched in the background, in the order in which an epoch first uses them.

Every worker of a node takes its share of them. What the node still needs in this epoch is never evicted for it; when
there is no room it waits for shards whose last use is past. So with room for all, every byte comes once.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait

from dfer.errors import DferError
from dfer.store.cached_shard import CachedShard, Gone
from dfer.store.chunks import runs
from dfer.store.format import CHUNK, ShardInfo, num_chunks
from dfer.store.remote import PART
from dfer.store.shards import Store
from dfer.store.threads import Threads

AT_ONCE = 4
"""Parts under way; few, so that those of the clips that are read now come through."""


class ReadAhead:
    """The shards this worker completes. Errors are left to who reads the clips: they know which clip it is about."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads(AT_ONCE, name="ahead")
        self._lock = threading.Lock()
        self._running: list[Future[None]] = []
        self._parts: Iterator[tuple[CachedShard, ShardInfo, int, int]] = iter(())
        self._todo: list[ShardInfo] = []
        self._last_use: dict[str, int] = {}
        self._ends: list[int] = []
        self._step, self._blocked = 0, False

    def begin(self, todo: Sequence[ShardInfo], last_use: dict[str, int], step: int) -> None:
        """A new schedule from `step` on. todo: in order of use; last_use: step by SHA-256, of all the node's shards."""
        with self._lock:
            self._step, self._last_use, self._ends = step, last_use, sorted(last_use.values())
            self._todo, self._parts = list(reversed(todo)), iter(())
        self._store.cache.keep = self._needed
        self._start()

    def reach(self, step: int) -> None:
        """Note how far the epoch is; look for room again when another shard was used up."""
        used_up = bisect_left(self._ends, step) > bisect_left(self._ends, self._step)
        self._step = step
        if used_up:
            self._store.cache.forget_refusals()
        if used_up and self._blocked:
            self._start()

    def finish(self) -> None:
        """Wait until all is here that there is room for."""
        wait(self._running)

    def _start(self) -> None:
        self._blocked = False
        self._running = [future for future in self._running if not future.done()]
        self._running += [self._threads.submit(self._work) for _ in range(AT_ONCE)]

    def _needed(self) -> frozenset[str]:
        return frozenset(sha256 for sha256, step in self._last_use.items() if step >= self._step)

    def _work(self) -> None:
        while (part := self._next()) is not None:
            file, shard, first, last = part
            try:
                self._store.remote.complete(file, shard, self._store.hashes(shard), first, last, shard.path)
            except (Gone, DferError, OSError):
                continue

    def _next(self) -> tuple[CachedShard, ShardInfo, int, int] | None:
        with self._lock:
            while (part := next(self._parts, None)) is None:
                if not self._todo or self._blocked:
                    return None
                shard = self._todo[-1]
                file = self._store.cache.shard(shard.sha256, shard.bytes)
                if file is None:
                    self._blocked = True
                    return None
                self._todo.pop()
                self._parts = _parts(file, shard)
            return part


def _parts(file: CachedShard, shard: ShardInfo) -> Iterator[tuple[CachedShard, ShardInfo, int, int]]:
    for first, last in runs(range(num_chunks(shard.bytes)), longest=PART // CHUNK):
        yield file, shard, first, last
