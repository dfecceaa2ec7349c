"""The cache of shards: each byte fetched once, the budget kept, nobody read what is not verified, whoever dies."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfer.store import cache as cache_module
from dfer.store import cached_shard
from dfer.store.cache import Cache, default_folder
from dfer.store.cached_shard import ABSENT, UNSURE, VERIFIED, CachedShard, Evicted

CHUNK = 262_144
NAMES = [f"{number:064x}" for number in range(40)]
SPAWN = multiprocessing.get_context("fork")


def disk_use(folder: Path) -> int:
    """What `du` would say of all files that are still there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def filled(cache: Cache, name: str, chunks: int = 4) -> CachedShard:
    file = cache.shard(name, chunks * CHUNK)
    assert file is not None
    with file.held(), file.exclusive(0, chunks - 1):
        file.write(0, b"".join(bytes([number]) * CHUNK for number in range(chunks)))
    return file


@contextmanager
def child(work: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    process = SPAWN.Process(target=work, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_chunks_come_back_as_they_were_written(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=2**30)
    file = cache.shard(NAMES[0], 3 * CHUNK + 5)
    assert file is not None and cache.shard(NAMES[0], 3 * CHUNK + 5) is file
    assert file.states(0, 9)[:4] == bytes([ABSENT] * 4)
    with file.held(), file.exclusive(2, 3):
        file.write(2, b"x" * (CHUNK + 5))
    other = pickle.loads(pickle.dumps(cache)).shard(NAMES[0], 3 * CHUNK + 5)
    assert other is not file and other.states(0, 4) == bytes([ABSENT, ABSENT, VERIFIED, VERIFIED])
    assert other.read(2 * CHUNK, CHUNK + 5) == b"x" * (CHUNK + 5)
    assert disk_use(tmp_path) >= 3 * CHUNK, "the space of the whole shard is taken at once"


def test_another_boot_of_the_machine_doubts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(Cache(tmp_path, budget=2**30), NAMES[0], 4)
    file = Cache(tmp_path, budget=2**30).shard(NAMES[0], 4 * CHUNK)
    assert file is not None and file.states(0, 4) == bytes([VERIFIED] * 4)
    length = len(cached_shard.boot_id())
    monkeypatch.setattr(cached_shard, "boot_id", lambda: b"f" * length)
    file = Cache(tmp_path, budget=2**30).shard(NAMES[0], 4 * CHUNK)
    assert file is not None and file.states(0, 4) == bytes([UNSURE] * 4)
    file.set_verified(1, 2)
    file = Cache(tmp_path, budget=2**30).shard(NAMES[0], 4 * CHUNK)
    assert file is not None and file.states(0, 4) == bytes([UNSURE, VERIFIED, VERIFIED, UNSURE])


def test_a_file_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=2**30)
    assert cache.shard(NAMES[1], CHUNK)
    (tmp_path / "shards" / NAMES[0]).write_bytes(b"\1" * 1000)
    file = cache.shard(NAMES[0], 4 * CHUNK)
    assert file is not None and file.states(0, 4) == bytes([ABSENT] * 4)


# Locks


def _fetch(folder: Path, log: Path, pause: float) -> None:
    file = Cache(folder, budget=2**30).shard(NAMES[0], 4 * CHUNK)
    assert file is not None
    with file.held(), file.exclusive(0, 3):
        if file.states(0, 4) != bytes([VERIFIED] * 4):
            with log.open("a") as out:
                out.write("fetched\n")
            time.sleep(pause)
            file.write(0, b"x" * 4 * CHUNK)


def test_two_processes_fetch_the_same_chunks_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with child(_fetch, tmp_path / "c", log, 0.3) as one, child(_fetch, tmp_path / "c", log, 0.3) as two:
        one.join(20)
        two.join(20)
        assert one.exitcode == two.exitcode == 0
    assert log.read_text() == "fetched\n"


def test_threads_of_a_process_fetch_the_same_chunks_once(tmp_path: Path) -> None:
    log, file = tmp_path / "log", Cache(tmp_path / "c", budget=2**30).shard(NAMES[0], 4 * CHUNK)
    assert file is not None
    inside, worst = [0], [0]

    def work() -> None:
        with file.held(), file.exclusive(1, 2):
            inside[0] += 1
            worst[0] = max(worst[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    with file.held(), file.exclusive(3, 3):
        pass  # other chunks are free meanwhile
    for thread in threads:
        thread.join()
    assert worst == [1] and not log.exists()


def test_a_killed_fetcher_leaves_no_lock(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with child(_fetch, tmp_path / "c", log, 600.0) as slow:
        while not log.exists():
            time.sleep(0.01)
        with child(_fetch, tmp_path / "c", log, 0.0) as waiting:
            waiting.join(0.5)
            assert waiting.exitcode is None, "the chunks are being fetched"
            os.kill(slow.pid, signal.SIGKILL)
            waiting.join(20)
            assert waiting.exitcode == 0
    assert log.read_text() == "fetched\nfetched\n"


# The budget


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=4 * (4 * CHUNK + 32 * 1024))
    for number in range(4):
        filled(cache, NAMES[number])
    for number, age in enumerate([30, 50, 40, 20]):
        os.utime(tmp_path / "shards" / NAMES[number], (time.time() - age,) * 2)
    filled(cache, NAMES[4])
    filled(cache, NAMES[5])
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [NAMES[0], *NAMES[3:6]]


def test_what_is_needed_or_in_use_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=3 * (4 * CHUNK + 32 * 1024))
    files = [filled(cache, NAMES[number]) for number in range(3)]
    cache.keep = lambda: frozenset(NAMES[1:3])
    with files[0].held():
        assert cache.shard(NAMES[3], 4 * CHUNK) is None
        assert cache.shard(NAMES[4], 4 * CHUNK, evict=False) is None
    cache._refused.clear()
    assert cache.shard(NAMES[3], 4 * CHUNK) is not None
    assert files[0].gone() and not files[1].gone() and not files[2].gone()
    with pytest.raises(Evicted), files[0].held():
        pass
    assert cache.shard(NAMES[5], 2**32) is None, "larger than the budget"
    assert not files[1].gone(), "nothing goes for what does not fit anyway"


def test_the_space_of_an_evicted_file_is_free_while_others_have_it_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=4 * CHUNK + 64 * 1024)
    first = filled(cache, NAMES[0])
    filled(Cache(tmp_path, budget=4 * CHUNK + 64 * 1024), NAMES[1])
    assert first.gone() and os.fstat(first._handle).st_blocks == 0


def _churn(folder: Path, budget: int, seed: int, until: float) -> None:
    cache, number = Cache(folder, budget=budget), seed
    while time.time() < until:
        number = (number * 29 + 11) % 40
        chunks = 1 + number % 5
        file = cache.shard(NAMES[number], chunks * CHUNK)
        cache._refused.clear()
        if file is None:
            continue
        try:
            with file.held():
                with file.exclusive(0, chunks - 1):
                    if file.states(0, chunks) != bytes([VERIFIED] * chunks):
                        file.write(0, bytes([number]) * chunks * CHUNK)
                assert file.read(0, chunks * CHUNK) == bytes([number]) * chunks * CHUNK
        except Evicted:
            continue


@pytest.mark.slow("four processes crowd each other for 3 s")
def test_the_budget_holds_and_reading_is_right_while_processes_crowd_each_other_out(tmp_path: Path) -> None:
    budget, worst = 3_000_000, 0
    until = time.time() + 3
    processes = [SPAWN.Process(target=_churn, args=(tmp_path, budget, seed, until)) for seed in range(4)]
    for process in processes:
        process.start()
    while time.time() < until:
        # Under the lock of those who make room: else a file is counted and then its successor as well.
        with Cache(tmp_path, budget=budget)._space():
            worst = max(worst, disk_use(tmp_path))
        time.sleep(0.001)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert budget // 2 < worst <= budget
    assert len(list((tmp_path / "shards").iterdir())) < 40, "there was something to evict"


# A disk that does not do as it should


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(2):
        cache = Cache(tmp_path, budget=2**30)
        assert cache.shard(NAMES[0], CHUNK) is None and cache.shard(NAMES[1], CHUNK) is None
        assert isinstance(cache.states("s", 3), bytearray)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: expected to cache shards there, got no room for 262,144 bytes more. Reading goes on without; "
        "set data.cache or DFER_CACHE to another folder, or data.cache_gib."
    ]
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "c", budget=2**30)
    assert cache.shard(NAMES[0], CHUNK) is None and cache.small("x") is None
    cache.keep_small("x", b"1")
    assert len(caplog.records) == 1 and "Not a directory" in caplog.text


