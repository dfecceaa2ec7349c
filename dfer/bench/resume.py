"""Measure how long a killed run takes to its next step, compared with a fresh run: whole processes, SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dfer.distributed import World
from dfer.errors import ProcessError, message
from dfer.jobs.config import load_run
from dfer.jobs.fold_data import open_fold, train_loader

POSITIONS = (0.05, 0.5, 0.95)
_SAVE_ALWAYS = ("checkpoint.every_steps=1", "log_every=1", "fold=1")


def bench_resume(
    configs: Sequence[str], overrides: Sequence[str] = (), *, positions: Sequence[float] = POSITIONS
) -> list[float]:
    """Measure seconds from the start of a process to its first finished step, for a fresh run and after a kill at each
    position.

    positions: fractions of the first epoch. Prints the times, and their difference to the fresh run, which has the same
    start of Python, building of the model and one step.

    Raises:
        ProcessError: the run failed.
    """
    chosen = load_run(configs, overrides)
    per_epoch = train_loader(chosen, open_fold(chosen), World()).steps_per_epoch
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        run = Path(folder) / "run"
        words = [sys.executable, "-m", "dfer", "train", *configs, *overrides, f"run={run}", *_SAVE_ALWAYS]
        seconds = [_to_next_step(words, run, until=1)]
        print(f"fresh: {seconds[0]:.1f} s to the first step of {per_epoch}")
        for position in positions:
            step = max(1, round(position * per_epoch))
            _to_next_step(words, run, until=step)
            seconds.append(_to_next_step(words, run, until=_newest(run) + 1))
            more = seconds[-1] - seconds[0]
            print(f"killed at step {step} ({position:.0%} of an epoch): {seconds[-1]:.1f} s, {more:+.1f} s to fresh")
    return seconds


def _to_next_step(words: Sequence[str], run: Path, *, until: int) -> float:
    """Start a run, wait until the step is recorded and its checkpoint committed, kill it. Returns the seconds until the
    record."""
    began, since = time.perf_counter(), time.time()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _wait(process, lambda: _recorded(run, since) >= until)
        seconds = time.perf_counter() - began
        _wait(process, lambda: _newest(run) >= until)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return seconds


def _wait(process: "subprocess.Popen[bytes]", holds: Callable[[], bool]) -> None:
    while not holds():
        if process.poll() is not None:
            told = process.communicate()[1].decode().strip().splitlines()[-1:] or ["nothing said"]
            do = "Choose a configuration whose first epoch this machine can train."
            raise ProcessError(message("dfer train", expected="a run of some steps", got=told[0], do=do))
        time.sleep(0.005)


def _recorded(run: Path, since: float) -> int:
    """Return the last step in metrics.jsonl that was recorded after `since`, in seconds since 1970.

    A killed process may have recorded steps behind its last checkpoint."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return max((record["step"] for record in whole if record["kind"] == "train" and record["time"] >= since), default=0)


def _newest(run: Path) -> int:
    """Return the step of the newest committed checkpoint."""
    return max((int(path.parent.name[5:13]) for path in run.glob("checkpoints/*/manifest.json")), default=0)
