"""Shards of a remote store: parts of them are fetched in parallel, checked as they arrive, and kept in the cache."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from dfer.errors import DataError, StorageError, message
from dfer.storage import attempts_of
from dfer.store.cache import Cache
from dfer.store.cached_shard import UNSURE, VERIFIED, CachedShard, Gone
from dfer.store.chunks import CHANGED, Bytes, Span, chunks_of, first_wrong, runs, span_of, wrong_chunk
from dfer.store.format import CHUNK, ShardInfo
from dfer.store.ranges import BeyondTheEnd, Source
from dfer.store.threads import Threads

PART = 8 * 2**20
"""Most bytes asked for at once when whole shards are read."""
DEMAND = 2 * 2**20
"""The same for frames that somebody waits for: larger reads are cut, to come and be hashed side by side."""
AT_ONCE = 16
"""Parts a process has under way for the clips it reads now and next."""
EVICTED_TRIES = 3


class ShortBody(Exception):
    """Fewer bytes came than were asked for."""


class WrongBytes(Exception):
    """A chunk arrived that is not as it was built."""

    def __init__(self, chunk: int, data: Bytes) -> None:
        super().__init__(chunk)
        self.chunk, self.data = chunk, bytes(data)


@dataclass(frozen=True)
class Pending:
    """Parts under way. file: where they go, None where they are only in memory."""

    file: CachedShard | None
    parts: "dict[int, Future[Bytes | None]]" = field(default_factory=dict)

    def wait(self) -> list[tuple[int, Bytes]]:
        """(start in the shard, bytes) of what is only in memory. Raises the first error, once all have ended."""
        errors = [error for part in self.parts.values() if (error := part.exception())]
        if errors:
            raise errors[0]
        arrived = ((first * CHUNK, part.result()) for first, part in self.parts.items())
        return [(start, data) for start, data in arrived if data is not None]


class RemoteShards:
    """The shards of a source as one process reads them.

    why: gives a better remedy for bytes that are wrong, if there is one. fetched: bytes that came over the network.
    """

    def __init__(self, source: Source, cache: Cache, *, why: Callable[[], str]) -> None:
        self._source, self.cache, self._why = source, cache, why
        self._threads = Threads(AT_ONCE, name="fetch")
        self._lock, self._own = threading.Lock(), threading.local()
        self.fetched = 0

    def prefetch(
        self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str, cached: bool = True
    ) -> Pending:
        """Start to fetch what is not here yet of the chunks of some frames."""
        chunks = chunks_of(spans)
        file = self.cache.shard(shard.sha256, shard.bytes) if cached else None
        if file is not None:
            states = file.states(chunks[0], chunks[-1] - chunks[0] + 1)
            chunks = [c for c in chunks if states[c - chunks[0] : c - chunks[0] + 1] != bytes([VERIFIED])]
        wanted = runs(chunks, longest=DEMAND // CHUNK)
        return Pending(file, {run[0]: self._start(file, shard, hashes, run, where) for run in wanted})

    def read(
        self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str, pending: Pending | None = None
    ) -> list[Bytes]:
        """The bytes at these places, in the same order. Raises DataError, StorageError."""
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
            except Gone:  # evicted by another process, for want of room
                pending = None
        raise AssertionError("without the cache nothing is evicted")

    def complete(self, file: CachedShard, shard: ShardInfo, hashes: bytes, first: int, last: int, where: str) -> None:
        """Fetch those of the chunks first..last that are not in the cache. Raises DataError, StorageError, Gone."""
        with file.held(), file.alone(first, last):
            states = bytearray(file.states(first, last - first + 1))
            for number in [n for n, state in enumerate(states) if state == UNSURE]:
                start, end = span_of(first + number, first + number, shard.bytes)
                if first_wrong(file.read(start, end - start), first + number, hashes) is None:
                    file.set_verified(first + number, 1)
                    states[number] = VERIFIED
            absent = [first + n for n, state in enumerate(states) if state != VERIFIED]
            for run in runs(absent, longest=PART // CHUNK):
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
        """Chunks first..last from the store, checked; tried again while that may help."""
        start, end = span_of(first, last, shard.bytes)

        def work() -> Bytes:
            try:
                data: Bytes = self._source.part(shard.path, start, end, memory)
            except BeyondTheEnd:
                data = b""
            with self._lock:
                self.fetched += len(data)
            if len(data) != end - start:
                raise self._odd_length(shard, len(data), end - start)
            wrong = first_wrong(data, first, hashes)
            if wrong is not None:
                raise WrongBytes(wrong, data[(wrong - first) * CHUNK : (wrong - first + 1) * CHUNK])
            return data

        with self._source.wrap_errors(shard.path):
            try:
                return self._source.retry.call(work)
            except WrongBytes as error:
                raise wrong_chunk(
                    where, shard, error.chunk, error.data, hashes, attempts=attempts_of(error),
                    do=self._why() or CHANGED,
                ) from error  # fmt: skip
            except FileNotFoundError as error:
                if do := self._why():
                    where, expected = self._source.where(shard.path), "a file of the shard folder"
                    raise DataError(message(where, expected=expected, got="no such file", do=do)) from error
                raise

    def _scratch(self) -> bytearray:
        """This thread's memory for a part on its way into the cache."""
        if not hasattr(self._own, "memory"):
            self._own.memory = bytearray(PART)
        memory: bytearray = self._own.memory
        return memory

    def _odd_length(self, shard: ShardInfo, got: int, wanted: int) -> Exception:
        """A cut answer, which may pass; a file of another size or a server that knows no parts, which does not."""
        if got == shard.bytes > wanted:
            do = "The server does not answer Range requests: take one that does, or copy the shards to a disk."
            expected = f"the {wanted:,} bytes asked for"
            return StorageError(message(self._source.where(shard.path), expected=expected, got="the whole file", do=do))
        try:
            size = self._source.size(shard.path)
        except Exception as error:
            return error
        if size != shard.bytes:
            return other_size(self._source.where(shard.path), shard, size, do=self._why())
        return ShortBody(f"{got:,} of {wanted:,} bytes")


def other_size(where: str, shard: ShardInfo, got: int, *, do: str = "") -> DataError:
    """The message about a shard of another size."""
    do = do or "The copy is incomplete or the file was changed: copy it again or build the shards again."
    return DataError(message(where, expected=f"{shard.bytes} bytes as the manifest says", got=str(got), do=do))


def _cut(parts: Sequence[tuple[int, Bytes]], at: int, size: int) -> Bytes:
    """`size` bytes at `at` out of (start, bytes) pieces in order, without a copy where one piece has them all."""
    found = [
        memoryview(data)[max(at - start, 0) : at + size - start]
        for start, data in parts
        if start < at + size and at < start + len(data)
    ]
    return found[0] if len(found) == 1 else b"".join(found)
