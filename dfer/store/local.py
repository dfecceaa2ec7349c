"""Read shards on a local disk: memory-mapped, every chunk verified against its hash before its first use.

Verified chunks are recorded in the cache folder by the file's identity (path, inode, size, time of change) and the boot
of the machine, so that other processes and runs need not verify them again.
"""

import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer.store.cache import Cache
from dfer.store.cached_shard import VERIFIED, boot_id
from dfer.store.chunks import Span, chunks_of, first_wrong, span_of, wrong_chunk
from dfer.store.format import ShardInfo, num_chunks

MAX_OPEN = 256
"""Most shards that a process keeps mapped; each uses a file descriptor, of which 1,024 are usual."""


@dataclass(frozen=True)
class _Mapped:
    view: memoryview
    states: "mmap.mmap | bytearray"


class LocalShards:
    """The shards below a local folder, mapped by this process."""

    def __init__(self, root: Path, cache: Cache) -> None:
        self._root, self._cache = root, cache
        self._mapped: OrderedDict[str, _Mapped] = OrderedDict()

    def open(self, shard: ShardInfo) -> int:
        """Map a shard; returns the file's real size. Raises OSError."""
        if shard.path in self._mapped:
            self._mapped.move_to_end(shard.path)
            return shard.bytes
        with (self._root / shard.path).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == shard.bytes:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                self._mapped[shard.path] = _Mapped(view, self._states(shard, status))
        while len(self._mapped) > MAX_OPEN:
            self._mapped.popitem(last=False)  # unmapped when the last frame read from it is freed
        return status.st_size

    def read(self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str) -> list[memoryview]:
        """Return views of the spans of an open shard. Raises DataError for a chunk with a wrong hash."""
        mapped = self._mapped[shard.path]
        for chunk in chunks_of(spans):
            if mapped.states[chunk] != VERIFIED:
                start, end = span_of(chunk, chunk, shard.bytes)
                if first_wrong(mapped.view[start:end], chunk, hashes) is not None:
                    raise wrong_chunk(where, shard, chunk, mapped.view[start:end], hashes)
                mapped.states[chunk] = VERIFIED
        return [mapped.view[at : at + size] for at, size in spans]

    def _states(self, shard: ShardInfo, status: os.stat_result) -> "mmap.mmap | bytearray":
        identity = [
            str((self._root / shard.path).resolve()),
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            shard.sha256,
            boot_id(),
        ]
        return self._cache.states(hashlib.sha256(repr(identity).encode()).hexdigest(), num_chunks(shard.bytes))
