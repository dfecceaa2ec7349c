"""Hostile files of every kind, each read in a process that is watched: no crash, no hang, no memory, nothing run or
written. `guard.py` says what is held against them; every kind is a module here with its own cases."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.hostile.worker import DAY, LONG, MARK, MUTATED, OUTCOMES, SHARE, Case, chosen, today

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
Lines = list[dict[str, Any]]

KINDS = {
    "tars": 500,
    "png_shards": 100,
    "indexes": 300,
    "manifests": 300,
    "pictures": 200,
    "raw_pictures": 100,
    "weights": 300,
    "checkpoints": 200,
    "saved_models": 200,
    "configs": 200,
    "runs": 100,
    "raw_sets": 100,
}
"""Least number of files of each kind in the long form, more than 2,000 together."""
NEW_PROGRAMS = ("weights", "villains", "raw_pictures", "raw_sets")
"""Read by new programs at all times: a module that a pickle asks for shows only where it is not imported already, and
raw data needs no torch, whose memory would count. The others are forked (`tests.warm`) but in the long form."""


def fed(kind: str, folder: Path) -> tuple[Lines, str]:
    """What became of every file of a kind, and of the process where it ended on one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with warm.cold() if kind in NEW_PROGRAMS else nullcontext():
        done = warm.run(
            [sys.executable, "-m", "tests.hostile.worker", kind, str(folder)],
            env=environment,
            cwd=folder,
            text=True,
            capture_output=True,
            timeout=500,
        )
    lines = [json.loads(line) for line in (folder / OUTCOMES).read_text().splitlines()]
    last = lines[-1].get("begun", "the end") if lines else "the start"
    problem = f"ended with {done.returncode} at {last}\n{done.stderr[-5000:]}" if done.returncode else ""
    left = {path.name for path in folder.iterdir()} - {"seeds", OUTCOMES}
    if not problem and left != {"home"}:
        problem = f"left behind: {left}"
    assert MARK not in left
    return [line for line in lines if "begun" not in line], problem


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_come_to_a_message_or_to_nothing(kind: str, tmp_path: Path) -> None:
    print(f"{DAY}={today()} repeats the choice of drawn files")
    found, problem = fed(kind, tmp_path)
    assert not problem
    refused, files = sum(line["refused"] for line in found), len({line["case"] for line in found})
    slowest, largest = max(found, key=lambda line: line["seconds"]), max(found, key=lambda line: line["mib"])
    print(
        f"{kind}: {files} files, {refused} of {len(found)} readings refused, at most {slowest['seconds']:.1f} s "
        f"({slowest['name']}) and {largest['mib']:.0f} MiB ({largest['name']})"
    )
    faults = [f"{line['name']}: {line['fault']}" for line in found if line["fault"]]
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults[:20])
    assert files >= (KINDS[kind] if os.environ.get(LONG) else KINDS[kind] // SHARE)
    assert 0 < refused < len(found), "some are whole, and some are not"


def test_there_are_enough_of_them() -> None:
    assert sum(KINDS.values()) >= 2000


def test_days_share_out_the_drawn_files_and_every_day_has_the_named_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 60
    made: list[Case | None] = [Case(name=str(n), write=lambda at: None, reads={}) for n in range(100)]
    made.insert(20, MUTATED)
    days = []
    monkeypatch.delenv(LONG, raising=False)
    for day in range(2 * SHARE):
        monkeypatch.setenv(DAY, str(day))
        days.append([case.name for case in chosen(iter(made), count)])
    named = [f"{n:04d} {n}" for n in range(20)]
    assert all(names[:20] == named for names in days) and days[:SHARE] == days[SHARE:]
    drawn = [name for names in days[:SHARE] for name in names[20:]]
    assert sorted(drawn) == [f"{n:04d} {n}" for n in range(20, count)]
    assert all(names[20:] for names in days)
    monkeypatch.setenv(LONG, "1")
    assert [case.name for case in chosen(iter(made), count)] == [f"{n:04d} {n}" for n in range(count)]


def test_the_guard_notices(tmp_path: Path) -> None:
    """Every check can fail: each case of `villains` is named by what its fault must say."""
    found, problem = fed("villains", tmp_path)
    assert problem.startswith("ended with 1 at ") and problem.splitlines()[0].endswith(" ended")
    assert "Timeout" in problem
    assert len(found) > 20
    for line in found:
        expected = line["case"].partition(" ")[2]
        assert expected in line["fault"] if expected else not line["fault"], line
