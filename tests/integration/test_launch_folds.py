"""Folds beside each other on this machine: the same results as one after another, and a stop that keeps them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm
from tests.integration.commands import environment, finish, result

pytestmark = pytest.mark.integration

FOLDS = ["fold_1", "fold_2", "fold_3"]


def test_folds_in_parallel_give_the_results_of_a_cross_validation(
    tiny: Path, tmp_path: Path, crossval: tuple[Path, str]
) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "launch", "local", str(tiny), "--parallel", "2", "--folds", "1,2,3", f"run={run}"]
    launcher = warm.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for_file(run / "fold_2" / "metrics.jsonl")
    os.kill(launcher.pid, signal.SIGTERM)
    launcher.communicate(timeout=120)
    assert launcher.returncode == 9 and not (run / "report").exists() and not (run / "fold_3").exists()
    finish("local", tiny, "--parallel", 2, "--folds", "1,2,3", f"run={run}", module="launch")
    undisturbed, _ = crossval
    assert [result(run / fold) for fold in FOLDS] == [result(undisturbed / fold) for fold in FOLDS]
    assert json.loads((run / "report" / "report.json").read_text())["missing_folds"] == [4, 5]
    status = json.loads(finish("status", run, "--json", module="launch").stdout)
    assert [row["state"] for row in status] == ["finished"] * 3 and status[1]["restarts"] == 1


def wait_for_file(path: Path, timeout: float = 90) -> None:
    until = time.monotonic() + timeout
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.02)
