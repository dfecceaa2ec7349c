"""Shards of a store far away: the same bytes as on a disk, each fetched once, and every fault told or mended."""

import gc
import hashlib
import os
import pickle
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfer.data.clips import ClipSet
from dfer.emotions import label_set
from dfer.errors import DataError, StorageError
from dfer.storage import Retry
from dfer.store.cache import Cache
from dfer.store.chunks import runs
from dfer.store.shards import Store
from tests.unit.data.httpkit import Site, site
from tests.unit.data.shardkit import Clip, write_shards

CHUNK = 262_144
QUICK = Retry(attempts=3, base_s=0.001, timeout_s=1)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 12 clips of 3 frames of 40 kB: six chunks each, frames across the borders of chunks."""
    shards = [
        [Clip(key=f"s{s}c{c}", frames=[noise(100 * s + 3 * c + f, 40_000 + f) for f in range(3)]) for c in range(12)]
        for s in range(2)
    ]
    return write_shards(tmp_path_factory.mktemp("original"), {"train": shards})


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "shards"))


@pytest.fixture
def server(folder: Path) -> Iterator[Site]:
    with site(folder) as running:
        yield running


def opened(url: str, cache: Path, *, budget: int = 2**30, retry: Retry = QUICK) -> ClipSet:
    store = Store(url, cache=Cache(cache, budget=budget), retry=retry)
    return ClipSet.open(store, ["train"], emotions=label_set("basic7"))


def contents(clips: ClipSet) -> list[list[bytes]]:
    return [[bytes(frame) for frame in clips.read(index, [0, 1, 2])] for index in range(len(clips))]


def test_runs_cover_their_numbers_without_gaps() -> None:
    assert runs([], longest=3) == []
    assert runs([1, 2, 3, 4, 6, 9, 10], longest=3) == [(1, 3), (4, 4), (6, 6), (9, 10)]


# The same bytes, once


def test_every_chunk_comes_once_for_all_processes(folder: Path, server: Site, tmp_path: Path) -> None:
    expected = contents(opened(str(folder), tmp_path / "local"))
    clips = opened(server.url, tmp_path / "c")
    assert contents(clips) == expected and contents(clips) == expected
    assert contents(opened(server.url, tmp_path / "c")) == expected, "as another run of the node reads them"
    size = sum(path.stat().st_size for path in folder.glob("train/*.tar"))
    assert clips.store.fetched == server.bytes_of(".tar") <= size
    assert server.bytes_of("00000.index.json") == (folder / "train/00000.index.json").stat().st_size


def test_a_clip_costs_only_the_chunks_of_its_frames(server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    server.asked.clear()
    clips.read(0, [1])
    clips.read(1, [0])
    assert server.asked == [("train/00000.tar", 0, CHUNK)]


def test_indexes_are_read_side_by_side(server: Site, tmp_path: Path) -> None:
    """Neither of the two is answered before both are asked for."""
    store = Store(server.url, cache=Cache(tmp_path / "c", budget=2**30))
    server.together = threading.Barrier(2)
    assert len(store.indexes(store.manifest.shards)) == 2


def test_parts_are_fetched_side_by_side_and_ahead(server: Site, tmp_path: Path) -> None:
    """Nothing is answered before the parts of all four clips are asked for, which who asks does not wait for."""
    clips = opened(server.url, tmp_path / "c")
    server.together = threading.Barrier(4)
    pending = [clips.prefetch(index, [0, 1, 2]) for index in (0, 6, 12, 18)]
    frames = [clips.read(index, [0], under_way) for index, under_way in zip((0, 6, 12, 18), pending)]
    assert len(frames) == 4


@pytest.mark.parametrize("budget", [1, 1_500_000, 2_000_000])
def test_with_less_room_than_data_all_is_read_and_the_budget_kept(
    folder: Path, server: Site, tmp_path: Path, budget: int
) -> None:
    expected = contents(opened(str(folder), tmp_path / "local"))
    clips = opened(server.url, tmp_path / "c", budget=budget)
    order = random.Random(1).choices(range(24), k=60)
    for index in order:
        assert [bytes(frame) for frame in clips.read(index, [0, 1, 2])] == expected[index]
        assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "c").rglob("*") if path.is_file()) <= budget
    assert all((tmp_path / "c" / name).is_dir() for name in ("shards", "index", "local"))


def test_a_shard_evicted_between_asking_and_reading_is_fetched_anew(server: Site, tmp_path: Path) -> None:
    budget = 1_600_000 + 64 * 1024
    clips, other = (opened(server.url, tmp_path / "c", budget=budget) for _ in range(2))
    pending = clips.prefetch(0, [0, 1, 2])
    assert pending is not None
    pending.wait()
    other.read(12, [0])
    assert len(list((tmp_path / "c" / "shards").iterdir())) == 1, "the first one went"
    frames = [bytes(frame) for frame in clips.read(0, [0, 1, 2], pending)]
    assert frames == [noise(f, 40_000 + f) for f in range(3)]


def test_a_cached_chunk_of_an_earlier_boot_is_hashed_again(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = opened(server.url, tmp_path / "c")
    expected = contents(clips)
    name = clips.store.manifest.shards[0].sha256
    with (tmp_path / "c/shards" / name).open("r+b") as file:
        file.seek(2 * CHUNK)
        file.write(bytes(CHUNK))  # as a power cut may leave it: the state is on the disk, the data not
    server.asked.clear()
    monkeypatch.setattr("dfer.store.cached_shard.boot_id", lambda: b"x" * 36)
    assert contents(opened(server.url, tmp_path / "c")) == expected
    assert [part for part in server.asked if part[0] != "manifest.json"] == [("train/00000.tar", 2 * CHUNK, CHUNK)]


def test_a_store_that_was_used_can_be_pickled(server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    frames = contents(clips)
    server.asked.clear()
    assert contents(pickle.loads(pickle.dumps(clips))) == frames and server.asked == []


# Faults that pass


@pytest.mark.slow("two attempts that each wait for 1 s")
@pytest.mark.parametrize(
    "fault",
    [
        lambda data: 503,
        lambda data: 429,
        lambda data: None,
        lambda data: data[:1000],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: time.sleep(1.5) or data,
    ],
    ids=["503", "429", "no answer", "cut off", "one wrong bit", "stall"],
)
def test_a_fault_that_passes_is_mended(server: Site, tmp_path: Path, fault: object) -> None:
    clips = opened(server.url, tmp_path / "c")
    server.faults["train/00000.tar"] = [fault, fault]  # type: ignore[list-item]
    assert [bytes(frame) for frame in clips.read(0, [0, 2])] == [noise(0, 40_000), noise(2, 40_002)]
    assert len([path for path, _, _ in server.asked if path.endswith(".tar")]) == 3


# Faults that stay


def refused(clips: ClipSet, error: type[Exception], index: int = 0) -> str:
    with pytest.raises(error) as caught:
        clips.read(index, [0, 1, 2])
    return str(caught.value)


def test_a_flipped_bit_is_named_with_shard_clip_and_bytes(folder: Path, server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    path = folder / "train/00001.tar"
    data = bytearray(path.read_bytes())
    expected = hashlib.sha256(data[CHUNK : 2 * CHUNK]).hexdigest()[:12]
    data[CHUNK + 100_000] ^= 8
    path.write_bytes(data)
    got = hashlib.sha256(data[CHUNK : 2 * CHUNK]).hexdigest()[:12]
    assert refused(clips, DataError, 12 + 3) == (
        f"{server.url}/train/00001.tar, clip s1c3: expected sha256 {expected}... of its bytes 262144 to 524288, "
        f"got {got}... (3 attempts). "
        "The file was changed or damaged after the build: copy it again or build the shards again."
    )
    clips.read(12, [0, 1, 2])  # the chunks around it are whole


@pytest.mark.parametrize("left", [1000, 100])
def test_a_truncated_shard_is_named_at_once(folder: Path, server: Site, tmp_path: Path, left: int) -> None:
    clips = opened(server.url, tmp_path / "c")
    path = folder / "train/00000.tar"
    size = path.stat().st_size
    os.truncate(path, left * 1000)
    index = 11 if left == 1000 else 8
    text = refused(clips, DataError, index)
    assert text.startswith(
        f"{server.url}/train/00000.tar: expected {size} bytes as the manifest says, got {left * 1000}. The copy is"
    )
    assert len([path for path, *_ in server.asked if path.endswith(".tar")]) <= 1


def test_a_missing_shard(folder: Path, server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    (folder / "train/00000.tar").unlink()
    assert refused(clips, DataError).startswith(
        f"{server.url}/train/00000.tar: expected a file of the shard folder, got"
    )


@pytest.mark.slow("three attempts that each wait for 1 s")
def test_a_store_that_does_not_recover(server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    server.always["train/00000.tar"] = lambda data: 503
    text = refused(clips, StorageError)
    assert text.startswith(f"{server.url}/train/00000.tar: expected to read it, got 503, ") and "(3 attempts)" in text
    server.always["train/00000.tar"] = lambda data: data[:5]
    assert "(3 attempts). Check the URL, the network" in refused(clips, StorageError)
    server.always["train/00000.tar"] = lambda data: time.sleep(1.2) or data
    assert "got not done in 1 s (3 attempts)" in refused(clips, StorageError)


def test_a_server_that_knows_no_parts(server: Site, tmp_path: Path) -> None:
    server.ranges = False
    clips = opened(server.url, tmp_path / "c")
    assert refused(clips, StorageError) == (
        f"{server.url}/train/00000.tar: expected the 262,144 requested bytes, got the whole file. "
        "The server does not support Range requests: use one that does, or copy the shards to a disk."
    )


@pytest.mark.parametrize("tags", [True, False])
def test_shards_that_were_built_anew_are_told_as_such(folder: Path, server: Site, tmp_path: Path, tags: bool) -> None:
    server.tags = tags
    clips = opened(server.url, tmp_path / "c")
    clips.read(0, [0])
    shards = [
        [Clip(key=f"s{s}c{c}", frames=[noise(9, 40_000 + f) for f in range(3)]) for c in range(12)] for s in (0, 1)
    ]
    write_shards(folder, {"train": shards})
    text = refused(clips, DataError, 5)
    assert text.startswith(f"{server.url}/train/00000.tar, clip s0c5: expected sha256 ")
    assert text.endswith(
        "The shards were built anew since: start again, or set data.shards to the ones this run began with."
    )
    with pytest.raises(
        DataError, match=r"manifest.json: expected the manifest this run began with, .* got another one"
    ):
        clips.store.check_unchanged(trust_stamp=tags)
    assert [bytes(frame) for frame in clips.read(0, [0])] == [noise(0, 40_000)], "what is in the cache is still right"


def test_an_unchanged_manifest_is_not_read_again(folder: Path, server: Site, tmp_path: Path) -> None:
    store = opened(server.url, tmp_path / "c").store
    server.asked.clear()
    store.check_unchanged()
    assert server.asked == []
    local = opened(str(folder), tmp_path / "c").store
    os.utime(folder / "manifest.json", (1, 1))
    local.check_unchanged()


def test_a_manifest_too_large_to_be_one(folder: Path, server: Site, tmp_path: Path) -> None:
    os.truncate(folder / "manifest.json", 17 * 2**20)
    for url in (server.url, str(folder)):
        with pytest.raises(DataError, match=r"manifest.json: expected at most 16,777,216 bytes, got 16,777,217"):
            Store(url)


# A disk of this machine


def test_a_flipped_bit_on_a_local_disk_is_found(folder: Path, tmp_path: Path) -> None:
    path = folder / "train/00000.tar"
    data = bytearray(path.read_bytes())
    data[CHUNK + 5] ^= 1
    path.write_bytes(data)
    clips = opened(str(folder), tmp_path / "c")
    clips.read(0, [0, 1, 2])
    text = refused(clips, DataError, 3)
    assert text.startswith(f"{path}, clip s0c3: expected sha256 ") and "of its bytes 262144 to 524288, got " in text


def test_what_was_checked_on_a_local_disk_is_remembered_by_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = hashlib.sha256
    contents(opened(str(folder), tmp_path / "c"))
    monkeypatch.setattr(
        "dfer.store.chunks.hashlib.sha256",
        lambda data: (hashed.append(len(data)) if len(data) > 10_000 else None, real(data))[1],
    )
    again = opened(str(folder), tmp_path / "c")
    hashed.clear()
    contents(again)
    assert hashed == []
    changed = folder / "train/00001.tar"
    changed.write_bytes(changed.read_bytes())  # another time of change
    again = opened(str(folder), tmp_path / "c")
    hashed.clear()
    contents(again)
    assert sum(hashed) == changed.stat().st_size // CHUNK * CHUNK + changed.stat().st_size % CHUNK


def test_threads_end_with_their_process_and_do_not_start_for_nothing(server: Site, tmp_path: Path) -> None:
    clips = opened(server.url, tmp_path / "c")
    before = set(threading.enumerate())
    contents(clips)
    started = {thread for thread in threading.enumerate() if thread not in before and "fetch" in thread.name}
    assert 0 < len(started) <= 16 and all(thread.daemon for thread in started)
    del clips
    gc.collect()
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)
