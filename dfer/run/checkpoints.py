"""Atomic checkpoints on any store: written in the background, hashed, committed by their manifest.

    RUN/checkpoints/step_00000123-g2-5f2a9c1e/weights.safetensors     full tensors by parameter name
                                              optimizer.safetensors   full tensors as `parameter/slot`
                                              state.json              position of training
                                              manifest.json           size and sha256 of the three; written last

A folder's name contains the lease of the start that wrote it (`dfer.run.lease`), so that two copies of a run never
write the same file. A folder without a manifest is unfinished and ignored. Only the first rank writes and reads; it
broadcasts failures and tensors to all ranks. Reading cannot run code: tensors are stored as safetensors.
"""

import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfer.distributed import World, broadcast_tensors, on_first
from dfer.errors import CheckpointError, DferError, StorageError, message
from dfer.local_files import sha256_of
from dfer.run.checkpoint_files import OPTIMIZER, STATE, VERSION, WEIGHTS, Found, verified, write_tensors
from dfer.run.config import CheckpointConfig
from dfer.run.layout import CHECKPOINTS, MANIFEST, Name, committed, present
from dfer.run.lease import Fence
from dfer.storage import Folder

BEST = "best"
AVERAGE = "average"
"""Key of a checkpoint's state: decay of the average of the weights, null if there is none. Also the slot of the
optimizer's tensors that holds the average."""
_log = logging.getLogger("dfer")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. step: updates done when it was written; state: contents of its state.json."""

    folder: Folder
    name: Name
    state: dict[str, Any]
    world: World
    files: Path | None = field(default=None, repr=False)
    """Folder of the verified files on the first rank; None on the others."""
    fetched: bool = False
    """Whether `files` is a copy from a remote store, which `close` removes."""

    @property
    def step(self) -> int:
        return self.name.step

    def weights(self) -> dict[str, Tensor]:
        """Read parameters and buffers by name, onto the CPU. COLLECTIVE. Raises CheckpointError."""
        return broadcast_tensors(lambda: self._tensors(WEIGHTS), self.world)

    def evaluated(self) -> dict[str, Tensor]:
        """Read the weights that are evaluated: as `weights`, with the averages in the place of trained parameters if
        the run keeps averages. COLLECTIVE. Raises CheckpointError."""
        if self.state.get(AVERAGE) is None:
            return self.weights()
        return broadcast_tensors(lambda: {**self._tensors(WEIGHTS), **self._averages()}, self.world)

    def _averages(self) -> dict[str, Tensor]:
        found = self._tensors(OPTIMIZER).items()
        return {key.removesuffix(f"/{AVERAGE}"): value for key, value in found if key.endswith(f"/{AVERAGE}")}

    def optimizer(self) -> dict[str, Tensor]:
        """Read the optimizer state as `parameter/slot`, onto the CPU. COLLECTIVE. Raises CheckpointError."""
        return broadcast_tensors(lambda: self._tensors(OPTIMIZER), self.world)

    def close(self) -> None:
        """Remove the local copy of a remote store's files, so that a process killed later leaves none behind. The
        checkpoint cannot be read after this."""
        if self.fetched and self.files:
            shutil.rmtree(self.files, ignore_errors=True)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        assert self.files is not None, "only the first rank calls this; it has verified the files"
        try:
            return cast(dict[str, Tensor], load_file(self.files / name))
        except (SafetensorError, OSError) as error:
            where, do = self.folder.where(name), "Use an older checkpoint."
            raise CheckpointError(message(where, expected="a safetensors file", got=str(error), do=do)) from error


class Checkpoints:
    """The checkpoints of one run folder. Public methods are COLLECTIVE unless they say otherwise: all ranks call them,
    in the same order.

    fence: this start's right to write; None until `start`, when checkpoints can only be read.
    """

    def __init__(self, home: Folder, *, world: World, config: CheckpointConfig | None = None) -> None:
        self.folder = home / CHECKPOINTS
        self.fence: Fence | None = None
        self._home, self._world = home, world
        self._config = config or CheckpointConfig()
        self._saving: _Background | None = None
        self._saved_at = time.monotonic()
        self._warned_of_old = False

    def due(self, step: int, *, epochs_done: int | None) -> bool:
        """Whether to save after `step` updates. Not collective. epochs_done: whole epochs, if one has just ended."""
        every = self._config
        by_step = every.every_steps is not None and step % every.every_steps == 0
        by_epoch = every.every_epochs is not None and epochs_done is not None and epochs_done % every.every_epochs == 0
        return by_step or by_epoch

    @property
    def overdue(self) -> bool:
        """Whether `every_minutes` have passed since the last save, by this rank's clock; ranks must agree on it. Not
        collective."""
        minutes = self._config.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    @property
    def failed(self) -> bool:
        """Whether the background save failed (on the first rank); `finish` raises the error on all. Not collective."""
        return self._saving is not None and self._saving.problem is not None

    def raise_failure(self) -> None:
        """Wait for the background save and raise its error, if any. Not collective: affects this rank only."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.join()

    def start(self, latest: Checkpoint | None) -> Checkpoint | None:
        """Take a lease and so the run folder from older copies. COLLECTIVE. latest: what `latest` returned before.

        Returns the checkpoint to resume from: a newer one if an older copy has published it in the meantime.

        Raises:
            FencedError: another copy started at the same moment. StorageError, CheckpointError: as `latest`.
        """

        def take() -> bool:
            self.fence = Fence.take(self._home, processes=self._world.size)
            newest = next(iter(self._names()), None)
            return newest == (latest.name if latest else None)

        if not on_first(take, self._world):
            if latest:
                latest.close()
            latest = self.latest()
        on_first(lambda: self._claim(latest), self._world)
        return latest

    def _claim(self, latest: Checkpoint | None) -> None:
        assert self.fence is not None
        self.fence.record_base(str(latest.name) if latest else None, latest.step if latest else 0)
        self._clear()

    def save(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Start a background save, which then removes checkpoints that are no longer kept. COLLECTIVE. Training may
        continue meanwhile.

        The tensors of the first rank are saved; they must not be changed afterwards, and are freed when written.
        before: called before the commit, so that data that belongs to the checkpoint (metrics) is written by then.
        state["best"]["step"] names a checkpoint to keep regardless of its age.

        Raises:
            StorageError, FencedError: the previous save failed; on all ranks.
        """
        self.finish()
        self._saved_at = time.monotonic()
        if self._world.is_first:
            assert self.fence is not None, "`start` comes first"
            name = Name(step=step, lease=self.fence.id)
            self._saving = _Background(lambda: self._save(name, weights, optimizer, state, before))

    def finish(self) -> None:
        """Wait until the background save is published. COLLECTIVE.

        Raises:
            StorageError: on all ranks, when it could not be written; earlier checkpoints are unchanged.
            FencedError: on all ranks, when a newer copy has taken over.
        """
        on_first(self.raise_failure, self._world)

    def wait_for_save(self) -> None:
        """Wait for the background save and ignore its outcome. Not collective; used while an error unwinds."""
        if self._saving is not None:
            self._saving.wait()

    def latest(self) -> Checkpoint | None:
        """Find the newest checkpoint that verifies; None when there are none. COLLECTIVE.

        Raises:
            CheckpointError: checkpoints exist, but all are damaged. StorageError: they cannot be read.
        """
        return self._shared(on_first(self._find_latest, self._world))

    def best(self, newest: Checkpoint | None = None) -> Checkpoint | None:
        """Open the checkpoint that the newest one names as best; None when no selection was made. COLLECTIVE.

        newest: result of `latest`, if the caller has it already; it is closed here.

        Raises:
            CheckpointError: it is damaged or missing.
        """
        newest = newest or self.latest()
        if newest is None:
            return None
        newest.close()
        best = newest.state.get(BEST)
        if best is None:
            return None
        step = best.get("step") if isinstance(best, Mapping) else None
        if not isinstance(step, int):
            where, do = newest.folder.where(STATE), "Use another checkpoint of the run."
            raise CheckpointError(message(where, expected="the step of the best checkpoint", got="none", do=do))
        return self.at(step)

    def at(self, step: int) -> Checkpoint:
        """Open the checkpoint after `step` updates. COLLECTIVE. Raises CheckpointError when damaged or missing."""

        def find() -> Found:
            names = [name for name in self._names() if name.step == step]
            found = verified(self.folder, names[0]) if names else "none of this step"
            if isinstance(found, str):
                where = self.folder.where(str(names[0]) if names else f"step_{step:08d}")
                do = "Choose another one of the run."
                raise CheckpointError(message(where, expected="a whole checkpoint", got=found, do=do))
            return found

        checkpoint = self._shared(on_first(find, self._world))
        assert checkpoint is not None
        return checkpoint

    def _save(
        self,
        name: Name,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before: Callable[[], None],
    ) -> None:
        folder, files = self.folder / str(name), {}
        text = json.dumps(state, indent=1, allow_nan=False) + "\n"
        writers: dict[str, Callable[[Path], Any]] = {
            WEIGHTS: lambda path: write_tensors(weights, path),
            OPTIMIZER: lambda path: write_tensors(optimizer, path),
            STATE: lambda path: path.write_text(text),
        }
        try:
            for file, write in writers.items():
                with folder.whole(file) as path:
                    write(path)
                    files[file] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            before()
            self.may_write()
            manifest = {"version": VERSION, "step": name.step, "files": files}
            folder.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        except StorageError as error:
            folder.remove_all()
            raise StorageError(f"{error} The same command continues from the last checkpoint.") from error
        except DferError:
            folder.remove_all()
            raise
        self._prune(newest=name.step, best=(state.get(BEST) or {}).get("step"))

    def may_write(self) -> None:
        """Raise FencedError when a newer copy has taken over the run folder. Not collective; first rank only."""
        assert self.fence is not None, "`start` comes first"
        self.fence.check()

    def _prune(self, *, newest: int, best: int | None) -> None:
        """Remove checkpoints that are neither among the newest `keep_last` nor the best."""
        older = [name for name in self._names() if name.step <= newest]
        steps = sorted({name.step for name in older}, reverse=True)
        keep = {*steps[: self._config.keep_last], best}
        newest_of = {name.step: name for name in reversed(older)}
        self._discard(name for name in older if name.step not in keep or newest_of[name.step] != name)

    def _clear(self) -> None:
        """Remove unfinished checkpoints of older copies, and those published after this start had chosen its own."""
        assert self.fence is not None
        kept = set(self._names())
        self._discard(name for name in self._all() if name not in kept and name.lease < self.fence.id)

    def _discard(self, names: Iterable[Name]) -> None:
        """Remove checkpoints. A store that refuses only causes a warning: old checkpoints cost nothing but space."""
        try:
            for name in names:
                folder = self.folder / str(name)
                folder.remove(MANIFEST)  # first, so that half a folder never looks like a damaged checkpoint
                folder.remove_all()
        except StorageError as error:
            if not self._warned_of_old:
                _log.warning("%s Until then old checkpoints stay and take room.", error)
            self._warned_of_old = True

    def _all(self) -> list[Name]:
        return present(self.folder)

    def _names(self) -> list[Name]:
        return committed(self._home)

    def _find_latest(self) -> Found | None:
        problems = []
        for name in self._names():
            found = verified(self.folder, name)
            if not isinstance(found, str):
                return found
            _log.warning("%s: damaged (%s); using an older checkpoint", self.folder.where(str(name)), found)
            problems.append(f"{name}: {found}")
        if problems:
            got = f"{len(problems)} damaged ({'; '.join(problems[:3])})"
            do = "Copy them again from their source, or start over with another run=FOLDER."
            raise CheckpointError(message(self.folder, expected="one whole checkpoint", got=got, do=do))
        return None

    def _shared(self, found: Found | None) -> Checkpoint | None:
        """Make the Checkpoint on every rank for the one that the first rank found."""
        if found is None:
            return None
        made = Checkpoint(
            folder=self.folder / str(found.name),
            name=found.name,
            state=found.state,
            world=self._world,
            files=found.files if self._world.is_first else None,
            fetched=found.fetched,
        )
        if made.fetched and made.files:  # in case the caller does not close it
            weakref.finalize(made, shutil.rmtree, made.files, ignore_errors=True)
        return made


class _Background:
    """Runs work in a thread; `join` raises its error."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.problem: BaseException | None = None
        # Not a daemon thread: Python waits for it at exit, so that a started save is completed.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.problem = error

    def wait(self) -> None:
        self._thread.join()

    def join(self) -> None:
        self.wait()
        if self.problem is not None:
            raise self.problem
