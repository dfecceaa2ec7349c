"""Reading a shard folder: manifest, indexes, and the bytes of single frames, from a disk or any store fsspec knows.

Every byte that is used was checked: the manifest holds the hash of each index, and the index those of all chunks of its
shard. So whatever changes under way, nothing else is read than what was there when the folder was opened. Local shards
are memory-mapped; others are fetched in parts and kept in the cache of the node. Clients, maps and threads are made on
first use and left out of pickles: every process has its own.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dfer.errors import DataError, DferError, message
from dfer.storage import Retry
from dfer.store.cache import Cache
from dfer.store.chunks import Bytes, Span
from dfer.store.format import (
    MANIFEST,
    MAX_JSON_BYTES,
    ShardIndex,
    ShardInfo,
    check_json_size,
    read_index,
    read_manifest,
)
from dfer.store.local import LocalShards
from dfer.store.ranges import FileNotFoundInStore, Source
from dfer.store.remote import Pending, RemoteShards, other_size

CACHE_GIB = 64.0
INDEXES_AT_ONCE = 16
REPLACED = "The shards were built anew since: start again, or set data.shards to the ones this run began with."


class Store:
    """A shard folder, opened for reading.

    Args:
        url: a path or any fsspec URL.
        cache: where shards of remote stores are kept; by default the node's, with CACHE_GIB.
        retry: how often and how patiently a remote store is asked.
    Raises:
        DataError: no manifest, of another version, too large, or damaged.
        StorageError: the folder cannot be read.
        UsageError: a URL of no known kind, or with credentials in it.
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
        """The shard's index, checked against the manifest's hash. Raises DataError, StorageError."""
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
        """The indexes of several shards, of a remote store side by side. Raises DataError, StorageError."""
        if self.is_local or not shards:
            return [self.index(shard) for shard in shards]
        with ThreadPoolExecutor(min(INDEXES_AT_ONCE, len(shards))) as threads:
            return list(threads.map(self.index, shards))

    @property
    def is_local(self) -> bool:
        """Whether the shards are on a disk of this machine."""
        return self._source.local is not None

    @property
    def fetched(self) -> int:
        """Bytes of shards that this process has fetched from a remote store."""
        return self._remote_shards.fetched if self._remote_shards else 0

    def prefetch(self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "") -> Pending | None:
        """Start to fetch these (offset, size) of a shard, for `read` to wait for; None where shards are local."""
        if self.is_local:
            return None
        return self.remote.prefetch(shard, self.hashes(shard), spans, where=where or self._source.where(shard.path))

    def read(
        self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "", pending: Pending | None = None
    ) -> list[Bytes]:
        """The bytes at these (offset, size) of a shard, in the same order. where: shard and clip, for messages.

        Raises:
            DataError: the shard is missing, is not as long as the manifest says, or was changed there.
            StorageError: the shard cannot be read.
        """
        where = where or self._source.where(shard.path)
        if not self.is_local:
            return self.remote.read(shard, self.hashes(shard), spans, where=where, pending=pending)
        with self._source.wrap_errors(shard.path):
            found = self.local.open(shard)
            if found != shard.bytes:
                raise other_size(self._source.where(shard.path), shard, found, do=self._why())
            return list(self.local.read(shard, self.hashes(shard), spans, where=where))

    def hashes(self, shard: ShardInfo) -> bytes:
        """SHA-256 of all chunks of a shard, one after another, 32 bytes each."""
        if shard.sha256 not in self._hashes:
            self.index(shard)
        return self._hashes[shard.sha256]

    def check_unchanged(self, *, trust_stamp: bool = True) -> None:
        """Raise DataError when another manifest has taken the place of the one that was opened.

        trust_stamp: read it only if the store says that it changed, which some web servers never do."""
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
            self._remote_shards = RemoteShards(self._source, self.cache, why=self._why)
        return self._remote_shards

    def _why(self) -> str:
        """The remedy when a shard is wrong because the whole folder was replaced."""
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
