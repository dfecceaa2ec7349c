"""Parts, the named pieces of a job, and the interface of a kind of job. Imports no torch, so that launchers, status and
the message for a typo in a YAML answer at once.

A kind of job is one module with the functions of `JobModule`, one configuration dataclass, and one line in `JOBS`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from dfer import config_files
from dfer.config import ConfigProblem, changed, to_plain
from dfer.errors import UsageError, did_you_mean, message
from dfer.run.changes import keys
from dfer.storage import Folder

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

T = TypeVar("T")
_NUMBERED = re.compile(r"[a-z]+_[0-9]{1,9}")
_PIECE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
NOT_PARTS = frozenset(("checkpoints", "features", "launch", "lease", "report", "results", "tensorboard"))
"""Folders of a run folder that are no parts."""
MARKS = frozenset(("checkpoints", "config.yaml", "lease", "metrics.jsonl", "progress.json", "results"))
"""What parts hold: a folder whose name is not numbered, such as `raf_db`, is a part if it has one of these."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a job. name: `fold_3`, `seed_2/fold_3`, `worker_07`, `raf_db`: of letters, digits, `_`, `.` and `-`;
    run: its folder, path or URL."""

    name: str
    run: str


class JobModule(Protocol):
    """The interface that the module of a kind of job implements. The module imports no torch before `run`.

    grouped: whether the processes of a part form one process group and share its work; if False, a part is one
    independent process. Config: the dataclass of the job's configuration; its key `run` is the folder over all parts.
    check_s: optional; seconds that a launcher gives to `check` instead of the 25 in which a store must answer, for a
    job that imports torch or opens its data there. all_gpus: optional; a function of the configuration that
    returns the setting by which a part spreads a model over all its GPUs, such as `pairs.teacher.devices=all`, or "".
    """

    @property
    def grouped(self) -> bool: ...
    @property
    def Config(self) -> type[Any]: ...

    def load(self, files: Sequence[str | Path], overrides: Sequence[str]) -> Any:
        """Load the configuration from YAML files and `a.b=c` overrides.

        Raises:
            ConfigProblem: lists every problem in them.
        """

    def absolute(self, config: Any) -> Any:
        """Return the configuration with absolute paths: hosts may start the job in another folder."""

    def shared(self, config: Any) -> dict[str, str]:
        """Return the paths and URLs that every host reads or writes besides `run`, by their key."""

    def parts(self, config: Any) -> list[Part]:
        """List all parts of the job, in the order in which they are started."""

    def check(self, config: Any, parts: Sequence[Part], worlds: Sequence[int]) -> None:
        """Detect, before any process starts, what would stop these parts later.

        worlds: numbers of processes that a part may run with.

        Raises:
            DferError: the first problem found.
        """

    def done(self, config: Any, part: Part) -> bool:
        """Whether a part has nothing left to do."""

    def run(self, config: Any, part: Part, world: "World | None", stop: "Stop") -> str:
        """Run a part, or resume it; leave a finished part as it is. Returns a line about its result.

        world: of the part's process group, all ranks of which make this call; None if parts are not grouped.
        """

    def conclude(self, config: Any) -> str:
        """Combine the results of the finished parts, such as into a report; returns a text about it. Called when all
        parts have ended.

        Raises:
            DferError: the results cannot be combined, or too many are missing.
        """


TRAINING = "crossval"
"""The kind of job of a configuration without a key `job`."""
JOBS = {
    TRAINING: "dfer.jobs.crossval",
    "predict": "dfer.jobs.predict_job",
    "features": "dfer.jobs.features_job",
    "extract": "dfer.jobs.extract",
    "fit": "dfer.jobs.fit",
    "zeroshot": "dfer.jobs.zeroshot",
}
"""The module of each kind of job, by the value of `job` in its configuration. `launch.job` adds more."""


def load_job(
    files: Sequence[str | Path], overrides: Sequence[str], jobs: Mapping[str, str] = JOBS
) -> tuple[JobModule, Any]:
    """Load the configuration of a job from files and overrides; returns also the module of its kind.

    Raises:
        ConfigProblem: the key `job` names none of `jobs`, or the files do not give a complete configuration.
    """
    given = [text.removeprefix("job=") for text in overrides if text.startswith("job=")]
    name = given[-1] if given else config_files.read(files).get("job", TRAINING)
    if not isinstance(name, str) or name not in jobs:
        do = did_you_mean(str(name), jobs)
        raise ConfigProblem(message("job", expected=f"one of {', '.join(jobs)}", got=str(name), do=f"Correct it. {do}"))
    module = module_named(jobs[name])
    return module, module.load(files, overrides)


def module_named(name: str) -> JobModule:
    """Import the module of a kind of job by its dotted name."""
    return cast(JobModule, import_module(name))


def name_of(module: JobModule) -> str:
    """Return the dotted name of a job's module."""
    return cast(ModuleType, module).__name__


def absolute_places(config: T, files: Mapping[str, str] = MappingProxyType({})) -> T:
    """Make absolute the paths of a configuration: values of the keys declared with `path`, and `files` by dotted key.

    URLs stay as they are. The paths are set as values, not as overrides: parsed as YAML, a path would end at ` #`.
    """
    declared = keys(type(config), to_plain(config))
    places = {name: key.value for name, key in declared.items() if key.path and not key.file} | {**files}
    return changed(config, {name: absolute_path(path) for name, path in places.items() if path})


def absolute_path(path: Any) -> Any:
    """Make a path, or each of several, absolute; URLs stay as they are."""
    if isinstance(path, list | tuple):
        return tuple(map(absolute_path, path))
    return path if "://" in path or "::" in path else str(Path(path).absolute())


def chosen(parts: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """Return the parts with the names `only`, in the order of the job; all parts if `only` is empty.

    Raises:
        UsageError: no part has one of the names.
    """
    names = [part.name for part in parts]
    unknown = [name for name in only if name not in names]
    if unknown:
        expected = f"some of {', '.join(names)}"
        raise UsageError(message("--only", expected=expected, got=unknown[0], do="Correct --only."))
    return [part for part in parts if not only or part.name in only]


def parts_in(home: Folder) -> list[Part]:
    """List the parts whose folders exist in a run folder, ordered by their numbers; needs no configuration."""
    names = _pieces(home)
    inside = {name: _pieces(home / name) for name in names}
    found = [f"{name}/{inner}" if inner else name for name in names for inner in inside[name] or [""]]
    return [Part(name=name, run=str(home / name)) for name in sorted(found, key=in_order)]


def _pieces(folder: Folder) -> list[str]:
    named = [name for name in folder.folders() if _PIECE.fullmatch(name) and name not in NOT_PARTS]
    return [name for name in named if _NUMBERED.fullmatch(name) or MARKS.intersection((folder / name).children())]


def in_order(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts names of parts by their numbers: fold_2 before fold_10."""
    pieces = [(piece, *piece.rpartition("_")[::2]) for piece in name.split("/")]
    return [(word, int(number)) if number.isdigit() else (piece, 0) for piece, word, number in pieces]
