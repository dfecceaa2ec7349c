"""Hostile files of every kind, each read in a process that is watched: no crash, no hang, no memory, nothing run or
written. `guard.py` says what is held against them; every kind is a module here with its own cases."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.worker import MARK, OUTCOMES

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
Lines = list[dict[str, Any]]

KINDS = {
    "tars": 500, "png_shards": 100, "indexes": 300, "manifests": 300, "pictures": 200, "raw_pictures": 100,
    "weights": 300, "checkpoints": 200, "configs": 200, "runs": 100, "raw_sets": 100,
}  # fmt: skip
"""Least number of files of each kind."""
LEAST = 2000


@pytest.fixture(scope="module")
def processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[Lines, str]]]]:
    """The process of every kind that is asked for, two at a time."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {call.params.get("kind") for call in calls if call} & set(KINDS)
    if any(item.name == "test_there_are_enough_of_them" for item in request.session.items):
        asked = set(KINDS)
    with ThreadPoolExecutor(2) as pool:
        yield {kind: pool.submit(fed, kind, tmp_path_factory.mktemp(kind)) for kind in KINDS if kind in asked}


def fed(kind: str, folder: Path) -> tuple[Lines, str]:
    """What became of every file of a kind, and of the process where it ended on one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.worker", kind, str(folder)], env=environment, cwd=folder, text=True,
        capture_output=True, check=False, timeout=500,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / OUTCOMES).read_text().splitlines()]
    last = lines[-1].get("begun", "the end") if lines else "the start"
    problem = f"ended with {done.returncode} at {last}\n{done.stderr[-5000:]}" if done.returncode else ""
    left = {path.name for path in folder.iterdir()} - {"seeds", OUTCOMES}
    if not problem and left != {"home"}:
        problem = f"left behind: {left}"
    assert MARK not in left
    return [line for line in lines if "begun" not in line], problem


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_come_to_a_message_or_to_nothing(kind: str, processes: dict[str, Any]) -> None:
    found, problem = processes[kind].result()
    assert not problem
    refused, files = sum(line["refused"] for line in found), len({line["case"] for line in found})
    slowest, largest = max(found, key=lambda line: line["seconds"]), max(found, key=lambda line: line["mib"])
    print(f"{kind}: {files} files, {refused} of {len(found)} readings refused, at most {slowest['seconds']:.1f} s "
          f"({slowest['name']}) and {largest['mib']:.0f} MiB ({largest['name']})")  # fmt: skip
    faults = [f"{line['name']}: {line['fault']}" for line in found if line["fault"]]
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults[:20])
    assert files >= KINDS[kind]
    assert 0 < refused < len(found), "some are whole, and some are not"


def test_there_are_enough_of_them(processes: dict[str, Any]) -> None:
    assert sum(len({line["case"] for line in future.result()[0]}) for future in processes.values()) >= LEAST


def test_the_guard_notices(tmp_path: Path) -> None:
    """Every check can fail: each case of `villains` is named by what its fault must say."""
    found, problem = fed("villains", tmp_path)
    assert problem.startswith("ended with 1 at ") and problem.splitlines()[0].endswith(" ended")
    assert "Timeout" in problem
    assert len(found) > 20
    for line in found:
        expected = line["case"].partition(" ")[2]
        assert expected in line["fault"] if expected else not line["fault"], line
