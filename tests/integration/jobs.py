"""Runs of several processes that tests kill, stop and look at while they are at work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import warm
from tests.integration.commands import environment, records
from tests.processes import alive, children


class Job:
    """Ranks of a run, started as a user starts them."""

    def __init__(self, *arguments: object, processes: int = 2, **variables: str) -> None:
        words = ["-m", "launch", "local", *map(str, arguments), "--verb", "train", "--processes", str(processes)]
        self._log = warm.Popen(
            [sys.executable, *words],
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._log.poll() is None

    def ranks(self) -> list[int]:
        """Process numbers of the ranks that run."""
        return children(self._log.pid)

    def send(self, number: int, *, ranks: bool = False) -> None:
        for pid in self.ranks() if ranks else [self._log.pid]:
            with _gone_is_fine():
                os.kill(pid, number)

    def kill(self, whom: str) -> None:
        """SIGKILL to the launcher, one rank, or everything of the job."""
        ranks = self.ranks()
        chosen = {"launcher": [self._log.pid], "first": ranks[:1], "second": ranks[1:], "all": [*ranks, self._log.pid]}
        for pid in chosen[whom]:
            with _gone_is_fine():
                os.kill(pid, signal.SIGKILL)
        self.end()
        for pid in ranks:  # a rank of a killed launcher dies with it
            while alive(pid):
                time.sleep(0.01)

    def end(self, timeout: float = 240) -> tuple[int, str]:
        """Exit code and error stream of the launcher."""
        told = self._log.communicate(timeout=timeout)[1]
        return self._log.returncode, told


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


def wait_until(job: Job, holds: Callable[[], bool], *, timeout: float = 120) -> bool:
    """Whether it came to hold before the job ended."""
    deadline = time.monotonic() + timeout
    while job.alive:
        if holds():
            return True
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return False


def steps_done(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_text().count('"kind": "train"')
    except FileNotFoundError:
        return 0
    return lines


def clips(run: Path) -> list[tuple[int, list[int]]]:
    return [(record["step"], record["clips"]) for record in records(run, "clips")]
