"""Compare reading training data from a remote store with a local disk, and whole shards with a bare boto3 loop."""

import copy
import importlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dfer.bench.loader import BATCH, SEED
from dfer.data.clips import ClipSet, emotions_for
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.distributed import World
from dfer.errors import UsageError, message
from dfer.store.ahead import MAX_CONCURRENT, ReadAhead
from dfer.store.cache import Cache
from dfer.store.chunks import runs, span_of
from dfer.store.format import CHUNK, ShardInfo, num_chunks
from dfer.store.remote import RANGE_BYTES
from dfer.store.shards import Store
from dfer.store.threads import Threads


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Speed of a pass over all clips. rate: frames/s after the first batch; first_s: seconds until the first batch."""

    rate: float
    first_s: float


def bench_streaming(url: str, *, against: str, frames: int = 16, size: int = 224, rounds: int = 5) -> dict[str, float]:
    """Measure and print, alternating `rounds` times: an epoch from `url` with an empty cache, and one from the local
    folder `against`, with one worker each; then reads of whole shards in ranges of 8 MiB through `Store` and, for an S3
    URL, in a bare boto3 loop.

    Raises:
        UsageError: the two hold different shards, or are swapped. DataError, StorageError: the shards cannot be read.
    """
    remote, local = Store(url), Store(against)
    _check(remote, local)
    epochs = [(_epoch(url, frames, size), _epoch(against, frames, size)) for _ in range(rounds)]
    share = statistics.median(ours.rate / disk.rate for ours, disk in epochs)
    result = {
        "remote": statistics.median(ours.rate for ours, _ in epochs),
        "local": statistics.median(disk.rate for _, disk in epochs),
        "remote_share": share,
        "first_s": statistics.median(ours.first_s for ours, _ in epochs),
    } | _whole_reads(url, rounds)
    print(
        f"{sum(shard.clips for shard in remote.manifest.shards)} clips of {url}, {frames} frames a clip at {size} px, "
    )
    print(f"one worker, empty cache, {rounds} rounds, medians:")
    print(f"  from the store     {result['remote']:,.0f} frames/s ({share:.0%} of the local disk's)")
    print(f"  from {against}  {result['local']:,.0f} frames/s")
    print(f"  first batch        {result['first_s']:.2f} s")
    print(
        f"  8 MiB reads        {result['read_mb_s']:,.0f} MB/s checked, {result['kept_mb_s']:,.0f} MB/s into the cache"
    )
    if "boto3_mb_s" in result:
        shares = f"{result['read_share']:.0%} and {result['kept_share']:.0%}"
        print(f"  bare boto3 loop    {result['boto3_mb_s']:,.0f} MB/s; ours: {shares} of it")
    return result


def _check(remote: Store, local: Store) -> None:
    if remote.is_local or not local.is_local:
        do = "Give the URL first and the folder as --against."
        got = f"{remote.url} and {local.url}"
        raise UsageError(message("bench loader", expected="a URL against a local folder", got=got, do=do))
    if remote.manifest != local.manifest:
        do = "Copy the shards from one to the other."
        raise UsageError(message("bench loader", expected="the same shards in both", got="others", do=do))


def _epoch(url: str, frames: int, size: int) -> Epoch:
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        config = DataConfig(shards=url, frames=frames, size=size, workers=1, cache=folder)
        store = config.store()
        clips = ClipSet.open(store, store.manifest.partitions(), emotions=emotions_for(None, store.manifest))
        batch = min(BATCH, len(clips))
        loader = Loader(clips, config, world=World(), seed=SEED, train=True, global_batch=batch, micro_batch=batch)
        started = time.perf_counter()
        batches = loader.epoch(0)
        next(batches)
        first = time.perf_counter()
        count = sum(given.num_clips for given in batches)
        return Epoch(rate=max(count, 1) * frames / (time.perf_counter() - first), first_s=first - started)


def _whole_reads(url: str, rounds: int) -> dict[str, float]:
    """Measure MB/s of reading all shards in ranges of 8 MiB, in turn: verified; written to an empty cache; boto3."""
    store = Store(url)
    store.indexes(store.manifest.shards)
    ways: dict[str, Callable[[], None]] = {"read": lambda: _read(store), "kept": lambda: _keep(store)}
    plain = _boto3_loop(store)
    if plain is not None:
        ways["boto3"] = plain
    size = sum(shard.bytes for shard in store.manifest.shards) / 1e6
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            rates[name].append(size / (time.perf_counter() - began))
    result = {f"{name}_mb_s": statistics.median(found) for name, found in rates.items()}
    if plain is not None:
        for name in ("read", "kept"):
            shares = [ours / boto3 for ours, boto3 in zip(rates[name], rates["boto3"], strict=True)]
            result[f"{name}_share"] = statistics.median(shares)
    return result


def _ranges(store: Store) -> list[tuple[ShardInfo, int, int]]:
    """List all ranges: shard, first and last chunk."""
    long = RANGE_BYTES // CHUNK
    found = [(shard, runs(range(num_chunks(shard.bytes)), longest=long)) for shard in store.manifest.shards]
    return [(shard, *run) for shard, parts in found for run in parts]


def _read(store: Store) -> None:
    """Fetch and verify every range, with as many concurrent reads as `ReadAhead`."""
    memory, threads = threading.local(), Threads(MAX_CONCURRENT, name="bench")

    def fetch(shard: ShardInfo, first: int, last: int) -> None:
        memory.own = getattr(memory, "own", None) or bytearray(RANGE_BYTES)
        store.remote.fetch(shard, store.hashes(shard), first, last, shard.path, memory.own)

    for part in [threads.submit(partial(fetch, *part)) for part in _ranges(store)]:
        part.result()


def _keep(store: Store) -> None:
    """Fetch every range into an empty cache."""
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        other = copy.copy(store)  # the copy has the indexes, but opens its own clients
        other.cache = Cache(folder, budget=2**40)
        ahead = ReadAhead(other)
        ahead.begin(other.manifest.shards, {}, 0)
        ahead.finish()


def _boto3_loop(store: Store) -> Callable[[], None] | None:
    """Return a loop that reads the same ranges in sequence with boto3, unverified; None if boto3 is not installed or
    the URL is not S3."""
    if not store.url.startswith("s3://"):
        return None
    try:
        boto3: Any = importlib.import_module("boto3")  # for the tests and this comparison only
        config: Any = importlib.import_module("botocore.config")
    except ImportError:
        return None
    bucket, _, folder = store.url.removeprefix("s3://").partition("/")
    plain = "when_required"
    checks = config.Config(request_checksum_calculation=plain, response_checksum_validation=plain)
    client = boto3.client("s3", config=checks)

    def loop() -> None:
        for shard, first, last in _ranges(store):
            key, (start, end) = f"{folder}/{shard.path}".lstrip("/"), span_of(first, last, shard.bytes)
            client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"].read()

    return loop
