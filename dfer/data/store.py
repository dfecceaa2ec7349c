"""Reading a shard folder: manifest, indexes, and the bytes of single frames, through fsspec.

Local shards are memory-mapped, so a clip costs only the pages of the frames that are read. Elsewhere frames are
fetched as byte ranges. Clients and maps are opened on first use and left out of pickles: every process has its own.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dfer.data.format import MANIFEST, Manifest, ShardIndex, ShardInfo, read_index, read_manifest
from dfer.errors import DataError, DferError, StorageError, UsageError, message

MAX_OPEN = 256
"""Shards a process keeps mapped; each holds a file descriptor, and 1,024 are usual."""

Span = tuple[int, int]


class Store:
    """A shard folder, opened for reading. url: a path or any fsspec URL.

    Raises:
        DataError: no manifest, of another version, or damaged.
        StorageError: the folder cannot be read.
    """

    url: str
    manifest: Manifest
    _fs: Any
    _root: str
    _maps: dict[str, memoryview]
    _checked: set[str]

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._clear()
        self.manifest = read_manifest(self._manifest_bytes(), where=self._where(MANIFEST))

    def index(self, shard: ShardInfo) -> ShardIndex:
        """The shard's index, checked against the manifest's hash. Raises DataError."""
        path = shard.index_path
        return read_index(
            self._whole_file(path), where=self._where(path), shard=shard, num_classes=len(self.manifest.classes)
        )

    def read(self, shard: ShardInfo, spans: Sequence[Span]) -> list[memoryview | bytes]:
        """The bytes at these (offset, size) of a shard, in the same order.

        Raises:
            DataError: the shard is missing or is not as long as the manifest says.
            StorageError: the shard cannot be read.
        """
        self._open(shard)
        view = self._maps.get(shard.path)
        if view is not None:
            return [view[at : at + size] for at, size in spans]
        with self._reading(shard.path):
            path = self._full(shard.path)
            return [self._filesystem().cat_file(path, start=at, end=at + size) for at, size in spans]

    def _open(self, shard: ShardInfo) -> None:
        if shard.path in self._checked:
            return
        with self._reading(shard.path):
            fs, path = self._filesystem(), self._full(shard.path)
            self._check_size(shard, fs.size(path))
            if isinstance(fs, LocalFileSystem):
                self._map(shard.path, path)
            else:
                self._checked.add(shard.path)

    def _map(self, name: str, path: str) -> None:
        if len(self._maps) >= MAX_OPEN:
            oldest = next(iter(self._maps))
            del self._maps[oldest]  # unmapped when the last frame read from it is let go
            self._checked.discard(oldest)
        with open(path, "rb") as file:  # noqa: PTH123 - fsspec's path, not ours
            self._maps[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._checked.add(name)

    def _check_size(self, shard: ShardInfo, got: int) -> None:
        if got != shard.bytes:
            raise DataError(
                message(
                    self._where(shard.path),
                    expected=f"{shard.bytes} bytes as the manifest says",
                    got=str(got),
                    do="The copy is incomplete or the file was changed: copy it again or build the shards again.",
                )
            )

    def _manifest_bytes(self) -> bytes:
        try:
            return self._whole_file(MANIFEST)
        except FileNotFoundInStore as error:
            raise DataError(
                message(
                    self._where(MANIFEST),
                    expected="the manifest that a finished build writes last",
                    got="no such file",
                    do="Correct data.shards, or run `dfer-shards build` to its end.",
                )
            ) from error

    def _whole_file(self, path: str) -> bytes:
        with self._reading(path):
            data: bytes = self._filesystem().cat_file(self._full(path))
        return data

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Clients of remote stores raise classes of their own, of which many are no OSError."""
        try:
            yield
        except DferError:
            raise
        except Exception as error:
            if isinstance(self._fs, LocalFileSystem) and not isinstance(error, OSError):
                raise  # a fault of ours
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: Exception) -> DataError | StorageError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return FileNotFoundInStore(
                message(
                    self._where(path),
                    expected="a file of the shard folder",
                    got="no such file",
                    do="Copy the folder again or build the shards again.",
                )
            )
        do = "Check the disk and the permissions."
        if not isinstance(self._fs, LocalFileSystem):
            do = "Check the URL, the network and the credentials that the store needs."
        got = str(error) or type(error).__name__
        return StorageError(message(self._where(path), expected="to read it", got=got, do=do))

    def _filesystem(self) -> Any:
        if self._fs is None:
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise UsageError(
                    message(self.url, expected="a folder or an fsspec URL", got=str(error), do="Correct data.shards.")
                ) from error
        return self._fs

    def _full(self, path: str) -> str:
        self._filesystem()
        return f"{self._root.rstrip('/')}/{path}"

    def _where(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _clear(self) -> None:
        self._fs, self._root = None, ""
        self._maps, self._checked = {}, set()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._clear()
        self.url, self.manifest = state["url"], state["manifest"]


class FileNotFoundInStore(DataError):
    """A file that the manifest promises, or the manifest itself, is not there."""
