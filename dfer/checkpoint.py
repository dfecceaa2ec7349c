"""Checkpoints that are whole or absent: written aside, hashed, published by one rename, verified before use.

    RUN/checkpoints/step_00000123/weights.safetensors     full tensors by parameter name
                                  optimizer.safetensors   full tensors as `parameter/slot`
                                  state.json              where training stands
                                  manifest.json           size and sha256 of the three; written last

The first rank writes; every rank learns of a failure. Nothing read here can run code: tensors are safetensors.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfer.config import ConfigProblem
from dfer.distributed import World, from_first, gather_objects
from dfer.errors import CheckpointError, DferError, StorageError, message

T = TypeVar("T")

VERSION = 1
MANIFEST, WEIGHTS, OPTIMIZER, STATE = "manifest.json", "weights.safetensors", "optimizer.safetensors", "state.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)
BEST = "best"
_NAME = re.compile(r"step_(\d{8,12})")
_log = logging.getLogger("dfer")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how many of the newest to keep (the best one is kept besides). The end is always saved."""

    every_epochs: int | None = 1
    every_steps: int | None = None
    keep_last: int = 2

    def __post_init__(self) -> None:
        for name, value in (("every_epochs", self.every_epochs), ("every_steps", self.every_steps)):
            if value is not None and value < 1:
                do = "null switches it off."
                raise ConfigProblem(message(name, expected="1 or more", got=str(value), do=do))
        if self.keep_last < 1:
            do = "2 leaves one to fall back on."
            raise ConfigProblem(message("keep_last", expected="1 or more", got=str(self.keep_last), do=do))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. step: updates done when it was written; state: contents of its state.json."""

    folder: Path
    step: int
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU."""
        return _tensors(self.folder / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """Optimizer state as `parameter/slot`, on the CPU."""
        return _tensors(self.folder / OPTIMIZER)


class Checkpoints:
    """The checkpoints of one run folder. Methods are collective: all ranks call them, in the same order."""

    def __init__(self, folder: Path, *, world: World, config: CheckpointConfig | None = None) -> None:
        self.folder, self._world = folder, world
        self._config = config or CheckpointConfig()

    def due(self, step: int, *, epochs_done: int | None) -> bool:
        """Whether to save after `step` updates; epochs_done: number of whole epochs when one has just ended."""
        every = self._config
        by_step = every.every_steps is not None and step % every.every_steps == 0
        by_epoch = every.every_epochs is not None and epochs_done is not None and epochs_done % every.every_epochs == 0
        return by_step or by_epoch

    def save(
        self, step: int, *, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path:
        """Publish a checkpoint and remove those no longer kept. Tensors are those of the first rank.

        state["best"]["step"] names a checkpoint to keep however old it is.

        Raises:
            StorageError: on all ranks, when it could not be written; the earlier checkpoints are as they were.
        """
        final = self.folder / f"step_{step:08d}"
        self._on_first(lambda: self._save(final, step, weights, optimizer, state))
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None when there are none at all.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged; or another rank sees other files.
        """
        return self._agreed(self._on_first(self._find_latest))

    def best(self) -> Checkpoint | None:
        """The checkpoint the newest one names as best, or None when no selection was made.

        Raises:
            CheckpointError: it is damaged or gone.
        """
        newest = self.latest()
        best = newest.state.get(BEST) if newest else None
        if best is None:
            return None
        return self.at(int(best["step"]))

    def at(self, step: int) -> Checkpoint:
        """The checkpoint after `step` updates. Raises CheckpointError when it is damaged or missing."""
        folder = self.folder / f"step_{step:08d}"

        def check() -> str:
            problem = damage(folder)
            if problem:
                raise CheckpointError(
                    message(folder, expected="a whole checkpoint", got=problem, do="Choose another one of the run.")
                )
            return folder.name

        checkpoint = self._agreed(self._on_first(check))
        assert checkpoint is not None
        return checkpoint

    def _save(
        self,
        final: Path,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        aside = self.folder / f".{final.name}.{os.getpid()}.tmp"
        with _storage(final):
            try:
                aside.mkdir(parents=True)
                save_file(dict(weights), aside / WEIGHTS)
                save_file(dict(optimizer), aside / OPTIMIZER)
                (aside / STATE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n")
                files = {
                    name: {"bytes": (aside / name).stat().st_size, "sha256": _sha256(aside / name)} for name in FILES
                }
                manifest = {"version": VERSION, "step": step, "files": files}
                (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
                for name in (*FILES, MANIFEST):
                    _sync(aside / name)
                _sync(aside)
                if final.exists():  # damaged, or written before the run was set back
                    final.rename(aside.with_suffix(".old"))
                aside.rename(final)
                for folder in (self.folder, self.folder.parent):
                    _sync(folder)
            finally:
                for leftover in (aside, aside.with_suffix(".old")):
                    shutil.rmtree(leftover, ignore_errors=True)
        self._prune(newest=step, best=(state.get(BEST) or {}).get("step"))

    def _prune(self, *, newest: int, best: int | None) -> None:
        """Remove what is neither among the newest nor the best, and what a killed process left half-written."""
        older = [step for step in self._steps() if step <= newest]
        keep = {*older[: self._config.keep_last], best}
        for step in older:
            if step not in keep:
                shutil.rmtree(self._existing(step), ignore_errors=True)
        for leftover in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[int]:
        """Steps of the folders there, newest first; leftovers and foreign names do not count."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob("step_*")]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _existing(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _find_latest(self) -> str | None:
        problems = []
        for step in self._steps():
            folder = self._existing(step)
            problem = damage(folder)
            if not problem:
                return folder.name
            _log.warning("%s: damaged (%s); using an older checkpoint", folder, problem)
            problems.append(f"{folder.name}: {problem}")
        if problems:
            got = f"{len(problems)} damaged ({'; '.join(problems[:3])})"
            do = "Copy them anew from where they came, or start over with another run=FOLDER."
            raise CheckpointError(message(self.folder, expected="one whole checkpoint", got=got, do=do))
        return None

    def _on_first(self, work: Callable[[], T]) -> T:
        """Do `work` on the first rank; its result, or the same DferError, on every rank."""
        result: T | None = None
        problem: DferError | None = None
        if self._world.is_first:
            try:
                result = work()
            except DferError as error:
                problem = error
        kind, text, result = from_first((type(problem) if problem else None, str(problem), result))
        if kind is not None:
            raise kind(text) from problem
        return cast(T, result)

    def _agreed(self, name: str | None) -> Checkpoint | None:
        """The first rank's choice, once every rank has seen the same manifest."""
        if name is None:
            return None
        folder = self.folder / name
        try:
            seen: str | None = _sha256(folder / MANIFEST)
            state = json.loads((folder / STATE).read_text())
        except (OSError, ValueError):
            seen = None
        views = gather_objects(seen)
        if len(set(views)) > 1 or seen is None:
            ranks = ", ".join(str(rank) for rank, view in enumerate(views) if view != views[0] or view is None)
            do = "Put the run folder on storage that all nodes share."
            raise CheckpointError(
                message(folder, expected="the same files on every rank", got=f"others on {ranks}", do=do)
            )
        return Checkpoint(folder=folder, step=int(name.removeprefix("step_")), state=state)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None when sizes and hashes are those of its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version = manifest["version"]
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is unreadable ({type(error).__name__})"
    if version != VERSION or set(files) != set(FILES):
        return f"{MANIFEST} is of version {version!r} with {', '.join(sorted(files)) or 'no files'}"
    for name, (size, sha256) in files.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _sha256(folder / name) != sha256:
                return f"{name} has another sha256 than its manifest"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return cast(dict[str, Tensor], load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            message(path, expected="a safetensors file", got=str(error), do="Use an older checkpoint.")
        ) from error


@contextmanager
def _storage(where: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (
            getattr(error, "errno", None) == errno.ENOSPC or "StorageFull" in str(error) or "os error 28" in str(error)
        )
        got, do = ("no space left", "Free some, or lower checkpoint.keep_last;") if full else (str(error), "Mend it;")
        do = f"{do} the same command continues from the last checkpoint."
        raise StorageError(message(where, expected="to write a checkpoint", got=got, do=do)) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold what was written; for a folder, its names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
