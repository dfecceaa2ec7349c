"""A job: a resolved configuration, the selected parts and the code's revision; and the function that every launcher
runs for one part.

A job is plain text, so that a submitted job does not change if files or the checkout change. The module of its kind
defines the parts and their work, see `dfer.jobs.parts`. This module imports no torch, because the rendezvous of the
processes comes before that import, which takes seconds.
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
"""Folder in a job's run folder for the files of launchers: records of submissions, scripts, logs."""
PROJECT = Path(__file__).resolve().parents[1]
_RAY_PACKAGE = "_ray_pkg_"
ANSWER_S = 25.0
"""Timeout for the answer of a store. It is short, because several stores are checked while the user waits."""
IMPORT_S = 600.0
"""Largest difference between processes in the time to import torch, for example if one host has a cold cache."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job to run. kind: dotted name of the module of its kind. config: resolved configuration as YAML. run: folder
    over all parts. parts: the selected parts. revision: of the code that made the job.
    """

    kind: str
    config: str = field(repr=False)
    run: str
    parts: tuple[Part, ...]
    revision: str

    @property
    def module(self) -> JobModule:
        """The module that defines the parts of this kind of job."""
        return module_named(self.kind)

    def configuration(self) -> Any:
        """Return the configuration as the dataclass of the job's kind."""
        return load_text(self.config.encode(), self.module.Config, where="the job's configuration")

    def part(self, name: str) -> Part:
        """Return the part with this name."""
        return next(part for part in self.parts if part.name == name)

    def done(self) -> list[Part]:
        """List the finished parts. Raises CheckpointError, StorageError if a result cannot be read."""
        module, config = self.module, self.configuration()
        return [part for part in self.parts if module.done(config, part)]

    def to_json(self) -> str:
        """Serialise the job for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read the job that `to_json` wrote."""
        return from_plain(cls, json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Rank info of this process within its part. rendezvous: None if the environment already has the address, or there
    is only one process. gpu: whether the scheduler has assigned it a GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: Rendezvous | None = None
    gpu: bool = False

    def variables(self) -> dict[str, str]:
        """Return the environment variables that torch and `dfer.distributed` read."""
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
    """Join configuration files and resolve them into a job. Paths become absolute: hosts may start it elsewhere.

    only: names of the parts to run, all if empty. worlds: numbers of processes that a part may run with. check: a
    further check of the launcher on the folders that hosts share (by key), called before any folder is accessed.

    Raises:
        UsageError: the configuration has an error, or there is no such part.
        CheckpointError: a part was begun with another configuration, or a file of weights is missing.
        DataError: the shards are damaged or do not match.
        StorageError: the shards or the run folder cannot be reached.
    """
    module, config = load_job(files, overrides, JOBS)
    config = module.absolute(config)
    shared = module.shared(config)
    if check is not None:
        check({"run": config.run, **shared})
    known = with_timeout(ANSWER_S, lambda: module.parts(config), what=", ".join(shared.values()) or config.run)
    parts = chosen(known, only)
    seconds = getattr(module, "check_s", ANSWER_S)
    with_timeout(seconds, lambda: module.check(config, parts, worlds), what=config.run)
    return Job(
        kind=name_of(module),
        config=to_yaml(config),
        run=config.run.rstrip("/"),
        parts=tuple(parts),
        revision=source_revision(),
    )


def refuse_one_gpu(job: Job, gpus: int) -> None:
    """Refuse to start a job whose parts spread a model over several GPUs with one GPU for a part.

    gpus: number of GPUs of an independent part.

    Raises:
        UsageError: `gpus` is 1 and the job asks for all GPUs.
    """
    asked = getattr(job.module, "all_gpus", lambda _: "")(job.configuration())
    if asked and gpus == 1:
        do = f"Set cluster.gpus_per_process to the GPUs that a part needs, or leave {asked} out."
        raise UsageError(message("cluster.gpus_per_process", expected=f"2 or more, for {asked}", got="1", do=do))


def revision() -> str:
    """Return the git revision of the running code."""
    from dfer.run.folder import revision as of_code

    return of_code()


def source_revision() -> str:
    """Like `revision`; for code that Ray unpacked without git, the hash of the folder, which Ray uses as its name."""
    found = revision()
    if found == "unknown" and PROJECT.name.startswith(_RAY_PACKAGE):
        return PROJECT.name.removeprefix("_")
    return found


def run_job(job: Job, part: Part, place: Place, stop: "Stop") -> str:
    """Run one part in this process, together with the other processes of the part; returns a line about its result.
    Every launcher calls this function.

    Raises:
        DferError: as `run` of the job's module. ProcessError: the rendezvous failed. UsageError: this host lacks
        packages or GPUs that the job needs.
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
    # After a rendezvous of the launcher, the processes only differ in the time that the import of torch takes.
    with process_group(world, meet_s=IMPORT_S if place.rendezvous else MEET_S):
        return job.module.run(config, part, world, stop)


def _check_gpus(processes: int) -> None:
    """Raise UsageError if GPUs are missing. Training would otherwise run on the CPU, or two processes share a GPU.

    One visible GPU is accepted, because clusters may show each process only its own GPU.
    """
    import torch

    there = torch.cuda.device_count()
    if there == 0 or 1 < there < processes:
        do = "Check nvidia-smi and the driver there, or set gpus_per_node: 0 (SLURM), gpu: false (Ray)."
        expected = f"a GPU for each of {processes} processes"
        raise UsageError(message(socket.gethostname(), expected=expected, got=f"{there}", do=do))


def _settle_revision(job: Job) -> None:
    """Print a note if another revision of the code made the job. If the revision of this code is unknown, use that of
    the job."""
    from dfer.run.folder import REVISION

    mine = revision()
    if mine == "unknown" != job.revision:
        os.environ[REVISION] = job.revision
    elif mine != job.revision:
        print(f"note: the job was made by revision {job.revision}, this is {mine}", file=sys.stderr, flush=True)


def report(job: Job) -> None:
    """Conclude a job whose parts have ended, and print the conclusion, such as a table.

    Raises:
        CheckpointError: parts are not finished. DferError: as `conclude` of the job's module.
    """
    done = job.done()
    if done:
        print(job.module.conclude(job.configuration()), flush=True)
    missing = [part.name for part in job.parts if part not in done]
    if missing:
        got = f"none of {', '.join(missing)}"
        do = f"`dfer-launch status {job.run}` shows why; the same command submits the parts that are missing."
        raise CheckpointError(message(job.run, expected="a result of every part", got=got, do=do))


def conclude(job: Job, code: int) -> int:
    """Conclude a job whose parts have ended with the exit code `code`; returns the exit code.

    After success or a failure, the report shows the results and the missing parts. After a stop, or if a newer copy is
    running, there is no report, because the next start resumes the job.

    Raises:
        DferError: as `report`, if no part failed.
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
    """Set the number of threads of this process, unless OMP_NUM_THREADS is set."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus)))
