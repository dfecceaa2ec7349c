"""Read a shard folder: manifest, indexes, and the bytes of single frames, from a disk or any store that fsspec opens.

Every byte is verified before use: the manifest holds the hash of each index, and an index those of all chunks of its
shard. So if files change later, readers still get only the content that the folder had when it was opened. Local shards
are memory-mapped; others are fetched in ranges and kept in the cache of the node. Clients, maps and threads are created
on first use and left out of pickles, so that every process has its own.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from dfer.errors import DataError, DferError, message
from dfer.storage import Retry
from dfer.store.cache import Cache
from dfer.store.cached_shard import CachedShard
from dfer.store.chunks import Bytes, Span
from dfer.store.format import (
    MANIFEST,
    MAX_JSON_BYTES,
    Manifest,
    ShardInfo,
    check_json_size,
    read_manifest,
)
from dfer.store.index import ShardIndex, read_index
from dfer.store.local import LocalShards
from dfer.store.ranges import FileNotFoundInStore, Source
from dfer.store.remote import Pending, RemoteShards, other_size

CACHE_GIB = 64.0
MAX_CONCURRENT_INDEXES = 16
REPLACED = "The shards were built anew since: start again, or set data.shards to the ones this run began with."


class Shards(Protocol):
    """What readers use of a store: one shard folder (`Store`), or several as one (`dfer.store.joined`)."""

    @property
    def url(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def cache(self) -> Cache: ...
    @property
    def is_local(self) -> bool: ...
    @property
    def fetched(self) -> int: ...
    def indexes(self, shards: Sequence[ShardInfo]) -> list[ShardIndex]: ...
    def file(self, path: str) -> bytes: ...
    def prefetch(self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "") -> Pending | None: ...
    def read(
        self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "", pending: Pending | None = None
    ) -> list[Bytes]: ...
    def complete(self, file: CachedShard, shard: ShardInfo, first: int, last: int) -> None: ...
    def check_unchanged(self, *, trust_stamp: bool = True) -> None: ...


class Store:
    """A shard folder, opened for reading.

    Args:
        url: a path or any fsspec URL.
        cache: cache for shards of remote stores; by default the node's, with CACHE_GIB.
        retry: attempts and waits for a remote store.
    Raises:
        DataError: the manifest is missing, of another version, too large, or damaged.
        StorageError: the folder cannot be read.
        UsageError: a URL of an unknown scheme, or with credentials in it.
    """

    def __init__(self, url: str, *, cache: Cache | None = None, retry: Retry | None = None) -> None:
        self.url = url.rstrip("/")
        self.cache = cache or Cache(budget=int(CACHE_GIB * 2**30))
        self._source = Source(self.url, retry or Retry())
        self._hashes: dict[str, bytes] = {}
        self._clear()
        data = self._manifest_bytes()
        self.manifest = read_manifest(data, where=self._source.where(MANIFEST))
        self._manifest_sha256 = hashlib.sha256(data).hexdigest()
        self._stamp = self._source.stamp(MANIFEST)

    def _clear(self) -> None:
        self._local_shards: LocalShards | None = None
        self._remote_shards: RemoteShards | None = None

    def index(self, shard: ShardInfo) -> ShardIndex:
        """Read a shard's index and check it against the manifest's hash. Raises DataError, StorageError."""
        data = None if self.is_local else self.cache.small(shard.index_sha256)
        if data is None or hashlib.sha256(data).hexdigest() != shard.index_sha256:
            data = self._source.whole(shard.index_path, at_most=MAX_JSON_BYTES)
        where = self._source.where(shard.index_path)
        index = read_index(data, where=where, shard=shard, num_classes=len(self.manifest.classes))
        if not self.is_local:
            self.cache.keep_small(shard.index_sha256, data)
        self._hashes[shard.sha256] = bytes.fromhex("".join(index.chunks))
        return index

    def indexes(self, shards: Sequence[ShardInfo]) -> list[ShardIndex]:
        """Read the indexes of several shards, from a remote store in parallel. Raises DataError, StorageError."""
        if self.is_local or not shards:
            return [self.index(shard) for shard in shards]
        with ThreadPoolExecutor(min(MAX_CONCURRENT_INDEXES, len(shards))) as threads:
            return list(threads.map(self.index, shards))

    def file(self, path: str) -> bytes:
        """A small file beside the manifest. Raises DataError, StorageError."""
        return self._source.whole(path, at_most=MAX_JSON_BYTES)

    @property
    def is_local(self) -> bool:
        """Whether the shards are on a local file system."""
        return self._source.local is not None

    @property
    def fetched(self) -> int:
        """Bytes of shards that this process has fetched from a remote store."""
        return self._remote_shards.fetched if self._remote_shards else 0

    def prefetch(self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "") -> Pending | None:
        """Start to fetch these (offset, size) of a shard, for a later `read`; None for local shards."""
        if self.is_local:
            return None
        return self.remote.prefetch(shard, self.hashes(shard), spans, where=where or self._source.where(shard.path))

    def read(
        self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "", pending: Pending | None = None
    ) -> list[Bytes]:
        """Read the bytes at these (offset, size) of a shard, in the same order. where: shard and clip, for messages.

        Raises:
            DataError: the shard is missing, has another size than in the manifest, or was changed at these bytes.
            StorageError: the shard cannot be read.
        """
        where = where or self._source.where(shard.path)
        if not self.is_local:
            return self.remote.read(shard, self.hashes(shard), spans, where=where, pending=pending)
        with self._source.wrap_errors(shard.path):
            found = self.local.open(shard)
            if found != shard.bytes:
                raise other_size(self._source.where(shard.path), shard, found, do=self._remedy())
            return list(self.local.read(shard, self.hashes(shard), spans, where=where))

    def complete(self, file: CachedShard, shard: ShardInfo, first: int, last: int) -> None:
        """Fetch chunks `first` to `last` of a shard of a remote store into its file in the cache, for later reads."""
        self.remote.complete(file, shard, self.hashes(shard), first, last, shard.path)

    def hashes(self, shard: ShardInfo) -> bytes:
        """Return the SHA-256 of all chunks of a shard, concatenated, 32 bytes each."""
        if shard.sha256 not in self._hashes:
            self.index(shard)
        return self._hashes[shard.sha256]

    def check_unchanged(self, *, trust_stamp: bool = True) -> None:
        """Raise DataError when the manifest was replaced since the folder was opened.

        trust_stamp: read it only if the store's metadata changed, which some web servers never show."""
        stamp = self._source.stamp(MANIFEST)
        if trust_stamp and stamp == self._stamp:
            return
        found = hashlib.sha256(self._manifest_bytes()).hexdigest()
        if found != self._manifest_sha256:
            expected = f"the manifest this run began with, sha256 {self._manifest_sha256[:12]}..."
            got = f"another one, {found[:12]}..."
            raise DataError(message(self._source.where(MANIFEST), expected=expected, got=got, do=REPLACED))
        self._stamp = stamp

    @property
    def local(self) -> LocalShards:
        if self._local_shards is None:
            root = self._source.local
            assert root is not None
            self._local_shards = LocalShards(root, self.cache)
        return self._local_shards

    @property
    def remote(self) -> RemoteShards:
        if self._remote_shards is None:
            self._remote_shards = RemoteShards(self._source, self.cache, remedy=self._remedy)
        return self._remote_shards

    def _remedy(self) -> str:
        """Return the remedy when a shard is wrong because the whole folder was replaced; else empty."""
        try:
            self.check_unchanged(trust_stamp=False)
        except DferError as error:
            return REPLACED if isinstance(error, DataError) else ""
        return ""

    def _manifest_bytes(self) -> bytes:
        try:
            data = self._source.whole(MANIFEST, at_most=MAX_JSON_BYTES)
        except FileNotFoundInStore as error:
            raise FileNotFoundInStore(
                message(
                    self._source.where(MANIFEST),
                    expected="the manifest that a finished build writes last",
                    got="no such file",
                    do="Correct data.shards, or run `dfer-shards build` to its end.",
                )
            ) from error
        check_json_size(len(data), where=self._source.where(MANIFEST))
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.endswith("_shards")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()