def test_a_foreign_folder_in_the_temporary_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.delenv("DFER_CACHE")
    monkeypatch.setattr(cache_module.tempfile, "gettempdir", lambda: str(tmp_path))
    assert default_folder() == tmp_path / f"dfer-cache-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    default_folder().symlink_to(tmp_path / "elsewhere")
    assert Cache(budget=2**30).shard(NAMES[0], CHUNK) is None
    assert "it belongs to another user" in caplog.text and not list((tmp_path / "elsewhere").glob("shards/*"))
    default_folder().unlink()
    assert Cache(budget=2**30).shard(NAMES[0], CHUNK) is not None
    assert default_folder().stat().st_mode & 0o777 == 0o700


def test_threads_that_start_together_all_find_the_cache(tmp_path: Path) -> None:
    for turn in range(20):
        cache, start = Cache(tmp_path / str(turn), budget=2**30), threading.Barrier(4)

        def keep(name: str, cache: Cache = cache, start: threading.Barrier = start) -> None:
            start.wait()
            cache.keep_small(name, b"1")

        threads = [threading.Thread(target=keep, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [cache.small(name) for name in "abcd"] == [b"1"] * 4


def test_small_files_and_states(tmp_path: Path) -> None:
    cache = Cache(tmp_path, budget=2**30)
    assert cache.small("a") is None
    cache.keep_small("a", b"123")
    assert cache.small("a") == b"123"
    one, two = cache.states("s", 5), Cache(tmp_path, budget=2**30).states("s", 5)
    one[3] = VERIFIED
    assert bytes(two[:]) == bytes([0, 0, 0, VERIFIED, 0]), "seen by others at once"
    Cache(tmp_path, budget=1).keep_small("b", b"1")
    assert cache.small("b") is None
