"""The file of one cached shard: its bytes, one state byte per chunk, the boot id; see `dfer.store.cache`."""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path

from dfer.store.format import CHUNK, num_chunks

ABSENT, VERIFIED, UNSURE = 0, 1, 2
"""States of a chunk. UNSURE: verified before the machine restarted, so it must be hashed again."""
TOUCH_S = 60.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Evicted(Exception):
    """Another process evicted the file; open it again."""


class CachedShard:
    """One shard's file. Threads share an object; the shared lock on the file is held while any thread is in `held`."""

    def __init__(self, path: Path, size: int, *, create: bool = False) -> None:
        self.path, self.size, self.count = path, size, num_chunks(size)
        self.total = size + self.count + len(boot_id())
        self._handle = opened(path, create=create)
        self._lock, self._holders, self._touched = threading.Lock(), 0, 0.0

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            os.close(handle)

    def gone(self) -> bool:
        """Whether the file was evicted."""
        return os.fstat(self._handle).st_nlink == 0

    def allocated(self) -> bool:
        return os.fstat(self._handle).st_size == self.total

    def complete(self) -> bool:
        """Whether the file was set up since the machine booted."""
        return self.allocated() and os.pread(self._handle, 64, self.size + self.count) == boot_id()

    def allocate(self) -> bool:
        """Allocate the file's space on the disk; returns False when there is none."""
        try:
            os.posix_fallocate(self._handle, 0, self.total)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return False
        return True

    def note_boot(self) -> None:
        """Set verified chunks of an earlier boot to UNSURE. The boot id is written last, so that a kill in between does
        no harm."""
        if not self.complete():
            states = self.states(0, self.count)
            os.pwrite(self._handle, states.replace(bytes([VERIFIED]), bytes([UNSURE])), self.size)
            os.pwrite(self._handle, boot_id(), self.size + self.count)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.ftruncate(self._handle, 0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Prevent eviction within the block. Raises Evicted when the file is already evicted."""
        with self._lock:
            if not self._holders:
                fcntl.flock(self._handle, fcntl.LOCK_SH)
            self._holders += 1
        try:
            if self.gone():
                raise Evicted
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    fcntl.flock(self._handle, fcntl.LOCK_UN)

    @contextmanager
    def exclusive(self, first: int, last: int) -> Iterator[None]:
        """Lock the chunks first..last, so that only one thread of all processes fetches them."""
        handle = os.open(f"/proc/self/fd/{self._handle}", os.O_RDWR)  # this record lock belongs to one open of the file
        try:
            # struct flock: type, whence, start, length, pid, padded.
            want = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, self.size + first, last - first + 1, 0)
            fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, want)
            yield
        finally:
            os.close(handle)

    def states(self, first: int, count: int) -> bytes:
        return os.pread(self._handle, count, self.size + first)

    def read(self, start: int, size: int) -> bytes:
        """Read bytes of the shard; only those of verified chunks are valid."""
        return os.pread(self._handle, size, start)

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Write verified chunks from chunk `first` on, then set their states."""
        view, at = memoryview(data), first * CHUNK
        while view:
            written = os.pwrite(self._handle, view, at)
            view, at = view[written:], at + written
        self.set_verified(first, num_chunks(len(data)))

    def set_verified(self, first: int, count: int) -> None:
        os.pwrite(self._handle, bytes([VERIFIED]) * count, self.size + first)

    def touch(self) -> None:
        """Set the file's time of use, at most once in TOUCH_S."""
        now = time.monotonic()
        if now - self._touched > TOUCH_S:
            self._touched = now
            os.utime(self._handle)


def opened(path: Path, *, create: bool) -> int:
    """Open a file of the cache for reading and writing; the umask decides who else may. Raises OSError.

    It first tries to open without O_CREAT: in a folder like /tmp the kernel may refuse O_CREAT for another user's file.
    """
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        if not create:
            raise
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


@once
def boot_id() -> bytes:
    """Return the machine's boot id, which changes with every restart."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b"unknown"
