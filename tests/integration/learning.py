"""By how much a method beats chance on generated faces of seven classes."""

import math
import time
from pathlib import Path

from tests.integration.commands import Capture, here, result

CLASSES = 7


def errors_above_chance(war: float, clips: int) -> float:
    """By how many standard errors of chance a WAR exceeds chance."""
    chance = 1 / CLASSES
    return (war - chance) / math.sqrt(chance * (1 - chance) / clips)


def learned(capsys: Capture, verb: str, config: Path, run: Path, *words: str, clips: int) -> float:
    """Train or evaluate a method; returns by how many standard errors its WAR on the `clips` test clips exceeds chance,
    and prints it (`pytest -rP` shows it)."""
    before = time.process_time()
    done = here(capsys, verb, config, f"run={run}", *words)
    seconds = time.process_time() - before
    assert done.returncode == 0, done.stderr[-3000:]
    found = result(run)
    assert found["clips"] == clips
    errors = errors_above_chance(found["war"], clips)
    print(f"{run.name}: WAR {100 * found['war']:.1f}, {errors:.1f} standard errors, {seconds:.0f} s of CPU time")
    return errors
