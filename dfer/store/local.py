"""Shards on a disk of this machine: memory-mapped, every chunk checked against its hash before it is first used.

What was checked is noted in the cache folder under the file's identity (path, inode, size, time of change) and the boot
of the machine, so that other processes and runs need not check it again.
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
"""Shards a process keeps mapped; each holds a file descriptor, and 1,024 are usual."""


@dataclass(frozen=True)
class _Mapped:
    view: memoryview
    states: "mmap.mmap | bytearray"


class LocalShards:
    """The shards below a local folder, as this process has mapped them."""

    def __init__(self, root: Path, cache: Cache) -> None:
        self._root, self._cache = root, cache
        self._mapped: OrderedDict[str, _Mapped] = OrderedDict()

    def open(self, shard: ShardInfo) -> int:
        """Map a shard; gives the size the file has. Raises OSError."""
        if shard.path in self._mapped:
            self._mapped.move_to_end(shard.path)
            return shard.bytes
        with (self._root / shard.path).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == shard.bytes:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                self._mapped[shard.path] = _Mapped(view, self._states(shard, status))
        while len(self._mapped) > MAX_OPEN:
            self._mapped.popitem(last=False)  # unmapped when the last frame read from it is let go
        return status.st_size

    def read(self, shard: ShardInfo, hashes: bytes, spans: Sequence[Span], *, where: str) -> list[memoryview]:
        """Views of an open shard at these places. Raises DataError for a chunk that is not as it was built."""
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
            str((self._root / shard.path).resolve()), status.st_dev, status.st_ino, status.st_size,
            status.st_mtime_ns, status.st_ctime_ns, shard.sha256, boot_id(),
        ]  # fmt: skip
        return self._cache.states(hashlib.sha256(repr(identity).encode()).hexdigest(), num_chunks(shard.bytes))
