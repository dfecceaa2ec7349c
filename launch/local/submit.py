"""Run a job in several processes on this machine; its ranks start, fail and stop together, as on a cluster."""

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dfer.errors import StoppedError, UsageError, message
from dfer.surroundings import refuse_copies
from launch.local.processes import Group, wait

if TYPE_CHECKING:
    from dfer.jobs.config import RunConfig

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Local:
    """One command in `processes` ranks; with `parallel`, so many folds at a time, each in as many ranks.

    source: YAML file, or a run folder for `evaluate`. folds: only these.

    Raises:
        UsageError: fewer than one process or fold at a time, or `parallel` without cross-validation.
    """

    verb: str
    source: str
    overrides: Sequence[str] = ()
    processes: int = 1
    parallel: int = 1
    folds: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, do in (("processes", "One a GPU, or a few CPU processes."), ("parallel", "1: one after another.")):
            if getattr(self, name) < 1:
                raise UsageError(message(f"--{name}", expected="1 or more", got=str(getattr(self, name)), do=do))
        if self.verb != "crossval" and (self.parallel > 1 or self.folds):
            option = "--parallel" if self.parallel > 1 else "--folds"
            do = "Leave the option out, or use crossval."
            raise UsageError(message(option, expected="--verb crossval", got=self.verb, do=do))

    def arguments(self) -> list[str]:
        """What `dfer` is called with, all folds in one command."""
        folds = ["--folds", ",".join(map(str, self.folds))] if self.folds else []
        return [self.verb, self.source, *folds, *self.overrides]


def command(job: Local) -> list[str]:
    """Return the command that each rank runs."""
    return [sys.executable, "-m", "launch.local.rank", *job.arguments()]


def run(job: Local) -> int:
    """Run the job to its end and return its exit code. The cores are divided among the ranks unless OMP_NUM_THREADS is
    set.

    Raises:
        UsageError: a wrong configuration, or srun started several of these launchers; no process is started then.
    """
    refuse_copies(os.environ)
    from dfer.config import load  # here: `--help` and mistakes in arguments do not wait for torch
    from dfer.jobs.config import RunConfig

    if job.verb != "evaluate" or job.source.endswith((".yaml", ".yml")):
        config = load(Path(job.source), RunConfig, job.overrides)
        if job.parallel > 1:
            return _folds(job, config)
    return _Jobs(job, [job.arguments()]).run()


def _folds(job: Local, config: "RunConfig") -> int:
    """Every fold as a job of its own, then the report over those that ended well."""
    from dfer.jobs.parts import known_folds
    from dfer.storage import Folder
    from launch.job import conclude

    home = Folder(config.run, what="run")
    folds = list(job.folds) or known_folds(config)
    each = [["train", job.source, *job.overrides, f"fold={fold}", f"run={home / f'fold_{fold}'}"] for fold in folds]
    jobs = _Jobs(job, each, labels=[f"fold {fold}" for fold in folds])
    code = jobs.run()
    return code if code and jobs.stopped else conclude(str(home), folds, code)


@dataclass
class _Jobs:
    """Commands of `dfer`, `job.parallel` at a time. The exit code is that of the first that failed.

    labels: one for each command, to stand before its lines.
    """

    job: Local
    waiting: Sequence[Sequence[str]]
    labels: Sequence[str] = ()
    code: int = 0
    stopped: bool = False
    running: dict[int, Group] = field(default_factory=dict)

    def run(self) -> int:
        waiting = deque(zip(self.waiting, self.labels or [""] * len(self.waiting), strict=True))
        slots = min(self.job.parallel, len(waiting))
        with self._forwarding():
            while waiting or self.running:
                for slot in range(slots):
                    if waiting and slot not in self.running and not self.stopped:
                        self.running[slot] = self._started(*waiting.popleft(), slot=slot, slots=slots)
                if not self.running:
                    break
                wait(list(self.running.values()))
                self._collect()
        return self.code or (StoppedError.exit_code if waiting else 0)

    def _started(self, arguments: Sequence[str], label: str, *, slot: int, slots: int) -> Group:
        processes = self.job.processes
        environment = slot_environment(slot, slots=slots, processes=processes)
        return Group(arguments, processes=processes, environment=environment, label=label)

    def _collect(self) -> None:
        for slot, group in list(self.running.items()):
            group.step()
            if group.code is not None:
                self.code = self.code or group.code
                del self.running[slot]

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Signals to the launcher go to every rank, and no further fold is started. A closed terminal ends politely."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self.stopped = True
            for group in list(self.running.values()):
                group.forward(signal.SIGTERM if number == signal.SIGHUP else number)

        before = {number: signal.signal(number, handle) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for group in self.running.values():
                group.kill()


def slot_environment(slot: int, *, slots: int, processes: int) -> dict[str, str]:
    """Return the environment of one of several concurrent jobs: its part of the cores, and of the GPUs if they
    suffice."""
    cores = len(os.sched_getaffinity(0))
    own = {"OMP_NUM_THREADS": str(max(1, cores // (processes * slots))), **os.environ}
    cards = visible_gpus(os.environ)
    if slots > 1 and len(cards) >= processes * slots:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(cards[slot * processes : (slot + 1) * processes])
    return own


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """List the names of the GPUs that this process may use, without torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    found = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia*")]
    return sorted((name for name in found if re.fullmatch(r"\d+", name)), key=int)
