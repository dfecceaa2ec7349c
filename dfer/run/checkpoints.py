"""Checkpoints that are whole or absent, on any store: written in the background, hashed, committed by their manifest.

    RUN/checkpoints/step_00000123-g2-5f2a9c1e/weights.safetensors     full tensors by parameter name
                                              optimizer.safetensors   full tensors as `parameter/slot`
                                              state.json              where training stands
                                              manifest.json           size and sha256 of the three; written last

A folder bears the lease of the start that wrote it (`dfer.run.lease`), so that two copies of a run never write the same
file. One without a manifest was not finished and is passed over. The first rank writes and reads; every rank learns of
a failure, and gets the tensors from the first one. Nothing read here can run code: tensors are safetensors.
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
from dfer.run.checkpoint_files import OPTIMIZER, STATE, VERSION, WEIGHTS, Found, sha256_of, verified, write_tensors
from dfer.run.config import CheckpointConfig
from dfer.run.layout import CHECKPOINTS, MANIFEST, Name, committed, present
from dfer.run.lease import Fence
from dfer.storage import Folder

BEST = "best"
_log = logging.getLogger("dfer")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. step: updates done when it was written; state: contents of its state.json."""

    folder: Folder
    name: Name
    state: dict[str, Any]
    world: World
    files: Path | None = field(default=None, repr=False)
    """Where the first rank has the verified files."""
    fetched: bool = False
    """Whether those are a copy of a remote store's, which `close` removes."""

    @property
    def step(self) -> int:
        return self.name.step

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU; all ranks call it. Raises CheckpointError."""
        return broadcast_tensors(lambda: self._tensors(WEIGHTS), self.world)

    def optimizer(self) -> dict[str, Tensor]:
        """Optimizer state as `parameter/slot`, on the CPU; all ranks call it. Raises CheckpointError."""
        return broadcast_tensors(lambda: self._tensors(OPTIMIZER), self.world)

    def close(self) -> None:
        """Nothing more is read from it. A process that is killed later leaves no copy of a remote store's files."""
        if self.fetched and self.files:
            shutil.rmtree(self.files, ignore_errors=True)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        assert self.files is not None, "the first rank has verified them"
        try:
            return cast(dict[str, Tensor], load_file(self.files / name))
        except (SafetensorError, OSError) as error:
            where, do = self.folder.where(name), "Use an older checkpoint."
            raise CheckpointError(message(where, expected="a safetensors file", got=str(error), do=do)) from error


