"""Files below one fsspec URL, on a disk or in an object store: run folders, checkpoints, manifests and shards.

A file appears whole or not at all. Transient errors are retried with backoff; permanent ones become a StorageError that
names file, attempts and cause. Credentials come from the environment, a profile or the instance, never from a URL.
"""

import errno
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dfer.errors import DeniedError, DferError, StorageError, UsageError, message
from dfer.local_files import check_writable, denial, is_denied, is_full, written_whole

T = TypeVar("T")

TEMPORARY = re.compile(r"\.[^/]+\.[0-9]+\.tmp")
"""Names of files that are being written, or were being written when their process was killed."""
STALL_S = 10
"""Seconds without a byte after which the read of a range is retried."""
_PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)
_PERMANENT_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_PERMANENT_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Number of attempts and the waits between them, drawn from 0 to base_s x 2^n, at most cap_s (full jitter, so that
    processes that failed together do not retry together). timeout_s: of one attempt, where the client supports it."""

    attempts: int = 6
    base_s: float = 0.25
    cap_s: float = 8.0
    timeout_s: float = 60.0

    def call(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. Raises its error, with a note `attempts: N`, when the error is permanent or
        the last attempt failed."""
        for attempt in range(1, self.attempts + 1):
            try:
                return work()
            except Exception as error:
                if attempt == self.attempts or is_permanent(error):
                    error.add_note(f"attempts: {attempt}")
                    raise
                time.sleep(random.uniform(0, min(self.cap_s, self.base_s * 2**attempt)))
        raise AssertionError("attempts is 1 or more")


def is_permanent(error: BaseException) -> bool:
    """Whether a retry cannot help: no such file, no permission, no credentials, an HTTP 4xx, a bug of this package."""
    if isinstance(error, DferError | TypeError | AttributeError | AssertionError | NotImplementedError):
        return True
    if isinstance(error, OSError) and error.errno in _PERMANENT_NUMBERS:
        return True
    status = getattr(error, "status", None)  # aiohttp
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return True
    return isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES


def attempts_of(error: BaseException) -> int:
    """Return the number of attempts that `Retry.call` made before it raised this error."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("attempts: ")]
    return int(notes[-1].removeprefix("attempts: ")) if notes else 1


def client(url: str, *, what: str = "the address", tries_once: bool = False) -> tuple[Any, str]:
    """Open the file system of a URL; returns it and the path in it.

    Args:
        what: the setting that messages name for correction.
        tries_once: the client does not retry and detects a stall within STALL_S. For callers that read small ranges
            through `Retry`: retries on two levels would multiply.
    Raises:
        UsageError: no such scheme, a chain of schemes, or credentials in the URL.
        StorageError: the client cannot be set up.
    """
    scheme, separator, rest = url.partition("://")
    if "::" in url.partition("/")[0] or "::" in scheme:
        raise UsageError(message(url, expected="one scheme", got="a chain of them", do=f"Correct {what}."))
    if separator and "@" in rest.partition("/")[0]:
        do = "Take them out and set the store's own variables, a profile or the instance's role."
        raise UsageError(message(url, expected="a URL without credentials", got="some in it", do=do))
    try:
        fs, path = fsspec.core.url_to_fs(url, **_options(scheme, tries_once=tries_once))
        if tries_once and hasattr(fs, "retries"):
            fs.retries = 1  # fsspec caches clients by their options, so only callers with tries_once share this one
    except (ValueError, ImportError) as error:
        expected = "a folder or an fsspec URL"
        raise UsageError(message(url, expected=expected, got=str(error), do=f"Correct {what}.")) from error
    except Exception as error:
        raise storage_error(url, error, doing="to open it") from error
    return fs, str(path)


def _options(scheme: str, *, tries_once: bool) -> dict[str, Any]:
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": s3_config(tries_once=tries_once), "use_listings_cache": False}
    if scheme in ("http", "https") and tries_once:
        import aiohttp  # comes with the clients; slow to import where shards are local

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        return {"client_kwargs": {"timeout": timeout}}
    return {}


def s3_config(*, tries_once: bool = False) -> dict[str, Any]:
    """Return settings for botocore's clients. A stalled connection fails within seconds, to be retried."""
    once = {"retries": {"total_max_attempts": 1}} if tries_once else {}
    return {
        "connect_timeout": 10,
        "read_timeout": STALL_S if tries_once else 20,
        "max_pool_connections": 32,
        # Servers other than Amazon's do not support the newer checksums, or send the whole file's with a range of it.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **once,
    }


