"""A kind of job whose parts are independent processes, as a build over several hosts will be: every worker writes its
numbers into a folder of its own, and the conclusion joins them into one file."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer.config import key
from dfer.errors import CheckpointError, DataError, message
from dfer.interruption import Stop
from dfer.jobs.parts import Part

grouped = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """numbers: how many there are. workers: parts. dies: part whose process is killed at its first start."""

    run: str = key(path=True)
    numbers: int = 10
    workers: int = 3
    dies: str = ""


def absolute(config: Config) -> Config:
    return config


def shared(config: Config) -> dict[str, str]:
    return {}


def parts(config: Config) -> list[Part]:
    names = [f"worker_{number}" for number in range(config.workers)]
    return [Part(name=name, run=f"{config.run}/{name}") for name in names]


def check(config: Config, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    if config.numbers < 0:
        raise DataError(message("numbers", expected="0 or more", got=str(config.numbers), do="Correct it."))


def done(config: Config, part: Part) -> bool:
    return (Path(part.run) / "numbers.txt").exists()


def run(config: Config, part: Part, world: None, stop: Stop) -> str:
    assert world is None
    if done(config, part):
        return f"{part.name}: nothing to do"
    Path(part.run).mkdir(parents=True, exist_ok=True)
    started = Path(part.run) / "started"
    if part.name == config.dies and not started.exists():
        started.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    mine = range(int(part.name.rpartition("_")[2]), config.numbers, config.workers)
    (Path(part.run) / "numbers.txt").write_text("".join(f"{number:03d}\n" for number in mine))
    torch = "with" if "torch" in sys.modules else "without"
    return f"{part.name}: {len(mine)} numbers by process {os.getpid()} of {os.environ.get('WORLD_SIZE')}, {torch} torch"


def conclude(config: Config) -> str:
    there = [part for part in parts(config) if done(config, part)]
    if len(there) < config.workers:
        got = f"{len(there)} of {config.workers}"
        raise CheckpointError(message(config.run, expected="numbers of every worker", got=got, do="Run it again."))
    lines = [line for part in there for line in (Path(part.run) / "numbers.txt").read_text().splitlines()]
    (Path(config.run) / "all.txt").write_text("\n".join(sorted(lines)))
    return f"{len(lines)} numbers in all.txt"
