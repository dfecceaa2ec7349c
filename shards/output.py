"""Errors of the output folder, and the lock against a second builder on the same machine."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dfer.errors import StorageError, UsageError, message
from dfer.storage import Folder, storage_error

AGAIN = "Then run the same command again: finished shards are kept."


def shard_folder(url: str) -> Folder:
    """Open the folder at a path or an fsspec URL. Raises UsageError if it is a file."""
    folder = Folder(url, what="the address")
    if folder.size("") is not None:
        raise UsageError(message(url, expected="a folder", got="a file", do="Give another path."))
    return folder


@contextmanager
def storage_errors(url: str, *, builds: bool = False) -> Iterator[None]:
    """Turn errors of files into a StorageError that says what to do. builds: add how to resume the build."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our standard output has closed it; not an error of the store
    except OSError as error:
        at = f" ({error.filename})" if error.filename else ""
        told = storage_error(f"{url}{at}", error, doing="to read and write there")
        raise (_going_on(told) if builds else told) from error
    except StorageError as error:
        raise (_going_on(error) if builds else error) from error.__cause__


def _going_on(error: StorageError) -> StorageError:
    return error if "finished shards" in str(error) else StorageError(f"{error} {AGAIN}")


@contextmanager
def only_writer(folder: Folder, *, beside_parts: bool = False) -> Iterator[None]:
    """Lock the folder against a second builder on this machine. Raises StorageError if there is one.

    beside_parts: allow other parts of the same build.
    """
    if folder.local is None:
        yield
        return
    folder.local.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.local, os.O_RDONLY)
    try:
        _lock(handle, folder.url, fcntl.LOCK_SH if beside_parts else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, url: str, kind: int) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            message(
                url,
                expected="one builder at a time",
                got="another dfer-shards build running there",
                do="Wait for it or stop it.",
            )
        ) from error
    except OSError as error:
        # Some network file systems cannot lock a folder. The lock is not required for correctness: go on without it.
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
