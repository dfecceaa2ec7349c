"""A job: a resolved configuration, the parts of it that are wanted, the code's revision; and the function that every
launcher runs for one part.

A job is a value of plain text, so that what was submitted does not change with a checkout or a file. What its parts are
and do knows the module of its kind, see `dfer.jobs.parts`. This module imports no torch: processes find each other
before they spend seconds on that.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer.config import from_plain, load_text, to_yaml
from dfer.errors import CheckpointError, DferError, FencedError, StoppedError, UsageError, message
from dfer.jobs import parts as jobs
from dfer.jobs.parts import JobModule, Part, chosen, load_job, module_named, name_of
from dfer.surroundings import accept_any_encoding
from launch.rendezvous import Rendezvous, export
from launch.timeout import with_timeout

if TYPE_CHECKING:
    from dfer.interruption import Stop

JOBS = {**jobs.JOBS, "build": "launch.build"}
"""The module of every kind of job that can be launched."""
LAUNCH = "launch"
"""Folder in a job's run folder for what launchers leave: records of submissions, scripts, logs."""
PROJECT = Path(__file__).resolve().parents[1]
_RAY_PACKAGE = "_ray_pkg_"
ANSWER_S = 25.0
"""How long a store is waited for before it is called silent: several are asked, and the user waits."""
IMPORT_S = 600.0
"""How far one process may be behind another in importing torch, as on a file system that is cold on one host."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done. kind: the module of the job, by its dotted name. config: resolved, as YAML. run: the folder
    over all parts. parts: those that are wanted. revision: of the code that made the job.
    """

    kind: str
    config: str = field(repr=False)
    run: str
    parts: tuple[Part, ...]
    revision: str

    @property
    def module(self) -> JobModule:
        """What knows the parts of this kind of job."""
        return module_named(self.kind)

    def configuration(self) -> Any:
        """The configuration as the dataclass of its kind."""
        return load_text(self.config.encode(), self.module.Config, where="the job's configuration")

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def done(self) -> list[Part]:
        """The parts that have nothing left to do. Raises CheckpointError, StorageError: a result cannot be read."""
        module, config = self.module, self.configuration()
        return [part for part in self.parts if module.done(config, part)]

    def to_json(self) -> str:
        """The job for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The job that `to_json` wrote."""
        return from_plain(cls, json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Rank info of this process among those of its part. rendezvous: None if the environment has its address
    already or there is no other. gpu: whether it was promised one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: Rendezvous | None = None
    gpu: bool = False

    def variables(self) -> dict[str, str]:
        """As torch and `dfer.distributed` read them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
        }


def make_job(
    files: Sequence[str | Path],
    overrides: Sequence[str],
    only: Sequence[str],
    *,
    worlds: Sequence[int],
    check: Callable[[Mapping[str, str]], None] | None = None,
) -> Job:
    """Resolve a configuration, joined of some files, into a job. Paths become absolute: hosts may start it elsewhere.

    only: names of the wanted parts, all where none is given. worlds: numbers of processes that a part may run with.
    check: what else the launcher asks of the folders that hosts share, by their keys, before any is looked at.

    Raises:
        UsageError: something in the configuration, or a part that there is not. CheckpointError: a part was begun with
            another configuration, or a file of weights is not there. DataError: the shards. StorageError: they or
            the run folder cannot be reached.
    """
    module, config = load_job(files, overrides, JOBS)
    config = module.absolute(config)
    shared = module.shared(config)
    if check is not None:
        check({"run": config.run, **shared})
    known = with_timeout(ANSWER_S, lambda: module.parts(config), what=", ".join(shared.values()) or config.run)
    parts = chosen(known, only)
    with_timeout(ANSWER_S, lambda: module.check(config, parts, worlds), what=config.run)
    return Job(
        kind=name_of(module),
        config=to_yaml(config),
        run=config.run.rstrip("/"),
        parts=tuple(parts),
        revision=source_revision(),
    )


def revision() -> str:
    """The git revision of the code that runs."""
    from dfer.run.folder import revision as of_code

    return of_code()


def source_revision() -> str:
    """As `revision`; for code that Ray unpacked without git, the hash of the whole folder, which Ray names it by."""
    found = revision()
    if found == "unknown" and PROJECT.name.startswith(_RAY_PACKAGE):
        return PROJECT.name.removeprefix("_")
    return found


def run_job(job: Job, part: Part, place: Place, stop: "Stop") -> str:
    """Do one part in this process and those of the same part; a line about its result. What every launcher runs.

    Raises:
        DferError: as `run` of the job's module. ProcessError: the processes do not find each other. UsageError: this
        host lacks packages or GPUs that the job needs.
    """
    accept_any_encoding()
    try:
        if job.module.grouped:
            return _run_grouped(job, part, place, stop)
        return _run_alone(job, part, place, stop)
    except ImportError as error:
        do = "Install the same environment there as where the job was made."
        expected, got = "an environment in which the job can be imported", f"{type(error).__name__} ({error})"
        raise UsageError(message(f"host {socket.gethostname()}", expected=expected, got=got, do=do)) from error


def _run_alone(job: Job, part: Part, place: Place, stop: "Stop") -> str:
    if place.gpu:
        _check_gpus(1)
    _settle_revision(job)
    return job.module.run(job.configuration(), part, None, stop)


def _run_grouped(job: Job, part: Part, place: Place, stop: "Stop") -> str:
    export({**place.variables(), **(place.rendezvous.meet() if place.rendezvous else {})})
    if place.gpu:
        _check_gpus(place.local_size)
    from dfer.distributed import World, process_group
    from dfer.rendezvous import MEET_S

    world = World(rank=place.rank, size=place.size, local_rank=place.local_rank, local_size=place.local_size)
    if world.is_first:
        _settle_revision(job)
    config = job.configuration()
    # Those who have met differ from host to host in how long Python takes to import torch.
    with process_group(world, meet_s=IMPORT_S if place.rendezvous else MEET_S):
        return job.module.run(config, part, world, stop)


def _check_gpus(processes: int) -> None:
    """Say now that cards are missing: training would go on without them, on the CPU or two processes to a card.

    One visible card stands for itself, since clusters may show each process only its own.
    """
    import torch

    there = torch.cuda.device_count()
    if there == 0 or 1 < there < processes:
        do = "Look at nvidia-smi and the driver there, or set gpus_per_node: 0 (SLURM), gpu: false (Ray)."
        expected = f"a GPU for each of {processes} processes"
        raise UsageError(message(socket.gethostname(), expected=expected, got=f"{there}", do=do))


def _settle_revision(job: Job) -> None:
    """Tell when this is other code than made the job; where the code does not know, it is what came with the job."""
    from dfer.run.folder import REVISION

    mine = revision()
    if mine == "unknown" != job.revision:
        os.environ[REVISION] = job.revision
    elif mine != job.revision:
        print(f"note: the job was made by revision {job.revision}, this is {mine}", file=sys.stderr, flush=True)


def report(job: Job) -> None:
    """Conclude a job whose parts have ended, such as with the table over them, and print what comes of it.

    Raises:
        CheckpointError: parts are not done. DferError: as `conclude` of the job's module.
    """
    done = job.done()
    if done:
        print(job.module.conclude(job.configuration()), flush=True)
    missing = [part.name for part in job.parts if part not in done]
    if missing:
        got = f"none of {', '.join(missing)}"
        do = f"`dfer-launch status {job.run}` tells why; the command that submitted them submits what is missing."
        raise CheckpointError(message(job.run, expected="a result of every part", got=got, do=do))


def conclude(job: Job, code: int) -> int:
    """End a job whose parts have ended with `code`: after a failure the report tells what there is and what is missing,
    while after a stop, or with a newer copy at work, the next start goes on. The exit code.

    Raises:
        DferError: as `report`, when no part failed.
    """
    if code in (FencedError.exit_code, StoppedError.exit_code):
        return code
    try:
        report(job)
    except DferError as error:
        if not code:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def share_cores(cpus: int) -> None:
    """Threads of this process, unless OMP_NUM_THREADS says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus)))
