"""Parts of files below one URL, each attempt as it comes; who asks knows what is right and tries again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.exceptions import FSTimeoutError

from dfer.errors import DataError, DferError, message
from dfer.storage import Folder, Retry


class FileNotFoundInStore(DataError):
    """A file that the manifest promises, or the manifest itself, is not there."""


class BeyondTheEnd(DferError):
    """The file ends before the part that was asked for begins."""


class Source:
    """Files below a URL, read in parts. Picklable; every process makes its own client, on first use."""

    def __init__(self, url: str, retry: Retry) -> None:
        self._folder, self.retry = Folder(url, retry=retry, what="data.shards"), retry
        self._s3: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "retry": self.retry, "_s3": None}

    @property
    def local(self) -> Path | None:
        """The folder as a path where it is on a disk of this machine."""
        return self._folder.local

    def where(self, name: str) -> str:
        """URL of a file, for messages."""
        return self._folder.where(name)

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
        if not self._folder.url.startswith(("s3://", "s3a://")):
            return self._in_one_attempt(name, start, end)
        into = memoryview(bytearray(end - start) if memory is None else memory)[: end - start]
        with self._explaining(name):
            return into[: self._s3_parts().get(self._folder.path(name), start, into)]

    def whole(self, name: str, *, at_most: int) -> bytes:
        """A small file's bytes, up to one byte more than `at_most`. Raises DataError, StorageError."""
        with self.wrap_errors(name):
            try:
                return self.retry.call(lambda: self._in_one_attempt(name, 0, at_most + 1))
            except BeyondTheEnd:  # an empty file
                return b""

    def _in_one_attempt(self, name: str, start: int, end: int) -> bytes:
        patience = {"timeout": self.retry.timeout_s} if self._folder.client.async_impl else {}
        with self._explaining(name):
            return bytes(self._folder.client.cat_file(self._folder.path(name), start=start, end=end, **patience))

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
        self._folder.client.invalidate_cache()
        return int(self._folder.client.size(self._folder.path(name)))

    def stamp(self, name: str) -> str:
        """What tells a file from one that has taken its place, as far as the store says, without reading it."""
        with self.wrap_errors(name):
            self._folder.client.invalidate_cache()
            info = self.retry.call(lambda: self._folder.client.info(self._folder.path(name)))
        return repr(sorted((key, str(value)) for key, value in info.items()))

    @contextmanager
    def wrap_errors(self, name: str) -> Iterator[None]:
        """Turn what a file system or its client raises into a message."""
        try:
            with self._folder.wrap_errors(name, "to read it"):
                yield
        except FileNotFoundError as error:
            do = "Copy the folder again or build the shards again."
            expected = "a file of the shard folder"
            raise FileNotFoundInStore(
                message(self.where(name), expected=expected, got="no such file", do=do)
            ) from error

    def _s3_parts(self) -> Any:
        if self._s3 is None:
            from dfer.store.s3 import S3Parts  # slow to import where shards are local

            self._s3 = S3Parts(timeout_s=self.retry.timeout_s)
        return self._s3
