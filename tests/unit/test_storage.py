"""Files below a URL: whole or absent, missing or broken told apart, retried, without credentials."""

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dfer import storage
from dfer.errors import StorageError, UsageError
from dfer.storage import Folder, Retry


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder(tmp_path / "f")
        return
    yield Folder("memory://storage-test/f")
    if fsspec.filesystem("memory").exists("/storage-test"):
        fsspec.filesystem("memory").rm("/storage-test", recursive=True)


def test_files_and_what_is_not_there(folder: Folder) -> None:
    assert folder.read("a/b.txt") is None and folder.size("a/b.txt") is None and folder.text("x") is None
    assert folder.names() == [] and folder.children() == [] and not folder.exists()
    folder.write("a/b.txt", b"one")
    folder.write("a/b.txt", b"three")
    (folder / "a").write("c/d", b"\xff")
    assert folder.read("a/b.txt") == b"three" and folder.size("a/b.txt") == 5
    assert folder.names() == ["a/b.txt", "a/c/d"] and folder.children() == ["a"]
    assert (folder / "a").children() == ["b.txt", "c"] and (folder / "a").folders() == ["c"]
    assert folder.exists("a/c") and folder.size("a") is None
    assert (folder / "a/c").text("d") == "\ufffd"
    folder.remove("a/b.txt")
    folder.remove("a/b.txt")
    assert folder.names() == ["a/c/d"]
    (folder / "a").remove_all()
    (folder / "a").remove_all()
    assert folder.names() == []


PATTERNS = ["run[1]", "run*", "run?", "a{b,c}", "[!x]", "**", "lr=1e-3, [seed 2]"]
"""Names that are patterns to a shell, and to parts of fsspec."""


@pytest.mark.parametrize("name", PATTERNS)
def test_a_name_is_no_pattern(name: str, folder: Folder, tmp_path: Path) -> None:
    """Beside it stand folders that the pattern matches, which must stay as they are."""
    others = ["run1", "runs", "run", "ab", "ac", "y", "lr=1e-3, s"]
    for other in others:
        folder.write(f"{other}/x/file", b"other")
    mine = folder / name
    assert not mine.exists() and not mine.exists("x") and mine.children() == [] and mine.names() == []
    mine.write("x/file", b"mine")
    with mine.whole("x/deep/large") as path:
        path.write_bytes(b"mine too")
    mine.fetch("x/deep/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine too" and mine.exists("x/deep")
    assert mine.read("x/file") == b"mine" and mine.size("x/file") == 4 and mine.exists("x/file") and mine.exists()
    assert mine.children() == mine.folders() == ["x"] and mine.names() == ["x/deep/large", "x/file"]
    mine.remove("x/file")
    assert mine.names() == ["x/deep/large"]
    (mine / "x").remove_all()
    assert mine.names() == [] and mine.folders() == []
    assert folder.names() == sorted(f"{other}/x/file" for other in others)


def test_what_cannot_be_looked_at_is_not_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def info(self, _path: str) -> dict[str, Any]:
            raise TimeoutError("no answer")

        def exists(self, path: str) -> bool:
            try:
                return bool(self.info(path))
            except TimeoutError:
                return False  # as fsspec's

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (Broken(), url.partition("://")[2]))
    with pytest.raises(StorageError, match=r"s3://bucket/x/a: expected to look at it, got no answer \(2 attempts\)"):
        Folder("s3://bucket/x", retry=Retry(attempts=2, base_s=0)).exists("a")


def test_large_files_pass_through_paths(folder: Folder, tmp_path: Path) -> None:
    with folder.whole("deep/file") as path:
        path.write_bytes(b"x" * 100_000)
        assert folder.read("deep/file") is None
    folder.fetch("deep/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * 100_000
    assert folder.names() == ["deep/file"]
    with pytest.raises(FileNotFoundError):
        folder.fetch("absent", tmp_path / "copy")


def test_a_file_that_fails_on_its_way_leaves_the_old_one(folder: Folder) -> None:
    folder.write("file", b"old")
    with pytest.raises(ZeroDivisionError), folder.whole("file") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert folder.read("file") == b"old" and folder.names() == ["file"]


def test_a_used_folder_can_be_pickled(folder: Folder) -> None:
    folder.write("a", b"1")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy == folder and copy.read("a") == b"1" and copy.local == folder.local
    assert str(copy) == folder.url and copy.name == "f" and len({copy, folder}) == 1


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError) as caught:
        Folder(tmp_path).write("a", b"1")
    assert str(caught.value) == f"{tmp_path}/a: expected to write it, got no space left. Free some."
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = Folder(tmp_path / "file")
    assert folder.read("a") is None
    with pytest.raises(StorageError, match=r"file/a: expected to write it, got (File exists|Not a directory)"):
        folder.write("a", b"1")


class Flaky:
    """A remote file system that fails some times, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def cat_file(self, _path: str) -> bytes:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return b"data"


def flaky(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> tuple[Folder, Flaky]:
    fs = Flaky(*errors)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (fs, url.partition("://")[2]))
    return Folder("s3://bucket/x", retry=Retry(attempts=3, base_s=0)), fs


def test_faults_that_pass_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fs = flaky(monkeypatch, ConnectionResetError("reset"), TimeoutError())
    assert folder.read("a") == b"data" and fs.calls == 3


def test_faults_that_stay_are_told_with_their_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fs = flaky(monkeypatch, *[RuntimeError("SlowDown at s3://me:open-sesame@host/x?sig=1") for _ in range(3)])
    with pytest.raises(StorageError) as caught:
        folder.read("a")
    assert str(caught.value) == (
        "s3://bucket/x/a: expected to read it, got SlowDown at s3://host/x (3 attempts). "
        "Check the URL, the network and the credentials that the store needs."
    )
    assert fs.calls == 3


@pytest.mark.parametrize("error", [PermissionError("403"), type("NoCredentialsError", (Exception,), {})("none")])
def test_faults_that_cannot_pass_are_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    folder, fs = flaky(monkeypatch, error)
    with pytest.raises(StorageError, match=f"got {error}. Check the URL"):
        folder.read("a")
    assert fs.calls == 1


@pytest.mark.parametrize(("status", "lasting"), [(404, True), (403, True), (429, False), (408, False), (503, False)])
def test_which_answers_of_a_server_last(status: int, lasting: bool) -> None:
    error: Any = RuntimeError()
    error.status = status
    assert storage.is_permanent(error) == lasting


def test_waits_grow_and_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("random.uniform", lambda low, high: (low, high)[1])

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        Retry(attempts=6, base_s=1, cap_s=10).call(fail)
    assert waits == [2, 4, 8, 10, 10]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere://x", "nowhere://x: expected a folder or an fsspec URL, got Protocol not known: nowhere"),
        ("pipe:touch /tmp/x://y", "expected a folder or an fsspec URL"),
        ("simplecache::s3://bucket/x", "expected one scheme, got a chain of them"),
        (
            "s3://key:secret@bucket/x",
            "s3://bucket/x: expected a URL without credentials, got some in it. Take them out",
        ),
    ],
)
def test_addresses_that_are_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Folder(url, what="run").read("a")
    assert says in str(caught.value) and "secret" not in str(caught.value)
