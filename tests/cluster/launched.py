"""Runs that tests start through the launchers on a bed, and what they are compared with."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.commands import wait_until
from tests.integration import commands
from tests.integration.commands import records, result

ROOT = Path(__file__).parents[2]
# Many small steps with a checkpoint now and then; which clips made up each is recorded.
STEPS = ("epochs=100", "eval_every=null", "checkpoint.every_steps=25", "record_clips=true", "engine.name=ddp")
TOTAL = 300


def launch(env: Mapping[str, str], *words: object, code: int = 0, timeout: float = 120) -> str:
    """`dfer-launch` as on a login node; its output. It must end with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, words)], env=commands.environment(**env), capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


def status(env: Mapping[str, str], run: Path | str, fold: int = 1) -> dict[str, Any]:
    rows = json.loads(launch(env, "status", run, "--json"))
    return next(row for row in rows if row["fold"] == fold)


def steps(run: Path, fold: int = 1) -> int:
    """Updates that are recorded."""
    folder = run / f"fold_{fold}"
    return max((row["step"] for row in records(folder, "train")), default=0) if _begun(folder) else 0


def _begun(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists()


def wait_steps(run: Path, number: int, timeout: float = 120) -> None:
    wait_until(lambda: steps(run) >= number, timeout, f"step {number} of {run}")


def wait_finished(run: Path, fold: int = 1, timeout: float = 240) -> None:
    path = run / f"fold_{fold}" / "results" / "test.json"
    wait_until(path.exists, timeout, f"the result of fold {fold} of {run}")


def starts(run: Path, fold: int = 1) -> list[dict[str, Any]]:
    """Leases, one a start, oldest first."""
    files = sorted((run / f"fold_{fold}" / "lease").glob("[0-9]*.json"))
    return [json.loads(file.read_text()) for file in files]


def sequence(run: Path, fold: int = 1) -> list[tuple[int, list[int]]]:
    return [(row["step"], row["clips"]) for row in records(run / f"fold_{fold}", "clips")]


def assert_same(run: Path, undisturbed: Path, *, within: float = 0.0) -> None:
    """Weights, and the clips of every step, in order and once."""
    ours, theirs = sequence(run), sequence(undisturbed)
    assert [step for step, _ in ours] == list(range(1, TOTAL + 1)) and ours == theirs
    assert commands.largest_difference(run / "fold_1", undisturbed / "fold_1") <= within
    if not within:
        assert result(run / "fold_1") == result(undisturbed / "fold_1")


def within(seconds: float, since: float) -> None:
    """The time that the specification gives, with the load of a test machine in mind."""
    assert time.monotonic() - since < seconds
