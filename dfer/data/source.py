"""Parts of files below one URL, each attempt as it comes; who asks knows what is right and tries again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from dfer.errors import DataError, DferError, message
from dfer.storage import Retry, client, storage_error


class FileNotFoundInStore(DataError):
    """A file that the manifest promises, or the manifest itself, is not there."""


class BeyondTheEnd(DferError):
    """The file ends before the part that was asked for begins."""


class Source:
    """Files below a URL, read in parts. Picklable; every process makes its own client, on first use."""

    def __init__(self, url: str, retry: Retry) -> None:
        self.url, self.retry = url, retry
        self._clear()

    def _clear(self) -> None:
        self._client: Any = None
        self._root = ""
        self._local: Path | None = None
        self._s3: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retry": self.retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    @property
    def local(self) -> Path | None:
        """The folder as a path where it is on a disk of this machine."""
        assert self._fs is not None
        return self._local

    def where(self, name: str) -> str:
        """URL of a file, for messages."""
        return f"{self.url}/{name}"

    def part(self, name: str, start: int, end: int, memory: bytearray | None = None) -> bytes | memoryview:
        """Bytes start..end of a file, as they come in one attempt: perhaps fewer, perhaps wrong ones.

        Args:
            memory: may be used for them, until the next part overwrites it; new memory for each would cost as much
                as a fast network.
        Raises:
            TimeoutError: it took longer than the `timeout_s` of the retry.
            BeyondTheEnd: the file is shorter than `start`.
            Exception: what the client raises.
        """
        if self._fs is not None and self._s3 is None:
            return self._in_one_attempt(name, start, end)
        into = memoryview(bytearray(end - start) if memory is None else memory)[: end - start]
        with self._explaining(name):
            return into[: self._s3.get(self._path(name), start, into)]

    def whole(self, name: str, *, at_most: int) -> bytes:
        """A small file's bytes, up to one byte more than `at_most`. Raises DataError, StorageError."""
        with self.telling(name):
            try:
                return self.retry.call(lambda: self._in_one_attempt(name, 0, at_most + 1))
            except BeyondTheEnd:  # an empty file
                return b""

    def _in_one_attempt(self, name: str, start: int, end: int) -> bytes:
        patience = {"timeout": self.retry.timeout_s} if self._fs.async_impl else {}
        with self._explaining(name):
            return bytes(self._fs.cat_file(self._path(name), start=start, end=end, **patience))

    @contextmanager
    def _explaining(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FSTimeoutError, TimeoutError) as error:
            raise TimeoutError(f"not done in {self.retry.timeout_s:g} s") from error
        except Exception as error:
            if "InvalidRange" in f"{error.__cause__}" or getattr(error, "status", None) == 416:
                raise BeyondTheEnd(name) from error
            raise

    def size(self, name: str) -> int:
        """Bytes of a file, in one attempt. Raises what the client raises."""
        self._fs.invalidate_cache()
        return int(self._fs.size(self._path(name)))

    def stamp(self, name: str) -> str:
        """What tells a file from one that has taken its place, as far as the store says, without reading it."""
        with self.telling(name):
            self._fs.invalidate_cache()
            info = self.retry.call(lambda: self._fs.info(self._path(name)))
        return repr(sorted((key, str(value)) for key, value in info.items()))

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Turn what a file system or its client raises into a message."""
        try:
            yield
        except DferError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            do = "Copy the folder again or build the shards again."
            expected = "a file of the shard folder"
            raise FileNotFoundInStore(
                message(self.where(name), expected=expected, got="no such file", do=do)
            ) from error
        except Exception as error:
            # On a disk, whatever is no OSError is a fault of ours; other stores' clients raise classes of their own.
            if isinstance(self._client, LocalFileSystem) and not isinstance(error, OSError):
                raise
            raise storage_error(self.where(name), error, doing="to read it") from error

    @property
    def _fs(self) -> Any:
        if self._client is None:
            self._client, self._root = client(self.url, what="data.shards", tries_once=True)
            self._local = Path(self._root) if isinstance(self._client, LocalFileSystem) else None
            if self.url.startswith(("s3://", "s3a://")):
                from dfer.data.s3_parts import S3Parts  # slow to import where shards are local

                self._s3 = S3Parts(timeout_s=self.retry.timeout_s)
        return self._client

    def _path(self, name: str) -> str:
        assert self._fs is not None
        return f"{self._root.rstrip('/')}/{name}"