def storage_error(where: object, error: BaseException, *, doing: str, then: str = "") -> StorageError:
    """Turn an error of a file system or its client into a StorageError with a message. doing: the operation that
    failed; then: what to do after the fix.

    Returns a DeniedError for missing permissions, which names the file and its owner.
    """
    got = str(getattr(error, "strerror", None) or error) or type(error).__name__
    do = "Check the path and its permissions"
    if is_full(error):
        got, do = "no space left", "Free some"
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        do = "Raise the limit on file sizes, or use another disk"
    elif isinstance(error, OSError) and error.errno == errno.EROFS:
        got, do = "a read-only file system", "Give another path"
    elif "://" in str(where) and not str(where).startswith("file://"):
        do = "Check the URL, the network and the credentials that the store needs"
    elif isinstance(error, PermissionError):
        got, do = denial(Path(str(error.filename or where).removeprefix("file://"))) or (got, do)
    tried = attempts_of(error)
    times = f" ({tried} attempts)" if tried > 1 else ""
    kind = DeniedError if is_denied(error) else StorageError
    return kind(message(where, expected=doing, got=got + times, do=f"{do}{then or '.'}"))


class Folder:
    """A folder at a URL; its files are named by relative paths with `/`. Picklable: each process makes its own client.

    Methods retry transient errors, then raise StorageError when the store cannot be read or written.
    """

    def __init__(self, url: str | Path, *, retry: Retry | None = None, what: str = "the address") -> None:
        self.url = str(url).rstrip("/") or "/"
        self.retry, self._what = retry or Retry(), what
        self._clear()

    def _clear(self) -> None:
        self._client: Any = None
        self._root = ""

    def __truediv__(self, name: str | Path) -> "Folder":
        return Folder(f"{self.url}/{name}", retry=self.retry, what=self._what)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retry": self.retry, "_what": self._what}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The folder as a path if it is on a local file system, else None."""
        return Path(self.path("")) if isinstance(self.client, LocalFileSystem) else None

    def where(self, name: str | Path = "") -> str:
        """URL of a file, for messages."""
        return f"{self.url}/{name}" if str(name) else self.url

    def read(self, name: str | Path, *, most: int | None = None) -> bytes | None:
        """Read a file; None when it does not exist. most: largest accepted size, for untrusted files.

        Raises:
            StorageError: it cannot be read, or is larger than `most`.
        """
        if most is not None and (size := self.size(name) or 0) > most:
            do = "Replace or remove the file."
            raise StorageError(message(self.where(name), expected=f"at most {most} bytes", got=str(size), do=do))
        try:
            data: bytes = self._do(name, "to read it", lambda fs, path: fs.cat_file(path))
        except FileNotFoundError:
            return None
        return data

    def beginning(self, name: str | Path, *, most: int) -> bytes | None:
        """As `read`, but return only the first `most` + 1 bytes of a file larger than `most` bytes."""
        if (self.size(name) or 0) <= most:
            return self.read(name)
        data: bytes = self._do(name, "to read it", lambda fs, path: fs.cat_file(path, start=0, end=most + 1))
        return data

    def text(self, name: str | Path) -> str | None:
        """Read a file as UTF-8 text; None when it does not exist. Undecodable bytes are replaced."""
        data = self.read(name)
        return None if data is None else data.decode(errors="replace")

    def size(self, name: str | Path) -> int | None:
        """Return the file's size in bytes; None when it does not exist."""
        try:
            info = self._do(name, "to look at it", lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def exists(self, name: str | Path = "") -> bool:
        """Whether a file or folder of that name exists. Raises StorageError where that cannot be found out."""
        try:
            if self.local is not None:
                self._do(name, "to look at it", lambda _, path: Path(path).stat())
                return True
            return bool(self._do(name, "to look at it", _exists))
        except FileNotFoundError:
            return False

    def names(self) -> list[str]:
        """List all files below the folder, relative to it, sorted; empty when the folder does not exist."""
        return self._listed(lambda fs, path: fs.find(path))

    def children(self) -> list[str]:
        """List the names of its direct files and folders, sorted; empty when the folder does not exist."""
        return self._listed(lambda fs, path: [entry["name"] for entry in fs.ls(path, detail=True)])

    def write(self, name: str | Path, data: bytes) -> None:
        """Write a file from memory, atomically."""
        if self.local is None:
            self._put(name, lambda fs, path: fs.pipe_file(path, data))
        else:
            with self.whole(name) as path:
                path.write_bytes(data)

    @contextmanager
    def whole(self, name: str | Path) -> Iterator[Path]:
        """Give a temporary path to write a file to; it is moved into place atomically when the block ends without an
        error."""
        if self.local is not None:
            with self._wrap_errors(name, "to write it", on_disk=True), written_whole(self.local / name) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="dfer-") as folder:
            path = Path(folder) / "file"
            with self._wrap_errors(name, "to write it", on_disk=True):
                yield path
            self._put(name, lambda fs, target: fs.put_file(str(path), target))

    def fetch(self, name: str | Path, path: Path) -> None:
        """Copy a file to a local path. Raises FileNotFoundError."""
        self._do(name, "to read it", lambda fs, source: fs.get_file(source, str(path)))

    def remove(self, name: str | Path) -> None:
        """Delete a file if it exists."""
        try:
            self._do(name, "to remove it", lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            return

    def remove_all(self) -> None:
        """Delete the folder and everything below it."""
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)
            return
        with suppress(FileNotFoundError):
            self._do("", "to remove it", _remove_tree)

    def check_writable(self) -> None:
        """Raise DeniedError when files cannot be written into a local folder. Writes nothing. Does nothing for other
        stores, which show it only at the first write."""
        if self.local is None:
            return
        with self._wrap_errors("", "to write there", on_disk=True):
            check_writable(self.local)

    def folders(self) -> list[str]:
        """List the names of its direct folders, sorted."""
        return self._listed(
            lambda fs, path: [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "directory"]
        )

    def _listed(self, paths: Callable[[Any, str], list[str]]) -> list[str]:
        def work(fs: Any, root: str) -> list[str]:
            fs.invalidate_cache()
            prefix = root.rstrip("/") + "/"
            found = (str(path).rstrip("/") for path in paths(fs, root))
            # Object stores may include the folder itself.
            return sorted(path.removeprefix(prefix) for path in found if path.startswith(prefix))

        try:
            listed: list[str] = self._do("", "to list it", work)
        except FileNotFoundError:
            return []
        return listed

    def _put(self, name: str | Path, work: Callable[[Any, str], Any]) -> None:
        try:
            self._do(name, "to write it", lambda _, path: work(self._retrying_client(), path))
        except FileNotFoundError as error:  # no such bucket
            raise storage_error(self.where(name), error, doing="to write it") from error

    def _do(self, name: str | Path, doing: str, work: Callable[[Any, str], Any]) -> Any:
        """Call `work` with client and path of a file, with retries on remote stores. FileNotFoundError is re-raised."""
        with self.wrap_errors(name, doing):
            fs, path = self.client, self.path(str(name))
            return work(fs, path) if self.local is not None else self.retry.call(lambda: work(fs, path))

    @contextmanager
    def wrap_errors(self, name: str | Path, doing: str) -> Iterator[None]:
        """Turn errors of `client` into StorageError; FileNotFoundError is re-raised. doing: the operation."""
        with self._wrap_errors(name, doing, on_disk=self.local is not None, missing_passes=True):
            yield

    @contextmanager
    def _wrap_errors(
        self, name: str | Path, doing: str, *, on_disk: bool, missing_passes: bool = False
    ) -> Iterator[None]:
        try:
            yield
        except (DferError, BrokenPipeError):
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            if missing_passes:
                raise error if isinstance(error, FileNotFoundError) else FileNotFoundError(str(error)) from error
            raise storage_error(self.where(name), error, doing=doing) from error
        except Exception as error:
            # On a disk, any other error than OSError is a bug of ours; other stores' clients raise their own classes.
            if on_disk and not isinstance(error, OSError) and not is_full(error):
                raise
            raise storage_error(self.where(name), error, doing=doing) from error

    def _retrying_client(self) -> Any:
        """Return a client for multipart uploads of large files: it retries each part, `Retry` the whole file."""
        return client(self.url, what=self._what)[0]

    @property
    def client(self) -> Any:
        """The fsspec file system, created on first use. It does not retry by itself."""
        if self._client is None:
            fs, self._root = client(self.url, what=self._what, tries_once=True)
            self._client = fs  # last: another thread may read it in between
        return self._client

    def path(self, name: str) -> str:
        """Return the path of a file in the form that `client` takes."""
        assert self.client is not None
        return f"{self._root.rstrip('/')}/{name}" if name else self._root


def _exists(fs: Any, path: str) -> bool:
    """Whether a path exists. fsspec's `exists` returns False on any error, so `info` is called; for a bucket itself
    `info` may find nothing, so there `exists` is called."""
    return bool(fs.info(path) if "/" in path.strip("/") else fs.exists(path))


def _remove_tree(fs: Any, path: str) -> None:
    """Remove a folder file by file: fsspec's `rm` would read `[`, `*` or `?` in a path as a pattern."""
    found = fs.find(path, withdirs=True, detail=True)
    folders = {path, *(name for name, info in found.items() if info["type"] == "directory")}
    for name in found.keys() - folders:
        with suppress(FileNotFoundError):
            fs.rm_file(name)
    for name in sorted(folders, key=len, reverse=True):
        if "/" in name.strip("/"):  # never a bucket
            with suppress(OSError, NotImplementedError):  # object stores have no folders of their own
                fs.rmdir(name)
