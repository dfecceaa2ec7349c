"""Hostile files of every kind, each read in a process that is watched: no crash, no hang, no memory, nothing run or
written. `guard.py` says what is held against them; every kind is a module here with its own cases."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.guard import LIMIT_S
from tests.hostile.worker import MARK, OUTCOMES

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

KINDS = {
    "tars": 500, "indexes": 300, "manifests": 300, "pictures": 200, "raw_pictures": 100, "weights": 300,
    "checkpoints": 200, "configs": 200, "runs": 100, "raw_sets": 100,
}  # fmt: skip
"""Least number of files of each kind."""
LEAST = 2000
_fed: Counter[str] = Counter()


def fed(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What became of every file of a kind. Fails when the process ended on one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.worker", kind, str(folder)], env=environment, cwd=folder, text=True,
        capture_output=True, check=False, timeout=400,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / OUTCOMES).read_text().splitlines()]
    last = lines[-1].get("begun", "the end") if lines else "the start"
    assert done.returncode == 0, f"ended with {done.returncode} at {last} (limit {LIMIT_S} s)\n{done.stderr[-5000:]}"
    return [line for line in lines if "begun" not in line]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_come_to_a_message_or_to_nothing(kind: str, tmp_path: Path) -> None:
    found = fed(kind, tmp_path)
    _fed[kind] = len({line["case"] for line in found})
    faults = [f"{line['name']}: {line['fault']}" for line in found if line["fault"]]
    refused = sum(line["refused"] for line in found)
    slowest, largest = max(found, key=lambda line: line["seconds"]), max(found, key=lambda line: line["mib"])
    print(f"{kind}: {_fed[kind]} files, {refused} of {len(found)} readings refused, at most {slowest['seconds']:.1f} s "
          f"({slowest['name']}) and {largest['mib']:.0f} MiB ({largest['name']})")  # fmt: skip
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults[:20])
    assert _fed[kind] >= KINDS[kind]
    assert 0 < refused < len(found), "some are whole, and most are not"
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "seeds", OUTCOMES}
    assert not (tmp_path / MARK).exists() and not list((tmp_path / "home").iterdir())


def test_there_were_enough_of_them() -> None:
    if set(_fed) != set(KINDS):
        pytest.skip("runs after all kinds")
    assert sum(_fed.values()) >= LEAST
