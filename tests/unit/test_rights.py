"""Files of other users: the umask says who may use them, and a missing right is told as one."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dfer import __main__ as cli
from dfer.distributed import World
from dfer.errors import DeniedError, StorageError
from dfer.jobs.config import RunConfig
from dfer.local_files import denial, user_name
from dfer.report.write import write_report
from dfer.run.checkpoint_files import damage
from dfer.run.checkpoints import Checkpoints
from dfer.storage import Folder, storage_error
from dfer.store.cache import Cache
from tests import fake_runs
from tests.another_user import NOBODY, folder_for_all, nobody

ME = f"this user is uid {NOBODY}"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    with folder_for_all() as folder:
        yield folder


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def saved(home: Path) -> Folder:
    """A run folder with one checkpoint; gives the checkpoint's folder."""
    checkpoints = Checkpoints(Folder(home), world=World())
    checkpoints.start(None)
    checkpoints.save(3, weights={"a": torch.ones(2)}, optimizer={}, state={"training": {}})
    checkpoints.finish()
    assert checkpoints.fence is not None
    return checkpoints.folder / f"step_00000003-{checkpoints.fence.id}"


def latest(home: Path) -> int:
    found = Checkpoints(Folder(home), world=World()).latest()
    assert found is not None
    return found.step


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read_a_run(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        saved(tmp_path / "run")
        Folder(tmp_path / "run").write("results/test.json", b"1")
    found = modes(tmp_path / "run")
    assert sum(name.endswith(".safetensors") for name in found) == 2
    for name, mode in found.items():
        assert mode == (0o777 if (tmp_path / "run" / name).is_dir() else 0o666) & ~mask, name


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_use_a_cache(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        cache = Cache(tmp_path / "cache", budget=2**30)
        assert cache.shard("a" * 64, 10) is not None
        cache.keep_small("b", b"1")
        cache.states("c", 3)
    found = modes(tmp_path)
    assert {"cache/.lock", f"cache/shards/{'a' * 64}", "cache/index/b", "cache/local/c"} <= found.keys()
    for name, mode in found.items():
        assert mode == (0o777 if (tmp_path / name).is_dir() else 0o666) & ~mask, name


def test_two_writers_of_one_file_whose_process_numbers_agree_do_not_meet(tmp_path: Path) -> None:
    """As on two hosts that share the disk."""
    folder = Folder(tmp_path)
    with folder.whole("file") as first:
        first.write_bytes(b"1")
        with folder.whole("file") as second:
            second.write_bytes(b"2")
        assert (tmp_path / "file").read_bytes() == b"2" and first.read_bytes() == b"1"
    assert (tmp_path / "file").read_bytes() == b"1"
    assert modes(tmp_path).keys() == {"file"}


def test_a_colleague_uses_a_run(shared: Path) -> None:
    with umask(0o022):
        saved(shared / "run")
    with nobody():
        assert latest(shared / "run") == 3


@pytest.mark.parametrize("closed", ["weights.safetensors", "state.json", "manifest.json", ".", "..", "../.."])
def test_a_missing_right_is_not_damage(closed: str, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = saved(shared / "run")
    assert checkpoint.local is not None
    place = (checkpoint.local / closed).resolve()
    place.chmod(0o700 if place.is_dir() else 0o600)
    with nobody(), pytest.raises(DeniedError) as caught:
        latest(shared / "run")
    text = str(caught.value)
    mode = "0700" if place.is_dir() else "0600"
    assert f"got no permission ({place} belongs to {user_name(0)}, mode {mode}; {ME}). Ask {user_name(0)} for" in text
    assert "damaged" not in text + caplog.text and caught.value.exit_code == 6
    with nobody(), pytest.raises(DeniedError):
        damage(checkpoint)


def test_a_file_of_ones_own_needs_chmod(shared: Path) -> None:
    (shared / "mine").write_text("x")
    os.chown(shared / "mine", NOBODY, NOBODY)
    (shared / "mine").chmod(0)
    with nobody(), pytest.raises(DeniedError, match=r"mine: expected to read it, got no permission .*yourself .*chmod"):
        Folder(shared).read("mine")


def test_what_owners_and_modes_do_not_explain(tmp_path: Path) -> None:
    error = PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(tmp_path / "x"))
    assert denial(tmp_path / "x" / "y") is None
    told = storage_error(tmp_path / "x", error, doing="to remove it")
    assert str(told) == (
        f"{tmp_path}/x: expected to remove it, got Operation not permitted. Check the path and its permissions."
    )


def test_a_read_only_file_system_is_told(tmp_path: Path) -> None:
    told = storage_error(tmp_path, OSError(errno.EROFS, "Read-only file system"), doing="to write it")
    assert isinstance(told, DeniedError) and "got a read-only file system. Give another path." in str(told)
    assert not isinstance(storage_error(tmp_path, OSError(errno.ENOSPC, "full"), doing="to write it"), DeniedError)
    assert isinstance(storage_error("s3://b/x", PermissionError("403"), doing="to write it"), DeniedError)


def test_a_store_that_does_not_answer_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path / "run")

    def fail(*_: object, **__: object) -> bytes:
        raise StorageError("no answer")

    monkeypatch.setattr(Folder, "read", fail)
    assert damage(checkpoint) == "manifest.json is unreadable (StorageError)"
    monkeypatch.setattr(Folder, "local", None)
    with pytest.raises(StorageError, match="no answer"):
        damage(checkpoint)


def test_a_folder_is_checked_before_anything_is_written(shared: Path) -> None:
    Folder(shared / "a/b/c").check_writable()
    with nobody(), pytest.raises(DeniedError, match=f"a/b/c: expected to write there, got no permission .*{shared} "):
        Folder(shared / "a/b/c").check_writable()
    assert not list(shared.iterdir())
    Folder("memory://anywhere/x").check_writable()


def test_a_report_of_somebody_elses_run_goes_elsewhere(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = shared / "run", shared / "mine"
    fake_runs.write_fold(run, fake_runs.result(), curves=False)
    write_report(
        Folder(run), RunConfig, out=Folder(shared / "warm")
    )  # imports what a report needs, perhaps out of root's home
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    before = modes(run)
    with nobody():
        assert cli.main(["report", str(run)]) == 6
        told = capsys.readouterr().err
        assert cli.main(["report", str(run), "--out", str(out / "report")]) == 0
    assert f"got no permission ({run} belongs to {user_name(0)}, mode 0755; {ME})" in told
    assert told.endswith(f"To leave the run as it is, write elsewhere: dfer report {run} --out FOLDER\n")
    assert modes(run) == before
    assert sorted(path.name for path in (out / "report").iterdir()) == ["index.html", "report.json", "report.md"]
    assert f"Report: {out}/report/index.html" in capsys.readouterr().out


def test_a_file_that_may_not_be_read_is_told_by_the_command_line(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dfer.run  # noqa: F401  the other user may not be able to, where Python is in root's home

    (shared / "closed").mkdir(0o700)
    with nobody():
        assert cli.main(["evaluate", str(shared / "closed/run")]) == 6
    told = capsys.readouterr().err
    assert f"got no permission ({shared}/closed belongs to" in told and "Traceback" not in told


# One cache for several users


def filled(cache: Cache, name: str) -> None:
    file = cache.shard(name, 100)
    assert file is not None
    with file.held(), file.exclusive(0, 0):
        file.write(0, b"x" * 100)


def test_users_of_a_group_share_a_cache(shared: Path) -> None:
    with umask(0o000):
        filled(Cache(shared / "cache", budget=2**30), "a" * 64)
    with nobody():
        cache = Cache(shared / "cache", budget=2**30)
        found = cache.shard("a" * 64, 100)
        assert found is not None and found.states(0, 1) == b"\1" and found.read(0, 100) == b"x" * 100
        found.touch()
        filled(cache, "b" * 64)
        Cache(shared / "cache", budget=100_000).keep_small("c", b"1" * 70_000)  # evicts what belongs to root
    assert not (shared / "cache/shards" / ("a" * 64)).exists()


def test_a_cache_in_a_folder_like_tmp_is_opened_before_it_is_made(shared: Path) -> None:
    """The kernel may refuse O_CREAT there for a file that is another user's, whatever its mode."""
    calls = []
    with umask(0o000):
        filled(Cache(shared, budget=2**30), "a" * 64)
    real = os.open

    def noted(path: os.PathLike[str], flags: int, *mode: int) -> int:
        calls.append(flags)
        return real(path, flags, *mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", noted)
        assert Cache(shared, budget=2**30).shard("a" * 64, 100) is not None
    assert calls and not any(flags & os.O_CREAT for flags in calls)


def test_somebody_elses_cache_is_told_and_done_without(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with umask(0o022):
        filled(Cache(shared / "cache", budget=2**30), "a" * 64)
    with nobody(), caplog.at_level(logging.WARNING):
        cache = Cache(shared / "cache", budget=2**30)
        assert cache.shard("a" * 64, 100) is None and cache.small("x") is None
        assert isinstance(cache.states("s", 3), bytearray)
    (told,) = caplog.messages
    assert re.search(rf"no permission \(\S+/cache/.lock belongs to {user_name(0)}, mode 0644; {ME}\)\. Ask", told)
    assert "Reading goes on without; set data.cache or DFER_CACHE" in told


def test_files_of_others_are_not_evicted(shared: Path) -> None:
    with umask(0o000):
        cache = Cache(shared / "cache", budget=2**30)
        filled(cache, "a" * 64)
        filled(cache, "b" * 64)
    (shared / "cache/shards" / ("a" * 64)).chmod(0o600)
    with nobody():
        Cache(shared / "cache", budget=65_000).keep_small("c", b"1" * 10_000)
    assert [path.name for path in (shared / "cache/shards").iterdir()] == ["a" * 64]
    assert (shared / "cache/index/c").exists()
