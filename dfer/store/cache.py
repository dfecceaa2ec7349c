"""Cache shards of remote stores on a disk of this node, shared by all its processes and runs, within a byte budget.

A shard is one file named by its SHA-256: its bytes, then one state byte per chunk, then the id of the boot in which the
states were written. A chunk is hashed before its state is set to verified, and is not hashed again, except after a
restart of the machine: then the states may have reached the disk and the data not.

Three kinds of locks, all released by the kernel when their holder dies:

- `.lock`, a flock on the folder: held to make room, and to create or evict files;
- a record lock on the state bytes of the chunks that are being fetched, so that each is fetched once;
- a flock on a file: shared while it is read or filled; exclusive, without waiting, to evict it.

The space of a whole shard is allocated before its first byte is written, so that the budget holds later on. An evicted
file is truncated first, so that its space is free even while other processes have it open.
"""

import errno
import fcntl
import logging
import mmap
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dfer.errors import message
from dfer.local_files import denial, permitted
from dfer.store.cached_shard import CachedShard, opened
from dfer.surroundings import expand_home

VARIABLE = "DFER_CACHE"
_log = logging.getLogger(__name__)
REFUSED_S = 10.0
"""Seconds before a shard that found no room is tried again: to look for room, all files must be listed."""
MAX_OPEN = 256
_OVERHEAD = 16 * 1024
"""Bytes that a file system may need for a file in addition to its content."""


