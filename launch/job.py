"""A job: a resolved configuration, one fold of it, the code's revision; and the function every launcher runs.

A job is a value of plain text and numbers, so that what was submitted does not change with a checkout or a file. This
module imports no torch: processes find each other before they spend seconds on that.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.errors import CheckpointError, DferError, FencedError, StoppedError, UsageError, message
from dfer.run.layout import finished
from dfer.storage import Folder
from dfer.surroundings import accept_any_encoding
from dfer.yaml_text import parse
from launch.rendezvous import Meeting, export
from launch.timeout import within

if TYPE_CHECKING:
    from dfer.evaluation.results import FoldResult
    from dfer.interruption import Stop
    from dfer.jobs.config import RunConfig

LAUNCH = "launch"
"""Folder of a cross-validation's run folder for what launchers leave: records of submissions, scripts, logs."""
PROJECT = Path(__file__).resolve().parents[1]
_RAY_PACKAGE = "_ray_pkg_"
ANSWER_S = 25.0
"""How long a store is waited for before it is called silent: several are asked, and the user waits."""
IMPORT_S = 600.0
"""How far one process may be behind another in importing torch, as on a file system that is cold on one host."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained. config: resolved, as YAML; its `run` is the folder over all folds. folds: their numbers.

    known: all folds that the shards give. revision: of the code that made the job.
    """

    config: str = field(repr=False)
    run: str
    folds: tuple[int, ...]
    known: tuple[int, ...]
    revision: str

    def fold_url(self, fold: int) -> str:
        """The run folder of a fold."""
        return f"{self.run}/fold_{fold}"

    def finished(self) -> list[int]:
        """The folds whose training is complete. Raises CheckpointError, StorageError: a result cannot be read."""
        plain = parse(self.config.encode())
        return [fold for fold in self.folds if finished(Folder(self.fold_url(fold), what="run"), plain.get("epochs"))]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands among those of its fold, and where they meet. gpu: whether it was promised one."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    meeting: Meeting
    gpu: bool

    def variables(self) -> dict[str, str]:
        """As torch and `dfer.distributed` read them."""
        return {
            "RANK": str(self.rank), "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank), "LOCAL_WORLD_SIZE": str(self.local_size),
        }  # fmt: skip


def make_job(
    files: Sequence[str | Path],
    overrides: Sequence[str],
    folds: Sequence[int],
    *,
    worlds: Sequence[int],
    check: "Callable[[RunConfig], None] | None" = None,
) -> Job:
    """Resolve a configuration, joined of some files, into a job. Paths become absolute: hosts may start it elsewhere.

    worlds: numbers of processes it may run with; the batch has to divide among each. check: what else the launcher asks
    of the configuration, before shards and run folder are looked at.

    Raises:
        UsageError: something in the configuration, or an unknown fold. CheckpointError: a fold was begun with another
            configuration, or a file of weights is not there. DataError: the shards. StorageError: they or
            the run folder cannot be reached.
    """
    from dfer.config import to_yaml
    from dfer.jobs.config import load_run
    from dfer.jobs.parts import known_folds

    config = _absolute(load_run(files, overrides))
    for size in worlds:
        _check_batch(config, size)
    if check is not None:
        check(config)
    if within(ANSWER_S, lambda: Folder(config.run, what="run").exists("config.yaml"), what=config.run):
        do = "Choose another one with run=FOLDER."
        expected = "a folder for all folds"
        raise UsageError(message(config.run, expected=expected, got="the run of a single one", do=do))
    known = within(ANSWER_S, lambda: known_folds(config), what=config.data.shards)
    unknown = sorted(set(folds) - set(known))
    if unknown:
        expected = f"some of {', '.join(map(str, known))}"
        raise UsageError(message("--folds", expected=expected, got=str(unknown[0]), do="Correct --folds."))
    job = Job(
        config=to_yaml(config), run=config.run.rstrip("/"), folds=tuple(sorted(set(folds))) or tuple(known),
        known=tuple(known), revision=source_revision(),
    )  # fmt: skip
    within(ANSWER_S, lambda: _check_begun(job, config), what=config.run)
    return job


