"""Runs that tests start through the launchers on a bed, and what they are compared with."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.commands import wait_until
from tests.integration import commands
from tests.integration.commands import records, result
from tests.servers import S3

ROOT = Path(__file__).parents[2]
# Many small steps with a checkpoint now and then; which clips made up each is recorded.
STEPS = ("epochs=100", "eval_every=null", "checkpoint.every_steps=25", "record_clips=true", "engine.name=ddp")
TOTAL = 300
# The same under DeepSpeed. Small steps of plain SGD, since the training would make much of the rounding by which
# another number of processes differs.
ZERO = (
    "engine={name: deepspeed, zero: 1}",
    "optim.name=sgd",
    "optim.groups={image: {lr: 0.001}, temporal: {lr: 0.001}, prompts: {lr: 0.001}}",
)
# Nothing is there but what was saved because somebody asked.
UNSAVED = ("checkpoint.every_steps=1000",)
Undisturbed = Callable[..., Path]
"""Gives the run that these words make when nothing disturbs it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is started on a bed. files: what the address holds, as the tests see it; env: of the login node's
    commands; words: what every submission says besides."""

    url: str
    files: Path
    env: Mapping[str, str] = field(repr=False)
    words: tuple[str, ...] = ()

    def launch(self, *words: object, code: int = 0, timeout: float = 120) -> str:
        """`dfer-launch` with these words and this run; its output. It must end with `code`."""
        return launch(self.env, *words, f"run={self.url}", *self.words, code=code, timeout=timeout)

    def ask(self, *words: object) -> str:
        """`dfer-launch status`, `logs` or `cancel` of this run."""
        return launch(self.env, words[0], self.url, *words[1:])

    def status(self, fold: int = 1) -> dict[str, Any]:
        """What `dfer-launch status` says of a fold."""
        return next(row for row in json.loads(self.ask("status", "--json")) if row["part"] == f"fold_{fold}")

    def job(self) -> str:
        """The scheduler's name of the first fold's job."""
        return str(self.status()["job"])

    def steps(self, fold: int = 1) -> int:
        """Updates that are recorded; none while the bucket's server, which is not of one piece, replaces the file."""
        try:
            return max((row["step"] for row in records(self.files / f"fold_{fold}", "train")), default=0)
        except (FileNotFoundError, json.JSONDecodeError):
            return 0

    def wait_steps(self, number: int, timeout: float = 120) -> None:
        """Until so many updates are recorded, in a bucket some seconds after they were done."""
        wait_until(lambda: self.steps() >= number, timeout, f"step {number} of {self.url}")

    def wait_finished(self, fold: int = 1, timeout: float = 240) -> None:
        path = self.files / f"fold_{fold}" / "results" / "test.json"
        wait_until(path.exists, timeout, f"the result of fold {fold} of {self.url}")

    def starts(self, fold: int = 1) -> list[dict[str, Any]]:
        """Leases, one a start, oldest first."""
        files = sorted((self.files / f"fold_{fold}" / "lease").glob("[0-9]*.json"))
        return [json.loads(file.read_text()) for file in files]

    def assert_same(self, undisturbed: Path, *, within: float = 0.0) -> None:
        """Weights, and the clips of every step, in order and once."""
        ours, theirs = self.files / "fold_1", undisturbed / "fold_1"
        assert [step for step, _ in sequence(ours)] == list(range(1, TOTAL + 1)) and sequence(ours) == sequence(theirs)
        assert commands.largest_difference(ours, theirs) <= within
        if not within:
            assert result(ours) == result(theirs)


def in_bucket(s3: S3, folder: Path, env: Mapping[str, str], *words: str) -> Run:
    """A run in the bucket, named as the test's own folder."""
    return Run(url=f"{s3.url}/{folder.name}", files=s3.files / folder.name, env={**env, **s3.environment}, words=words)


def launch(env: Mapping[str, str], *words: object, code: int = 0, timeout: float = 120) -> str:
    """`dfer-launch` as on a login node; its output. It must end with `code`."""
    return command(env, sys.executable, "-m", "launch", *words, code=code, timeout=timeout)


def command(env: Mapping[str, str], *words: object, code: int = 0, timeout: float = 120) -> str:
    """What a command prints. It must end with `code`."""
    done = subprocess.run(
        [*map(str, words)],
        env=commands.environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


def sequence(fold: Path) -> list[tuple[int, list[int]]]:
    """The clips of every step, as recorded."""
    return [(row["step"], row["clips"]) for row in records(fold, "clips")]


def within(seconds: float, since: float) -> None:
    """The time that the specification gives, with the load of a test machine in mind."""
    assert time.monotonic() - since < seconds