class Cache:
    """The cache folder of this node. budget: bytes that it may use. Picklable; every process opens its own files.

    keep: returns the SHA-256 of shards that this process must not evict, since they are needed again soon.
    """

    def __init__(self, folder: str | Path | None = None, *, budget: int) -> None:
        self.folder, self.budget = Path(folder) if folder else default_folder(), budget
        self._mine_only = folder is None and not os.environ.get(VARIABLE)
        self._clear()

    def _clear(self) -> None:
        self.keep: Callable[[], frozenset[str]] = frozenset
        self._open: OrderedDict[str, CachedShard] = OrderedDict()
        self._refused: dict[str, float] = {}
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._usable: bool | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "budget": self.budget, "_mine_only": self._mine_only}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._clear()

    def shard(self, sha256: str, size: int, *, evict: bool = True) -> "CachedShard | None":
        """Open the shard's file; None when there is no room for it. evict: whether other shards may be evicted."""
        with self._lock:
            found = self._open.get(sha256)
            if found is not None and not found.gone():
                self._open.move_to_end(sha256)
                return found
            if time.monotonic() < self._refused.get(sha256, 0) or not self._ready():
                return None
            try:
                found = self._opened(sha256, size, evict=evict)
            except OSError as error:
                self._warn(error)
                found = None
            if found is None:
                self._refused[sha256] = time.monotonic() + REFUSED_S
                return None
            self._open[sha256] = found
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return found

    def forget_refusals(self) -> None:
        """Retry shards that found no room without waiting; called when other shards are no longer needed."""
        self._refused.clear()

    def small(self, name: str) -> bytes | None:
        """Read a small cached file; None when it is not cached."""
        try:
            return (self.folder / "index" / name).read_bytes()
        except OSError:
            return None

    def keep_small(self, name: str, data: bytes) -> None:
        """Cache a small file if there is room."""
        path = self.folder / "index" / name
        temporary = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            if self._ready() and self._make_room_for(len(data), path):
                temporary.write_bytes(data)
                temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._warn(error)

    def states(self, name: str, count: int) -> "mmap.mmap | bytearray":
        """Return one state byte for each of `count` chunks of a local shard, shared between processes if possible."""
        path = self.folder / "local" / name
        try:
            if not self._ready() or not (path.exists() or self._make_room_for(count, path)):
                return bytearray(count)
            handle = opened(path, create=True)
            try:
                os.posix_fallocate(handle, 0, count)
                return mmap.mmap(handle, count)
            finally:
                os.close(handle)
        except OSError as error:
            self._warn(error)
            return bytearray(count)

    def used(self) -> int:
        """Return the bytes of disk space that the folder uses."""
        return sum(file.used for file in self._files())

    def _ready(self) -> bool:
        """Whether the folder can be used; the first call creates it. Another user's folder in the temporary folder
        cannot."""
        with self._making:
            if self._usable is None:
                try:
                    self._make()
                    self._usable = True
                except OSError as error:
                    self._usable = False
                    self._warn(error)
            return self._usable

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700 if self._mine_only else 0o777)
        if self._mine_only and (self.folder.lstat().st_uid != os.getuid() or self.folder.is_symlink()):
            raise PermissionError(errno.EPERM, "it belongs to another user")
        for name in ("shards", "index", "local"):
            (self.folder / name).mkdir(exist_ok=True)
        with self._space():
            return

    def _opened(self, sha256: str, size: int, *, evict: bool) -> "CachedShard | None":
        path = self.folder / "shards" / sha256
        try:
            found = CachedShard(path, size)
            if found.complete():
                return found
        except FileNotFoundError:
            pass
        with self._space():
            found = CachedShard(path, size, create=True)
            if not found.allocated():
                room = self._make_room(found.total, but=path, evict=evict)
                if not room or not found.allocate():
                    found.remove()
                    self._warn(OSError(errno.ENOSPC, f"no room for {size:,} bytes more"))
                    return None
            found.note_boot()
            return found

    def _make_room_for(self, size: int, path: Path) -> bool:
        with self._space():
            return self._make_room(size, but=path)

    def _make_room(self, size: int, *, but: Path, evict: bool = True) -> bool:
        """Evict until `size` bytes fit in the budget and on the disk. Call it inside `_space`."""
        files, keep = [file for file in self._files() if file.path != but], self.keep()
        disk = os.statvfs(self.folder)
        # Leave some space: other programs fail on a full disk.
        reserve = min(2**30, disk.f_blocks * disk.f_frsize // 20)
        free = min(self.budget - sum(file.used for file in files), disk.f_bavail * disk.f_frsize - reserve)
        candidates = [file for file in sorted(files, key=lambda file: file.last_use) if file.path.name not in keep]
        needed = size + _OVERHEAD
        possible = free + sum(file.used for file in candidates) if evict else free
        if possible < needed:
            return False  # before anything is evicted in vain
        for file in candidates:
            if free >= needed:
                break
            free += file.used if _evict(file.path) else 0
        return free >= needed

    def _files(self) -> "list[_File]":
        found = []
        for folder in ("shards", "index", "local"):
            with os.scandir(self.folder / folder) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    used = status.st_blocks * 512 + _OVERHEAD
                    found.append(_File(path=Path(entry.path), used=used, last_use=status.st_mtime))
        return found

    @contextmanager
    def _space(self) -> Iterator[None]:
        handle = opened(self.folder / ".lock", create=True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _warn(self, error: OSError) -> None:
        """Warn that reading continues without the cache, at most once per node in ten minutes."""
        if self._warned:
            return
        self._warned = True
        marker = self.folder / ".warned"
        try:
            if time.time() - marker.stat().st_mtime < 600:
                return
        except OSError:
            pass
        got, do = f"{error.strerror or error}", ""
        if isinstance(error, PermissionError) and error.filename:
            got, do = denial(Path(str(error.filename))) or (got, do)
            do = f"{do}. " if do else ""  # users can share a cache: umask 002 and a folder of a common group
        do += f"Reading goes on without; set data.cache or {VARIABLE} to another folder, or data.cache_gib."
        _log.warning("%s", message(self.folder, expected="to cache shards there", got=got, do=do))
        with suppress(OSError):
            marker.touch()


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    used: int
    last_use: float


def _evict(path: Path) -> bool:
    """Free a file's space unless it is in use, or its permissions forbid it. Call it inside `_space`."""
    if not permitted(path.parent, os.W_OK | os.X_OK):
        return False
    try:
        handle = opened(path, create=False)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.parent.name == "shards":  # other files may be memory-mapped and must not be truncated
            os.ftruncate(handle, 0)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def default_folder() -> Path:
    """Return the cache folder used without `data.cache`: DFER_CACHE, else a folder per user in the temporary folder."""
    named = os.environ.get(VARIABLE)
    return Path(expand_home(named) if named else Path(tempfile.gettempdir()) / f"dfer-cache-{os.getuid()}")
