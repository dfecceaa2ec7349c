"""Run a job in several processes on this machine; its ranks start, fail and stop together, as on a cluster."""

import os
import re
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType

from dfer.config_files import is_run_folder
from dfer.errors import StoppedError, UsageError, message
from dfer.jobs.config import load_run
from dfer.jobs.parts import TRAINING, load_job, module_named
from dfer.surroundings import refuse_copies
from launch.job import JOBS, Job, conclude, make_job
from launch.local.processes import Group, wait
from launch.local.rank import PART

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Local:
    """One command in `processes` ranks; `parallel` parts run at a time, each in `processes` ranks.

    configs: YAML files or names, or a run folder for `evaluate`. only: names of the selected parts, all if empty.

    Raises:
        UsageError: fewer than one process or part at a time, or `parallel` without cross-validation.
    """

    verb: str
    configs: Sequence[str]
    overrides: Sequence[str] = ()
    processes: int = 1
    parallel: int = 1
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, do in (("processes", "One a GPU, or a few CPU processes."), ("parallel", "1: one after another.")):
            if getattr(self, name) < 1:
                raise UsageError(message(f"--{name}", expected="1 or more", got=str(getattr(self, name)), do=do))
        if self.verb != "crossval" and (self.parallel > 1 or self.only):
            option = "--parallel" if self.parallel > 1 else "--only"
            do = "Leave the option out, or use crossval."
            raise UsageError(message(option, expected="--verb crossval", got=self.verb, do=do))

    def arguments(self) -> list[str]:
        """Return the arguments of `dfer`, with all parts in one command."""
        only = ["--only", ",".join(self.only)] if self.only else []
        return [self.verb, *self.configs, *only, *self.overrides]


def command(job: Local) -> list[str]:
    """Return the command that each rank runs."""
    return [sys.executable, "-m", "launch.local.rank", *job.arguments()]


def in_parts(job: Local) -> Job | None:
    """Return the job whose parts run in processes of their own: folds with `parallel`, the parts of any other job.

    None if all folds run one after another in the same ranks, or if there are no parts. Raises as `make_job`.
    """
    if job.verb != "crossval":
        return None
    if job.parallel == 1 and load_job(job.configs, job.overrides, JOBS)[0] is module_named(JOBS[TRAINING]):
        return None
    return make_job(job.configs, job.overrides, job.only, worlds=[job.processes])


def described(job: Local) -> str:
    """Describe what `run` would start: the command of a rank, or the parts."""
    if (made := in_parts(job)) is None:
        return shlex.join(command(job))
    names = ", ".join(part.name for part in made.parts)
    processes = job.processes if made.module.grouped else 1
    return f"{len(made.parts)} parts, {job.parallel} at a time; processes of a part: {processes}; parts: {names}"


def run(job: Local) -> int:
    """Run the job to its end and return its exit code. The cores are divided among the ranks unless OMP_NUM_THREADS is
    set.

    Raises:
        UsageError: a wrong configuration, or srun started several of these launchers; no process is started then.
    """
    refuse_copies(os.environ)
    if (made := in_parts(job)) is not None:
        return run_parts(made, processes=job.processes, parallel=job.parallel)
    if job.verb == "train" or (job.verb == "evaluate" and not is_run_folder(job.configs)):
        load_run(job.configs, job.overrides)
    return _Jobs([job.arguments()], processes=job.processes).run()


def run_parts(job: Job, *, processes: int = 1, parallel: int = 1) -> int:
    """Run the parts of a job that are not done, in separate processes, `parallel` at a time; then conclude the job.
    Returns the exit code of the first that failed.

    processes: per part; 1 if parts are independent processes.

    Raises:
        CheckpointError, StorageError: the result of a part cannot be read.
    """
    done = job.done()
    todo = [part for part in job.parts if part not in done]
    with NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(job.to_json())
        file.flush()
        each = [[PART, file.name, part.name, *sys.argv[1:]] for part in todo]
        jobs = _Jobs(
            each,
            processes=processes if job.module.grouped else 1,
            parallel=parallel,
            labels=[part.name for part in todo],
        )
        code = jobs.run()
    return code if code and jobs.stopped else conclude(job, code)


@dataclass
class _Jobs:
    """Groups of ranks, of which `parallel` run at a time. The exit code is that of the first group that failed.

    waiting: for each group, the arguments of `launch.local.rank`. labels: for each group, the prefix of its lines.
    """

    waiting: Sequence[Sequence[str]]
    processes: int = 1
    parallel: int = 1
    labels: Sequence[str] = ()
    code: int = 0
    stopped: bool = False
    running: dict[int, Group] = field(default_factory=dict)

    def run(self) -> int:
        waiting = deque(zip(self.waiting, self.labels or [""] * len(self.waiting), strict=True))
        slots = min(self.parallel, len(waiting))
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
        environment = slot_environment(slot, slots=slots, processes=self.processes)
        return Group(arguments, processes=self.processes, environment=environment, label=label)

    def _collect(self) -> None:
        for slot, group in list(self.running.items()):
            group.step()
            if group.code is not None:
                self.code = self.code or group.code
                del self.running[slot]

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Forward signals to every rank, and start no further part. SIGHUP (a closed terminal) is sent as SIGTERM, so
        that ranks save and stop."""

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
    """Return the environment of one of several concurrent jobs: its share of the cores, and of the GPUs if they
    suffice."""
    cores = len(os.sched_getaffinity(0))
    own = {"OMP_NUM_THREADS": str(max(1, cores // (processes * slots))), **os.environ}
    cards = visible_gpus(os.environ)
    share = len(cards) // slots
    if slots > 1 and share >= processes:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(cards[slot * share : (slot + 1) * share])
    return own


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """List the names of the GPUs that this process may use, without torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    found = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia*")]
    return sorted((name for name in found if re.fullmatch(r"\d+", name)), key=int)
