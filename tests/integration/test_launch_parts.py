"""Parts beside each other on this machine: the same results as one after another, and a stop that keeps them."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import warm
from tests.integration.commands import environment, finish, result

pytestmark = pytest.mark.integration

FOLDS = ["fold_1", "fold_2", "fold_3"]
ONLY = ",".join(FOLDS)


def test_folds_in_parallel_give_the_results_of_a_cross_validation(
    tiny: Path, tmp_path: Path, crossval: tuple[Path, str]
) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-m", "launch", "local", str(tiny), "--parallel", "2", "--only", ONLY, f"run={run}"]
    launcher = warm.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for_file(run / "fold_2" / "metrics.jsonl")
    os.kill(launcher.pid, signal.SIGTERM)
    launcher.communicate(timeout=120)
    assert launcher.returncode == 9 and not (run / "report").exists() and not (run / "fold_3").exists()
    finish("local", tiny, "--parallel", 2, "--only", ONLY, f"run={run}", module="launch")
    undisturbed, _ = crossval
    assert [result(run / fold) for fold in FOLDS] == [result(undisturbed / fold) for fold in FOLDS]
    assert json.loads((run / "report" / "report.json").read_text())["missing_parts"] == ["fold_4", "fold_5"]
    status = json.loads(finish("status", run, "--json", module="launch").stdout)
    assert [row["state"] for row in status] == ["finished"] * 3 and status[1]["restarts"] == 1


def test_every_seed_trains_as_a_cross_validation_with_it_does(
    tiny: Path, tmp_path: Path, crossval: tuple[Path, str]
) -> None:
    run, only = tmp_path / "run", "seed_1/fold_1,seed_2/fold_1"
    finish("local", tiny, "--parallel", 2, "--only", only, "seeds=[1,2]", f"run={run}", module="launch")
    assert result(run / "seed_1" / "fold_1") == result(crossval[0] / "fold_1")
    own = yaml.safe_load((run / "seed_2" / "fold_1" / "config.yaml").read_text())
    assert (own["seed"], own["seeds"], own["fold"], result(run / "seed_2" / "fold_1")["seed"]) == (2, [1, 2], 1, 2)
    again = finish("crossval", tiny, "--only", only, "seeds=[1,2]", f"run={run}").stdout
    assert "== seed_2/fold_1 (2 of 2)" in again and "std of seeds" in again
    report = json.loads((run / "report" / "report.json").read_text())
    uars = [result(run / f"seed_{seed}" / "fold_1")["uar"] for seed in (1, 2)]
    assert report["seed_std"]["uar"] == pytest.approx(statistics.stdev(uars)) and len(report["missing_parts"]) == 8


def wait_for_file(path: Path, timeout: float = 90) -> None:
    until = time.monotonic() + timeout
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.02)
