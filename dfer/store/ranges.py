"""Read byte ranges of files below one URL, in single attempts; the caller verifies the bytes and retries."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.exceptions import FSTimeoutError

from dfer.errors import DataError, DferError, message
from dfer.storage import Folder, Retry


class FileNotFoundInStore(DataError):
    """A file that the manifest lists, or the manifest itself, does not exist."""


class BeyondTheEnd(DferError):
    """The file ends before the requested range starts."""


class Source:
    """Files below a URL, read in ranges. Picklable; every process makes its own client, on first use."""

    def __init__(self, url: str, retry: Retry) -> None:
        self._folder, self.retry = Folder(url, retry=retry, what="data.shards"), retry
        self._s3: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "retry": self.retry, "_s3": None}

    @property
    def local(self) -> Path | None:
        """The folder as a path if it is on a local file system, else None."""
        return self._folder.local

    def where(self, name: str) -> str:
        """URL of a file, for messages."""
        return self._folder.where(name)

    def read_range(self, name: str, start: int, end: int, memory: bytearray | None = None) -> bytes | memoryview:
        """Read the bytes start..end of a file in one attempt. There may be fewer, and they are not verified.

        Args:
            memory: a buffer that may be used for the result; the next call with it overwrites the bytes. To allocate
                one per call would cost as much time as a fast network.
        Raises:
            TimeoutError: it took longer than the `timeout_s` of the retry.
            BeyondTheEnd: the file is shorter than `start`.
            Exception: any other error of the client.
        """
        if not self._folder.url.startswith(("s3://", "s3a://")):
            return self._in_one_attempt(name, start, end)
        into = memoryview(bytearray(end - start) if memory is None else memory)[: end - start]
        with self._translate_errors(name):
            return into[: self._s3_ranges().get(self._folder.path(name), start, into)]

    def whole(self, name: str, *, at_most: int) -> bytes:
        """Read a small file, up to one byte more than `at_most`, with retries. Raises DataError, StorageError."""
        with self.wrap_errors(name):
            try:
                return self.retry.call(lambda: self._in_one_attempt(name, 0, at_most + 1))
            except BeyondTheEnd:  # an empty file
                return b""

    def _in_one_attempt(self, name: str, start: int, end: int) -> bytes:
        timeout = {"timeout": self.retry.timeout_s} if self._folder.client.async_impl else {}
        with self._translate_errors(name):
            if self.local is not None:  # without fsspec's files and pathlib's paths: they cost more than a small file
                with open(self._folder.path(name), "rb") as file:  # noqa: PTH123
                    file.seek(start)
                    return file.read(min(end - start, os.fstat(file.fileno()).st_size))  # which sizes the buffer
            return bytes(self._folder.client.cat_file(self._folder.path(name), start=start, end=end, **timeout))

    @contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FSTimeoutError, TimeoutError) as error:
            raise TimeoutError(f"not done in {self.retry.timeout_s:g} s") from error
        except Exception as error:
            if "InvalidRange" in f"{error.__cause__}" or getattr(error, "status", None) == 416:
                raise BeyondTheEnd(name) from error
            raise

    def size(self, name: str) -> int:
        """Return the size of a file in bytes, in one attempt. Raises the client's errors."""
        self._folder.client.invalidate_cache()
        return int(self._folder.client.size(self._folder.path(name)))

    def stamp(self, name: str) -> str:
        """Return a file's metadata as text. It changes when the file is replaced, if the store shows that."""
        with self.wrap_errors(name):
            self._folder.client.invalidate_cache()
            info = self.retry.call(lambda: self._folder.client.info(self._folder.path(name)))
        return repr(sorted((key, str(value)) for key, value in info.items()))

    @contextmanager
    def wrap_errors(self, name: str) -> Iterator[None]:
        """Turn errors of a file system or its client into DataError or StorageError."""
        try:
            with self._folder.wrap_errors(name, "to read it"):
                yield
        except FileNotFoundError as error:
            do = "Copy the folder again or build the shards again."
            expected = "a file of the shard folder"
            raise FileNotFoundInStore(
                message(self.where(name), expected=expected, got="no such file", do=do)
            ) from error

    def _s3_ranges(self) -> Any:
        if self._s3 is None:
            from dfer.store.s3 import S3Ranges  # imported here: slow, and not needed for local shards

            self._s3 = S3Ranges(timeout_s=self.retry.timeout_s)
        return self._s3
