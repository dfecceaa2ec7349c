"""The builder as processes: any number of jobs, killed, interrupted, out of disk, and continued."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests import servers
from tests.processes import alive, children
from tests.unit.shards import rawkit

pytestmark = pytest.mark.integration
COMMAND = [sys.executable, "-m", "shards"]
CLIPS, FRAMES, SHARDS = 100, 20, 25


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DFEW with 2,000 frames (one file, linked): a second or two of work in 25 shards."""
    return rawkit.large_dfew(tmp_path_factory.mktemp("raw") / "DFEW", clips=CLIPS, frames=FRAMES)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    done = finish(raw, out, jobs=1)
    assert done.returncode == 0, done.stderr
    return snapshot(out)


def arguments(raw: Path, out: Path, *, jobs: int) -> list[str]:
    return [*COMMAND, "build", "dfew", str(raw), str(out), "--jobs", str(jobs), "--clips-per-shard", "4"]


def finish(raw: Path, out: Path, *, jobs: int, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(raw, out, jobs=jobs), capture_output=True, text=True, timeout=300, **more)  # type: ignore[call-overload,no-any-return]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def halfway(raw: Path, folder: Path) -> "Iterator[tuple[subprocess.Popen[str], list[int], Path]]":
    """A build with two processes that has finished at least two shards and is not done, its workers and its folder.

    The workers are halted, so that the build cannot end however slowly the test goes on; the block lets them go on.
    """
    for attempt in range(5):
        out = folder / f"out_{attempt}"
        process = started(raw, out)
        workers = children(process.pid)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        if len(list(out.glob("*/*.done.json"))) < SHARDS - 2:  # each worker may be about to finish one
            break
        process.kill()  # on a busy machine it may be nearly done by now
        go_on(workers)
        process.communicate()
    else:
        raise AssertionError("every build was done before it could be halted")
    try:
        yield process, workers, out
    finally:
        go_on(workers)


def go_on(workers: list[int]) -> None:
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def started(raw: Path, out: Path) -> "subprocess.Popen[str]":
    """A build with two processes that has finished at least two shards, perhaps all."""
    process = subprocess.Popen(
        arguments(raw, out, jobs=2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/*.done.json"))) < 2:
        assert process.poll() in (None, 0), process.communicate()[1]  # 0: on a busy machine it is done by now
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def imports_numpy(pid: int) -> bool:
    with suppress(OSError):
        started = b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()  # before, its maps are its parent's
        return started and "_multiarray_umath" in Path(f"/proc/{pid}/maps").read_text()
    return False


@pytest.mark.parametrize("jobs", [2, pytest.param(5, marks=pytest.mark.long)])
def test_any_number_of_jobs_gives_the_same_bytes(
    raw: Path, tmp_path: Path, expected: dict[str, bytes], jobs: int
) -> None:
    done = finish(raw, tmp_path / "out", jobs=jobs)
    assert done.returncode == 0, done.stderr
    assert "frames/s" in done.stderr
    assert snapshot(tmp_path / "out") == expected


def test_a_killed_build_continues(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    with halfway(raw, tmp_path) as (process, workers, out):
        process.kill()
        go_on(workers)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert gone(workers)
    assert not (out / "manifest.json").exists()
    shown = subprocess.run([*COMMAND, "show", str(out)], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 3
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.done.json")}
    assert 2 <= len(finished) < SHARDS
    done = finish(raw, out, jobs=2)
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} up to date" in done.stdout
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert snapshot(out) == expected


def test_ctrl_c(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    with halfway(raw, tmp_path) as (process, workers, out):
        os.killpg(process.pid, signal.SIGINT)
        go_on(workers)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted; the same command continues where it stopped" in error
    assert gone(workers)
    assert not list(out.rglob("*.tmp"))
    assert len(list(out.rglob("*.done.json"))) < SHARDS
    assert finish(raw, out, jobs=2).returncode == 0
    assert snapshot(out) == expected


def test_ctrl_c_while_the_workers_start(raw: Path, tmp_path: Path) -> None:
    """They import for a second before they can leave it to their parent; a traceback of each would hide its message."""
    process = subprocess.Popen(
        arguments(raw, tmp_path / "out", jobs=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (workers := children(process.pid)) or not imports_numpy(workers[-1]):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in error and "Error" not in error, error
    assert gone(workers)


def test_a_killed_worker_ends_the_build_with_a_message(raw: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    with halfway(raw, tmp_path) as (process, workers, out):
        # The last child started is a worker; the resource tracker comes first.
        os.kill(workers[-1], signal.SIGKILL)
        go_on(workers)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 6
    assert "Traceback" not in error
    assert "worker process: expected to finish its work, got killed" in error
    assert finish(raw, out, jobs=1).returncode == 0
    assert snapshot(out) == expected


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.long), 2])
def test_file_size_limit(raw: Path, tmp_path: Path, expected: dict[str, bytes], jobs: int) -> None:
    largest = max(map(len, expected.values()))
    command = f'ulimit -f {largest // 1024 // 2}; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *arguments(raw, tmp_path / "out", jobs=jobs)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    check_full(done, tmp_path / "out", expected)
    assert "File too large" in done.stderr
    assert finish(raw, tmp_path / "out", jobs=2).returncode == 0
    assert snapshot(tmp_path / "out") == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs privileges")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk(raw: Path, small_disk: Path, expected: dict[str, bytes], jobs: int) -> None:
    assert sum(map(len, expected.values())) > 8e6
    done = finish(raw, small_disk / "out", jobs=jobs)
    check_full(done, small_disk / "out", expected)
    assert "got no space left. Free some." in done.stderr
    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk)], check=True)
    assert finish(raw, small_disk / "out", jobs=jobs).returncode == 0
    assert snapshot(small_disk / "out") == expected


@pytest.mark.parametrize("store", ["folder", "bucket"])
def test_parts_begun_at_the_same_moment_and_twice(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of each of two parts plan, make the same shards and report at once."""
    raw = rawkit.large_dfew(tmp_path / "DFEW", clips=20, frames=20)
    assert finish(raw, tmp_path / "expected", jobs=1).returncode == 0
    with ExitStack() as stack:
        url, files = str(tmp_path / "out"), tmp_path / "out"
        if store == "bucket":
            server = stack.enter_context(servers.rclone(tmp_path / "s3"))
            servers.use(server, monkeypatch)
            url, files = f"{server.url}/out", server.files / "out"
        command = arguments(raw, Path("OUT"), jobs=1)
        command[command.index("OUT")] = url
        copies = [
            subprocess.Popen([*command, "--part", f"{number}/2"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
            for number in (1, 2, 1, 2)
        ]
        told = [process.communicate(timeout=300)[1] for process in copies]
        assert [process.returncode for process in copies] == [0] * 4, told
        done = subprocess.run([*command, "--finish", "2"], capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert snapshot(files) == snapshot(tmp_path / "expected")


def check_full(done: "subprocess.CompletedProcess[str]", out: Path, expected: dict[str, bytes]) -> None:
    """Exit code and message; what lies in the folder is whole."""
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "expected to write it, got " in done.stderr and "finished shards are kept." in done.stderr
    left = snapshot(out)
    assert "manifest.json" not in left
    assert {name: expected[name] for name in left} == left