def _check_begun(job: Job, config: "RunConfig") -> None:
    """Refuse another configuration than folds were begun or finished with, and weights that are not there: now, not
    when folds start on a host."""
    from dataclasses import replace

    from dfer.models.files import check_files
    from dfer.run.folder import check
    from dfer.run.layout import CONFIG, committed

    homes = {fold: Folder(job.fold_url(fold), what="run") for fold in job.folds}
    for fold, home in homes.items():
        if home.exists(CONFIG):
            check(home, replace(config, fold=fold, run=job.fold_url(fold)))
    begun = all(finished(home, config.epochs) or committed(home) for home in homes.values())
    # Features that are stored need no tower; whether they are is found out where they are read.
    check_files(config.model, weights=not begun and config.data.features is None)


def _absolute(config: "RunConfig") -> "RunConfig":
    """With absolute paths, which are values: read as YAML once more, ` #` in one would cut it."""
    from dfer.config import changed, to_plain
    from dfer.models.files import files
    from dfer.run.changes import keys

    facts = keys(type(config), to_plain(config))
    places = {name: key.value for name, key in facts.items() if key.path and not key.file}
    places |= {f"model.{key}": path for key, path in files(config.model).items()}
    local = {key: path for key, path in places.items() if path and "://" not in path and "::" not in path}
    return changed(config, {key: str(Path(path).absolute()) for key, path in local.items()})


def _check_batch(config: "RunConfig", size: int) -> None:
    if config.batch % size:
        below = max(size, config.batch // size * size)
        do = f"Set batch={below}, or other numbers of nodes or processes in the cluster file."
        raise UsageError(message("batch", expected=f"a multiple of {size} processes", got=str(config.batch), do=do))


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


def run_job(job: Job, fold: int, place: Place, stop: "Stop") -> "FoldResult":
    """Train one fold in this process and those of the same fold. What every launcher of a cluster runs.

    Raises:
        DferError: as `dfer.jobs.train.train`. ProcessError: the processes do not find each other. UsageError: this host
        lacks packages or GPUs that the job needs.
    """
    accept_any_encoding()
    export({**place.variables(), **place.meeting.hold()})
    try:
        return _train(job, fold, place, stop)
    except ImportError as error:
        do = "Install the same environment there as where the job was made."
        expected, got = "an environment in which training can be imported", f"{type(error).__name__} ({error})"
        raise UsageError(message(f"host {socket.gethostname()}", expected=expected, got=got, do=do)) from error


def _train(job: Job, fold: int, place: Place, stop: "Stop") -> "FoldResult":
    if place.gpu:
        _check_gpus(place.local_size)
    from dataclasses import replace

    from dfer.config import load_text
    from dfer.distributed import World, process_group
    from dfer.jobs.config import RunConfig
    from dfer.jobs.train import train

    world = World(rank=place.rank, size=place.size, local_rank=place.local_rank, local_size=place.local_size)
    if world.is_first:
        _settle_revision(job)
    config = load_text(job.config.encode(), RunConfig, where="the job's configuration")
    # They have met; what differs from host to host is how long Python takes to import torch.
    with process_group(world, meet_s=IMPORT_S):
        return train(replace(config, fold=fold, run=job.fold_url(fold)), world, stop)


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


def report(run: str, folds: Sequence[int]) -> None:
    """Write the report of a cross-validation and print its table.

    Raises:
        CheckpointError: folds have no result.
    """
    from dfer.__main__ import main as dfer

    missing = [fold for fold in folds if not finished(Folder(f"{run}/fold_{fold}"))]
    if len(missing) < len(folds) and dfer(["report", run]):
        raise CheckpointError(message(run, expected="a report", got="an error, told above", do="Mend it and repeat."))
    if missing:
        got = f"none of fold {', '.join(map(str, missing))}"
        do = f"`dfer-launch status {run}` tells why; the command that submitted them submits what is missing."
        raise CheckpointError(message(run, expected="a result of every fold", got=got, do=do))


def conclude(run: str, folds: Sequence[int], code: int) -> int:
    """End a job whose folds have ended with `code`: after a failure the report tells what there is and what is missing,
    while after a stop, or with a newer copy at work, the next start goes on. The exit code.

    Raises:
        DferError: as `report`, when no fold failed.
    """
    if code in (FencedError.exit_code, StoppedError.exit_code):
        return code
    try:
        report(run, folds)
    except DferError as error:
        if not code:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def share_cores(cpus: int) -> None:
    """Threads of this process, unless OMP_NUM_THREADS says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus)))