class Checkpoints:
    """The checkpoints of one run folder. Methods are collective: all ranks call them, in the same order.

    fence: the right to write; without one they can only be read.
    """

    def __init__(self, home: Folder, *, world: World, config: CheckpointConfig | None = None) -> None:
        self.folder = home / CHECKPOINTS
        self.fence: Fence | None = None
        self._home, self._world = home, world
        self._config = config or CheckpointConfig()
        self._saving: _Background | None = None
        self._saved_at = time.monotonic()
        self._told_that_old_stay = False

    def due(self, step: int, *, epochs_done: int | None) -> bool:
        """Whether to save after `step` updates; epochs_done: number of whole epochs when one has just ended."""
        every = self._config
        by_step = every.every_steps is not None and step % every.every_steps == 0
        by_epoch = every.every_epochs is not None and epochs_done is not None and epochs_done % every.every_epochs == 0
        return by_step or by_epoch

    @property
    def overdue(self) -> bool:
        """Whether `every_minutes` have passed since the last save. By this rank's clock: ranks have to agree on it."""
        minutes = self._config.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    @property
    def failed(self) -> bool:
        """Whether the save in the background came to an error (on the first rank); `finish` raises it on all."""
        return self._saving is not None and self._saving.problem is not None

    def raise_failure(self) -> None:
        """Raise what the save in the background came to, on this rank alone."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.join()

    def start(self, latest: Checkpoint | None) -> Checkpoint | None:
        """Take the run folder over from older copies, for writing. latest: what `latest` gave before.

        Gives the checkpoint to go on from: a newer one where the older copy has published it in the meantime.

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
        self.fence.goes_on_from(str(latest.name) if latest else None, latest.step if latest else 0)
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
        """Begin to publish a checkpoint, and then to remove those no longer kept; training may go on meanwhile.

        The tensors are the first rank's, must not change any more, and are let go when written. before: called before
        the commit, so that what belongs to it stands by then. state["best"]["step"] names a checkpoint to keep however
        old it is.

        Raises:
            StorageError, FencedError: the save before this one failed; on all ranks.
        """
        self.finish()
        self._saved_at = time.monotonic()
        if self._world.is_first:
            assert self.fence is not None, "`start` comes first"
            name = Name(step=step, lease=self.fence.id)
            self._saving = _Background(lambda: self._save(name, weights, optimizer, state, before))

    def finish(self) -> None:
        """Wait until what is being saved is published.

        Raises:
            StorageError: on all ranks, when it could not be written; the earlier checkpoints are as they were.
            FencedError: on all ranks, when a newer copy has taken over.
        """
        on_first(self.raise_failure, self._world)

    def settle(self) -> None:
        """Wait for the save in the background, whatever it comes to; for this rank alone, in an error's way out."""
        if self._saving is not None:
            self._saving.wait()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None when there are none at all.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged. StorageError: they cannot be read.
        """
        return self._shared(on_first(self._find_latest, self._world))

    def best(self, newest: Checkpoint | None = None) -> Checkpoint | None:
        """The checkpoint the newest one names as best, or None when no selection was made.

        newest: what `latest` gave, where the caller has it already; it is closed.

        Raises:
            CheckpointError: it is damaged or gone.
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
        """The checkpoint after `step` updates. Raises CheckpointError when it is damaged or missing."""

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
        """Raises FencedError when a newer copy has taken the run folder over; for the first rank alone."""
        assert self.fence is not None, "`start` comes first"
        self.fence.check()

    def _prune(self, *, newest: int, best: int | None) -> None:
        """Remove what is neither among the newest nor the best."""
        older = [name for name in self._names() if name.step <= newest]
        steps = sorted({name.step for name in older}, reverse=True)
        keep = {*steps[: self._config.keep_last], best}
        newest_of = {name.step: name for name in reversed(older)}
        self._discard(name for name in older if name.step not in keep or newest_of[name.step] != name)

    def _clear(self) -> None:
        """Remove what older copies left unfinished, or published after this one had gone on without it."""
        assert self.fence is not None
        kept = set(self._names())
        self._discard(name for name in self._all() if name not in kept and name.lease < self.fence.id)

    def _discard(self, names: Iterable[Name]) -> None:
        """Remove checkpoints. They only take room: a store that does not let them be removed stops no training."""
        try:
            for name in names:
                folder = self.folder / str(name)
                folder.remove(MANIFEST)  # first, so that half a folder never looks like a damaged checkpoint
                folder.remove_all()
        except StorageError as error:
            if not self._told_that_old_stay:
                _log.warning("%s Until then old checkpoints stay and take room.", error)
            self._told_that_old_stay = True

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
            do = "Copy them anew from where they came, or start over with another run=FOLDER."
            raise CheckpointError(message(self.folder, expected="one whole checkpoint", got=got, do=do))
        return None

    def _shared(self, found: Found | None) -> Checkpoint | None:
        """The first rank's choice, on all ranks."""
        if found is None:
            return None
        made = Checkpoint(
            folder=self.folder / str(found.name), name=found.name, state=found.state, world=self._world,
            files=found.files if self._world.is_first else None, fetched=found.fetched,
        )  # fmt: skip
        if made.fetched and made.files:  # for whoever does not close it
            weakref.finalize(made, shutil.rmtree, made.files, ignore_errors=True)
        return made


class _Background:
    """A piece of work in a thread, whose error is kept for whoever joins it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.problem: BaseException | None = None
        # Not a daemon: Python waits for it at its end, so that a save that has begun is finished.
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
