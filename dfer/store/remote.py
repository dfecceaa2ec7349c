"""Read shards of a remote store: fetch ranges in parallel, verify them on arrival, and keep them in the cache."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dfer.errors import DataError, StorageError, message
from dfer.storage import attempts_of
from dfer.store.cache import Cache
from dfer.store.cached_shard import UNSURE, VERIFIED, CachedShard, Evicted
from dfer.store.chunks import CHANGED, Bytes, Span, chunks_of, first_wrong, runs, span_of, wrong_chunk
from dfer.store.format import CHUNK, ShardInfo
from dfer.store.ranges import BeyondTheEnd, Source
from dfer.store.threads import Threads

RANGE_BYTES = 8 * 2**20
"""Largest range read when whole shards are fetched."""
DEMAND_BYTES = 2 * 2**20
"""Largest range read for frames on demand: larger reads are divided, to be fetched and hashed in parallel."""
MAX_CONCURRENT = 16
"""Most concurrent range reads of a process for the clips that it reads now and next."""
EVICTED_TRIES = 3


class ShortBody(Exception):
    """The store returned fewer bytes than requested."""


class WrongHash(Exception):
    """A fetched chunk does not have the hash of the build."""

    def __init__(self, chunk: int, data: Bytes) -> None:
        super().__init__(chunk)
        self.chunk, self.data = chunk, bytes(data)


@dataclass(frozen=True)
class Pending:
    """Range reads in progress, by first chunk. file: the cached shard that they fill; None: in memory only."""

    file: CachedShard | None
    reads: "dict[int, Future[Bytes | None]]" = field(default_factory=dict)

    def wait(self) -> list[tuple[int, Bytes]]:
        """Wait for all reads; returns (start in the shard, bytes) of those kept in memory. Raises their first error."""
        errors = [error for read in self.reads.values() if (error := read.exception())]
        if errors:
            raise errors[0]
        arrived = ((first * CHUNK, read.result()) for first, read in self.reads.items())
        return [(start, data) for start, data in arrived if data is not None]


class RemoteShards:
    """Reader of a source's shards for one process.

    remedy: returns a more specific remedy for wrong bytes, or nothing. fetched: bytes read over the network.
    """

    def __init__(self, source: Source, cache: Cache, *, remedy: Callable[[], str]) -> None:
        self._source, self.cache, self._remedy = source, cache, remedy
        self._threads = Threads(MAX_CONCURRENT, name="fetch")
        self._lock, self._own = threading.Lock(), threading.local()
        self.fetched = 0

    def prefetch(
        self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str, cached: bool = True
    ) -> Pending:
        """Start to fetch those chunks of the spans that are not in the cache."""
        chunks = chunks_of(spans)
        file = self.cache.shard(shard.sha256, shard.bytes) if cached else None
        if file is not None:
            states = file.states(chunks[0], chunks[-1] - chunks[0] + 1)
            chunks = [c for c in chunks if states[c - chunks[0] : c - chunks[0] + 1] != bytes([VERIFIED])]
        wanted = runs(chunks, longest=DEMAND_BYTES // CHUNK)
        return Pending(file, {run[0]: self._start(file, shard, hashes, run, where) for run in wanted})

    def read(
        self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str, pending: Pending | None = None
    ) -> list[Bytes]:
        """Return the bytes of the spans, in the same order. Raises DataError, StorageError."""
        for attempt in range(EVICTED_TRIES + 1):
            if pending is None:
                cached = attempt < EVICTED_TRIES
                pending = self.prefetch(shard, hashes, spans, where=where, cached=cached)
            try:
                arrived = pending.wait()
                if pending.file is None:
                    return [_cut(arrived, at, size) for at, size in spans]
                with pending.file.held():
                    pending.file.touch()
                    return [pending.file.read(at, size) for at, size in spans]
            except Evicted:  # by another process that needed room
                pending = None
        raise AssertionError("the last attempt does not use the cache, so nothing can be evicted")

    def complete(self, file: CachedShard, shard: ShardInfo, hashes: bytes, first: int, last: int, where: str) -> None:
        """Fetch those of the chunks first..last that are not in the cache. Raises DataError, StorageError, Evicted."""
        with file.held(), file.exclusive(first, last):
            states = bytearray(file.states(first, last - first + 1))
            for number in [n for n, state in enumerate(states) if state == UNSURE]:
                start, end = span_of(first + number, first + number, shard.bytes)
                if first_wrong(file.read(start, end - start), first + number, hashes) is None:
                    file.set_verified(first + number, 1)
                    states[number] = VERIFIED
            absent = [first + n for n, state in enumerate(states) if state != VERIFIED]
            for run in runs(absent, longest=RANGE_BYTES // CHUNK):
                file.write(run[0], self.fetch(shard, hashes, *run, where, self._scratch()))

    def _start(
        self, file: CachedShard | None, shard: ShardInfo, hashes: bytes, run: tuple[int, int], where: str
    ) -> "Future[Bytes | None]":
        def work() -> Bytes | None:
            if file is None:
                return self.fetch(shard, hashes, *run, where)
            self.complete(file, shard, hashes, *run, where)
            return None

        return self._threads.submit(work)

    def fetch(
        self, shard: ShardInfo, hashes: bytes, first: int, last: int, where: str, memory: bytearray | None = None
    ) -> Bytes:
        """Fetch and verify the chunks first..last from the store, with retries."""
        start, end = span_of(first, last, shard.bytes)

        def work() -> Bytes:
            try:
                data: Bytes = self._source.read_range(shard.path, start, end, memory)
            except BeyondTheEnd:
                data = b""
            with self._lock:
                self.fetched += len(data)
            if len(data) != end - start:
                raise self._wrong_length(shard, len(data), end - start)
            wrong = first_wrong(data, first, hashes)
            if wrong is not None:
                raise WrongHash(wrong, data[(wrong - first) * CHUNK : (wrong - first + 1) * CHUNK])
            return data

        with self._source.wrap_errors(shard.path):
            try:
                return self._source.retry.call(work)
            except WrongHash as error:
                raise wrong_chunk(
                    where,
                    shard,
                    error.chunk,
                    error.data,
                    hashes,
                    attempts=attempts_of(error),
                    do=self._remedy() or CHANGED,
                ) from error
            except FileNotFoundError as error:
                if do := self._remedy():
                    where, expected = self._source.where(shard.path), "a file of the shard folder"
                    raise DataError(message(where, expected=expected, got="no such file", do=do)) from error
                raise

    def _scratch(self) -> bytearray:
        """Return this thread's buffer for a range on its way into the cache."""
        if not hasattr(self._own, "memory"):
            self._own.memory = bytearray(RANGE_BYTES)
        memory: bytearray = self._own.memory
        return memory

    def _wrong_length(self, shard: ShardInfo, got: int, wanted: int) -> Exception:
        """Make the error for an answer of the wrong length. A truncated answer is transient; a file of another size, or
        a server without range requests, is permanent."""
        if got == shard.bytes > wanted:
            do = "The server does not support Range requests: use one that does, or copy the shards to a disk."
            expected = f"the {wanted:,} requested bytes"
            return StorageError(message(self._source.where(shard.path), expected=expected, got="the whole file", do=do))
        try:
            size = self._source.size(shard.path)
        except Exception as error:
            return error
        if size != shard.bytes:
            return other_size(self._source.where(shard.path), shard, size, do=self._remedy())
        return ShortBody(f"{got:,} of {wanted:,} bytes")


def other_size(where: str, shard: ShardInfo, got: int, *, do: str = "") -> DataError:
    """Make the error for a shard of another size than in the manifest."""
    do = do or "The copy is incomplete or the file was changed: copy it again or build the shards again."
    return DataError(message(where, expected=f"{shard.bytes} bytes as the manifest says", got=str(got), do=do))


def _cut(parts: Sequence[tuple[int, Bytes]], at: int, size: int) -> Bytes:
    """Take `size` bytes at `at` from (start, bytes) pieces in order, without a copy if one piece has them all."""
    found = [
        memoryview(data)[max(at - start, 0) : at + size - start]
        for start, data in parts
        if start < at + size and at < start + len(data)
    ]
    return found[0] if len(found) == 1 else b"".join(found)
