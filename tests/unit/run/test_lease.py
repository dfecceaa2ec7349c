"""Leases: their order, what they say of their owner, and what a damaged one leads to."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.errors import CheckpointError, FencedError
from dfer.run.lease import Fence, Lease, LeaseId, Leases, Owner
from dfer.storage import Folder


def test_a_lease_tells_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    fence = Fence.take(Folder(tmp_path), processes=4)
    lease = Leases(Folder(tmp_path)).get(fence.id)
    assert lease.owner == Owner(host=socket.gethostname(), pid=os.getpid(), job="77")
    assert str(lease.owner) == f"process {os.getpid()} on {socket.gethostname()}, job 77"
    assert (lease.processes, lease.base, lease.step) == (4, None, None)
    fence.record_base("step_00000005-g1-00000000", 5)
    assert Leases(Folder(tmp_path)).get(fence.id).step == 5
    assert [path.name for path in (tmp_path / "lease").iterdir()] == [f"000001-{fence.id.token}.json"]


def test_the_newest_holds(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    fences = [Fence.take(home) for _ in range(3)]
    fences[-1].check()
    for older in fences[:-1]:
        with pytest.raises(FencedError, match=f"lease {older.id}.*got a newer copy at work there"):
            older.check()
    with pytest.raises(FencedError):
        fences[0].record_base(None, 0)


def test_of_two_starts_at_the_same_moment_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither has seen the other when it chose its generation."""
    home = Folder(tmp_path)
    monkeypatch.setattr("secrets.token_hex", lambda _: "ffffffff")
    winner = Fence.take(home)
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
    with monkeypatch.context() as patch:
        patch.setattr(Leases, "ids", lambda self: [])
        loser = Fence(home, LeaseId(generation=1, token="00000000"), Lease(owner=Owner(host="h", pid=1), started="now"))
        loser._write()
    winner.check()
    with pytest.raises(FencedError):
        loser.check()


def test_a_folder_that_was_cleared_away_fences_too(tmp_path: Path) -> None:
    fence = Fence.take(Folder(tmp_path))
    (tmp_path / "lease" / fence.id.file).unlink()
    with pytest.raises(FencedError, match="got its lease gone"):
        fence.check()


IDS = st.builds(LeaseId, generation=st.integers(1, 40), token=st.sampled_from(["00000000", "7fffffff", "ffffffff"]))


@pytest.mark.slow("a hundred drawn histories of a run, each written to disk")
@given(
    starts=st.lists(st.tuples(IDS, st.integers(0, 30)), max_size=8, unique_by=lambda start: start[0]),
    mine=IDS,
    step=st.integers(0, 40),
)
def test_a_checkpoint_holds_as_long_as_no_later_start_went_on_from_before_it(
    starts: list[tuple[LeaseId, int]], mine: LeaseId, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Folder(tmp_path_factory.mktemp("run"))
    for lease, base in starts:
        contents = Lease(owner=Owner(host="h", pid=1), started="now", base="some", step=base)
        Fence(home, lease, contents)._write()
    expected = all(base >= step for lease, base in starts if lease > mine)
    assert Leases(home).holds(mine, step) == expected


def test_foreign_names_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    for name in ("x.json", "1-00000000.json", "000001-0000000g.json", ".000001-00000000.json.77.tmp"):
        (tmp_path / "lease" / name).write_text("{}")
    assert Leases(Folder(tmp_path)).ids() == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"owner": 1}', "[" * 50_000])
def test_a_damaged_lease_is_named(tmp_path: Path, text: str) -> None:
    home = Folder(tmp_path)
    fence = Fence.take(home)
    home.write(f"lease/{fence.id.file}", text.encode())
    with pytest.raises(CheckpointError) as caught:
        Leases(home).holds(LeaseId(generation=0, token="00000000"), 3)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/lease/{fence.id.file}: expected a lease, got something else (")
    assert said.endswith("Delete this file and the checkpoints named after it.")


def test_leases_are_plain_json(tmp_path: Path) -> None:
    fence = Fence.take(Folder(tmp_path))
    plain = json.loads((tmp_path / "lease" / fence.id.file).read_text())
    assert plain.keys() == {"version", "owner", "started", "processes", "base", "step"}
