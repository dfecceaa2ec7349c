"""Training data from a real S3 server through a proxy with the faults such stores have: batches as from a disk."""

import itertools
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from dfer.data import loader as loading
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.errors import DataError, StorageError
from dfer.recognition import ClipBatch
from dfer.storage import Retry
from dfer.store.cache import Cache
from dfer.store.shards import Store
from tests.fault_proxy import KINDS, FaultProxy, fault_proxy
from tests.servers import S3, free_port, rclone, use
from tests.unit.data.shardkit import Clip, write_shards

pytestmark = pytest.mark.integration

Rows = list[tuple[int, int, torch.Tensor]]
PATIENT = Retry(attempts=8, base_s=0.01, cap_s=0.2, timeout_s=60.0)
"""No attempt is given up that would have succeeded on a busy machine: bytes are counted."""
QUICK = replace(PATIENT, timeout_s=4.0)
"""Where answers stall."""
SIZE, CLIPS, FRAMES = 64, 288, 14


def picture(rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 shards of 24 clips, together 37 MB of pictures of noise."""
    rng = np.random.default_rng(1)
    clips = [Clip(key=f"c{n:03d}", label=n % 7, frames=[picture(rng) for _ in range(FRAMES)]) for n in range(CLIPS)]
    shards = [clips[at : at + 24] for at in range(0, CLIPS, 24)]
    return write_shards(tmp_path_factory.mktemp("local") / "shards", {"train": shards})


@pytest.fixture(autouse=True)
def _workers_end_with_their_test() -> Iterator[None]:
    """Else Python frees a loader that an error holds in some later test, which waits 5 s for every worker."""
    yield
    loading._end_workers()


@pytest.fixture(scope="module")
def workers_port() -> int:
    """One proxy's after the other in the tests with worker processes, whose fork server keeps its environment."""
    return free_port()


@pytest.fixture
def server(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultProxy]:
    """The shards at s3://data/shards, behind a proxy that does no harm yet."""
    shutil.copytree(local, tmp_path / "served/data/shards")
    with (
        rclone(tmp_path / "served", remembers="0s") as store,
        fault_proxy(store.endpoint, port=_port(request)) as proxy,
    ):
        use(S3(proxy.endpoint), monkeypatch)
        yield proxy


def _port(request: pytest.FixtureRequest) -> int:
    """Without workers any: the threads that a test leaves reading for a moment must not find the next one's proxy."""
    chosen = getattr(request.node, "callspec", None)
    asks = "workers_port" in request.fixturenames or (chosen is not None and chosen.params.get("workers", 0) > 0)
    return int(request.getfixturevalue("workers_port")) if asks else 0


workers_only = pytest.mark.usefixtures("workers_port")
"""For tests whose loaders have worker processes, or read to the end."""


URL = "s3://data/shards"


def loader(
    url: Any,
    cache: Path,
    *,
    budget: int = 2**30,
    workers: int = 0,
    world: World | None = None,
    train: bool = True,
    retry: Retry = PATIENT,
    **config: Any,
) -> Loader:
    store = Store(str(url), cache=Cache(cache, budget=budget), retry=retry)
    clips = ClipSet.open(store, ["train"], emotions=label_set("basic7"))
    data = DataConfig(shards=str(url), frames=8, size=SIZE, workers=workers, **config)
    world = world or World()
    return Loader(clips, data, world=world, seed=3, train=train, global_batch=8, micro_batch=8 // world.size)


def rows(batches: Iterator[ClipBatch]) -> Rows:
    return [
        (index, label, frames)
        for batch in batches
        for index, label, frames in zip(batch.index.tolist(), batch.labels.tolist(), batch.frames, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rows]:
    """The rows that a disk gives in an epoch, each read once."""

    @cache
    def read(epoch: int = 0, partitions: int | None = None) -> Rows:
        config = {} if partitions is None else {"canonical_partitions": partitions}
        return rows(loader(local, tmp_path_factory.mktemp("disk"), **config).epoch(epoch))

    return read


def same(a: Rows, b: Rows) -> bool:
    return len(a) == len(b) and all(x[:2] == y[:2] and torch.equal(x[2], y[2]) for x, y in zip(a, b))


def shard_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.tar"))


def passed(proxy: FaultProxy) -> int:
    """Bytes of shards that were fetched."""
    return sum(size for path, size in proxy.counts()["bytes_of"].items() if path.endswith(".tar"))


@pytest.mark.parametrize(("workers", "read_ahead"), [(0, False), (2, True)])
def test_an_epoch_under_faults_is_that_of_a_disk(
    expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path, workers: int, read_ahead: bool
) -> None:
    remote = loader(URL, tmp_path / "c", workers=workers, read_ahead=read_ahead, retry=QUICK)
    server.set(slow_down=0.05, resets=0.02, stalls=0.01, shorts=0.02, flips=0.02, seed=8)
    assert same(rows(remote.epoch(0)), expected())
    faults = server.counts()["faults"]
    if not read_ahead:  # which asks for few large parts
        assert server.counts()["requests"] >= 100 and set(faults) == set(KINDS), faults


@workers_only
def test_the_first_epoch_fetches_every_byte_once_and_the_second_none(
    local: Path, expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path
) -> None:
    """Two ranks with two workers each share the cache of their node."""
    worlds = [World(rank=rank, size=2, local_rank=rank, local_size=2) for rank in (0, 1)]
    ranks = [loader(URL, tmp_path / "c", workers=2, world=world) for world in worlds]
    for epoch, most in ((0, 1.02), (1, 0)):
        before = passed(server)
        batches = list(zip(*(rank.epoch(epoch) for rank in ranks), strict=True))
        assert passed(server) - before <= most * shard_bytes(local)
        assert same([row for pair in batches for row in rows(iter(pair))], expected(epoch))
    assert passed(server) >= shard_bytes(local)


@workers_only
def test_a_cache_of_a_third_is_never_exceeded(
    local: Path, expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path
) -> None:
    budget = shard_bytes(local) // 3
    remote, cache = loader(URL, tmp_path / "c", budget=budget, workers=2), Cache(tmp_path / "c", budget=budget)
    worst, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            with cache._space():
                files = [path.stat().st_blocks * 512 for path in (tmp_path / "c").rglob("*") if path.is_file()]
            worst[0] = max(worst[0], sum(files))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for epoch in (0, 1):
            assert same(rows(remote.epoch(epoch)), expected(epoch))
    finally:
        done.set()
        watching.join()
    assert budget // 2 < worst[0] <= budget
    # Without any cache every clip would cost its chunks.
    assert passed(server) < 2 * sum(chunks_of_clips(local)) * 262_144


def chunks_of_clips(folder: Path) -> list[int]:
    """Chunks that each clip lies in."""
    counts = []
    for path in folder.rglob("*.index.json"):
        columns = json.loads(path.read_text())
        sizes = iter(columns["sizes"])
        for begin, frames in zip(columns["offset"], columns["frames"], strict=True):
            end = begin + sum(-(-size // 512) * 512 + 512 for size in itertools.islice(sizes, frames))
            counts.append(end // 262_144 - begin // 262_144 + 1)
    return counts


@workers_only
def test_few_shards_at_a_time_stream_through_a_cache_without_room_for_all(
    local: Path, expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path
) -> None:
    """Two partitions of six shards, four at a time: what goes has been used up, so nearly every byte comes once."""
    budget = shard_bytes(local) * 10 // 12
    remote = loader(URL, tmp_path / "c", budget=budget, workers=1, canonical_partitions=2)
    assert same(rows(remote.epoch(0)), expected(0, partitions=2))
    # Without a cache it would be nearly three times; the last clips of a window are read beside the first of the next.
    assert passed(server) <= 1.15 * shard_bytes(local)


@workers_only
def test_a_run_goes_on_in_the_middle_of_an_epoch_in_another_layout(
    expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path
) -> None:
    ranks = [
        loader(URL, tmp_path / "c", workers=rank, world=World(rank=rank, size=2, local_rank=rank, local_size=2))
        for rank in (0, 1)
    ]
    pairs = zip(*(rank.epoch(1, 20) for rank in ranks), strict=True)
    assert same([row for pair in pairs for row in rows(iter(pair))], expected(1)[20 * 8 :])


def test_the_first_batch_waits_for_its_own_chunks_only(server: FaultProxy, tmp_path: Path) -> None:
    remote = loader(URL, tmp_path / "c", read_ahead=False)
    server.set(rate=5e6, latency_s=0.05)
    before = passed(server)
    next(remote.epoch(0))
    # Three requests of eight clips are under way by then, two chunks each at most.
    assert passed(server) - before <= 3 * 8 * 2 * 262_144


# What stays wrong

SAYS = {
    "flipped": r"train/000\d\d.tar, clip c\d+: expected sha256 .* of its bytes \d+ to \d+, got .* "
    r"\(8 attempts\). The file was changed or damaged after the build",
    "truncated": r"train/000\d\d.tar: expected \d+ bytes as the manifest says, got \d+. The copy",
    "replaced": r"train/.*The shards were built anew since: start again",
}


def consumed_until(remote: Loader, spoil: Any) -> tuple[Rows, str]:
    """The rows that were given before the error, and the error; `spoil` is called after the first batch."""
    got, batches = [], remote.epoch(0)
    got += rows(iter([next(batches)]))
    spoil()
    with pytest.raises(DataError) as caught:
        for batch in batches:
            got += rows(iter([batch]))
    return got, str(caught.value)


def put(path: Path, data: bytes) -> None:
    """In the place of the file, at once: the server is at work."""
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.replace(path)


def spoilt(served: Path, kind: str) -> None:
    tars = sorted(served.rglob("*.tar"))
    if kind == "replaced":
        rng = random.Random(2)
        clips = [
            Clip(key=f"n{n:03d}", frames=[picture(np.random.default_rng(rng.randrange(9)))] * 3) for n in range(99)
        ]
        shutil.rmtree(served)
        write_shards(served, {"train": [clips[at : at + 9] for at in range(0, 99, 9)]})
    for path in tars:
        if kind == "flipped":
            data = bytearray(path.read_bytes())
            for at in range(1000, len(data), 262_144):
                data[at] ^= 1
            put(path, data)
        elif kind == "truncated":
            os.truncate(path, path.stat().st_size // 8)


@pytest.mark.parametrize(
    ("workers", "kind"),
    [
        (0, "flipped"),
        (0, "truncated"),
        (0, "replaced"),
        (1, "flipped"),
        pytest.param(1, "truncated", marks=pytest.mark.long),
        pytest.param(1, "replaced", marks=pytest.mark.long),
    ],
)
def test_shards_that_change_under_way_stop_the_run_before_anything_wrong_is_trained_on(
    expected: Callable[..., Rows], server: FaultProxy, tmp_path: Path, kind: str, workers: int
) -> None:
    remote = loader(URL, tmp_path / "c", workers=workers, read_ahead=False)
    got, text = consumed_until(remote, lambda: spoilt(tmp_path / "served/data/shards", kind))
    assert re.match("s3://data/shards/" + SAYS[kind], text), text
    assert same(got, expected()[: len(got)]) and len(got) < len(expected())


def test_a_manifest_replaced_between_two_epochs_stops_the_run(server: FaultProxy, tmp_path: Path) -> None:
    remote = loader(URL, tmp_path / "c")
    rows(remote.epoch(0))
    path = tmp_path / "served/data/shards/manifest.json"
    put(path, path.read_bytes().replace(b'"shardkit"', b'"another"'))
    with pytest.raises(
        DataError, match=r"manifest.json: expected the manifest this run began with, sha256 .*, got anot"
    ):
        next(remote.epoch(1))


def test_a_store_that_goes_away(server: FaultProxy, tmp_path: Path) -> None:
    remote = loader(URL, tmp_path / "c", read_ahead=False)
    batches = remote.epoch(0)
    next(batches)
    server.set(slow_down=1.0)
    with pytest.raises(StorageError, match=r"expected to read it, got .*\(8 attempts\). Check the URL, the network"):
        list(batches)
    time.sleep(2)  # for what was looked ahead for
    before, clips = server.counts()["requests"], remote._clips
    with pytest.raises(StorageError, match=r"got .*Please reduce your request rate. \(8 attempts\)"):
        clips.store.remote.read(clips.table.shards[-1], clips.store.hashes(clips.table.shards[-1]), [(0, 9)], where="")
    assert server.counts()["requests"] - before == 8, "no other floor tries again"


def test_what_is_in_the_cache_needs_no_store(server: FaultProxy, tmp_path: Path) -> None:
    remote = loader(URL, tmp_path / "c")
    first = rows(remote.epoch(0))
    server.set(slow_down=1.0)
    assert same(rows(remote.epoch(0)), first)
