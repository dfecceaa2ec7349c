"""The folder that shards are written to: a local path or any fsspec URL. Files appear there whole or not at all."""

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dfer.errors import DferError, StorageError, UsageError, message

T = TypeVar("T")
TEMPORARY = re.compile(r"\.[^/]+\.[0-9]+\.tmp")


class Output:
    """Files below one URL, named by relative paths with `/`."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(
                message(f"shard folder {url!r}", expected="a local path or a URL that fsspec can open, like s3://bucket/x",
                        got=str(error), do="Correct the address or install the package it names.")
            ) from error  # fmt: skip
        except Exception as error:
            raise _unreachable(url, error) from error
        self._root = str(root)
        self.local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """The full path of a file as the file system takes it."""
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The file's bytes, None when there is no such file."""
        try:
            with self._client():
                data: bytes = self._fs.cat_file(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def size(self, name: str) -> int | None:
        """Bytes of the file, None when there is no such file."""
        try:
            with self._client():
                info = self._fs.info(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def names(self) -> list[str]:
        """All files below the folder, relative to it."""
        with self._client():
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return []
            if not self._fs.isdir(self._root):
                raise UsageError(message(self.url, expected="a folder", got="a file", do="Give another path."))
            prefix = self._fs._strip_protocol(self._root).rstrip("/") + "/"
            return sorted(str(path).removeprefix(prefix) for path in self._fs.find(self._root))

    def remove(self, name: str) -> None:
        """Delete the file if it is there."""
        if self.size(name) is not None:
            with self._client():
                self._fs.rm_file(self.path(name))

    def write(self, name: str, write: Callable[[IO[bytes]], T]) -> T:
        """Let `write` fill a temporary file, then put it in its place in one step. Raises OSError."""
        if self.local is not None:
            return _publish(self.local / name, write)
        with tempfile.TemporaryDirectory(prefix="dfer-shards-") as folder:
            whole = Path(folder) / "file"
            result = _publish(whole, write)
            with self._client():
                self._fs.put_file(str(whole), self.path(name))
        return result

    def write_bytes(self, name: str, data: bytes) -> None:
        """As `write`, for content that is in memory."""
        self.write(name, lambda file: file.write(data))

    @contextmanager
    def _client(self) -> Iterator[None]:
        """OSErrors pass, for `storage_errors`; clients of remote stores raise classes of their own besides."""
        try:
            yield
        except (OSError, DferError):
            raise
        except Exception as error:
            if self.local is not None:
                raise  # a fault of ours
            raise _unreachable(self.url, error) from error

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Hold the folder against a second builder on this machine. Raises StorageError when there is one."""
        if self.local is None:
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.local, os.O_RDONLY)
        try:
            _lock(handle, self.url)
            yield
        finally:
            os.close(handle)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what the file system raises into a StorageError that says what to do."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output went away; no fault of the store
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        at = f" ({error.filename})" if error.filename else ""
        raise StorageError(
            message(
                url,
                expected="room for the shards" if full else "a folder that can be read and written",
                got=f"{error.strerror or error}{at}",
                do="Free space, lift the quota or take another folder, and run the same command again: finished "
                "shards are kept." if full else "Correct it and run the same command again: finished shards are kept.",
            )
        ) from error  # fmt: skip


def _unreachable(url: str, error: Exception) -> StorageError:
    return StorageError(
        message(
            url,
            expected="a store that answers",
            got=str(error) or type(error).__name__,
            do="Check the URL, the network and the credentials that the store needs.",
        )
    )


def _lock(handle: int, url: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            message(url, expected="one builder at a time", got="another dfer-shards build at work there",
                    do="Wait for it or stop it.")
        ) from error  # fmt: skip
    except OSError as error:
        # Network file systems that cannot lock a folder: there the lock is a courtesy, not a need.
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise


def _publish(path: Path, write: Callable[[IO[bytes]], T]) -> T:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return result


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
