"""Load a rank's micro-batches from shards, in an order that does not depend on the number of ranks and workers.

Workers only read and decode. A fork server starts them: a fork of the training process would inherit its CUDA context,
its gloo threads and the locks that these hold, and every spawned worker would import torch again.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfer.data.balance import Balance
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.plan import Plan
from dfer.data.reader import Parts, Reader, Request
from dfer.data.shared_memory import PREFETCH, Need, lack
from dfer.data.views import Show
from dfer.distributed import World
from dfer.errors import DferError, StorageError, message
from dfer.interruption import SIGNALS
from dfer.multiprocessing_internals import before_children_end, on_unsent
from dfer.recognition import BadClip, ClipBatch
from dfer.surroundings import keep_socket_names_short
from dfer.torch_internals import end_workers


class Loader:
    """Yields a rank's micro-batches: uint8 frames of one size on the CPU (pinned if there is a GPU), whose colours are
    not augmented yet.

    Training leaves out the last, partial batch of an epoch. Evaluation yields every clip once, in order, with its
    views as consecutive rows, and adds rows whose index is PADDING (black frames, label 0) so that all ranks get the
    same number of rows.

    Attributes:
        steps_per_epoch: global steps per epoch.
        accumulation: micro-batches per step, in training.
        wait_seconds: time for which the consumer has waited for data so far.
        max_bad: number of clips that training may replace, 0 in evaluation.
    """

    def __init__(
        self,
        clips: ClipSet,
        config: DataConfig,
        *,
        world: World,
        seed: int,
        train: bool,
        global_batch: int,
        micro_batch: int,
        size: int | None = None,
        balance: Balance | None = None,
        text: Tensor | None = None,
        shuffle_frames: bool = False,
        skip_bad: bool = False,
    ) -> None:
        """size: side of a frame in pixels, None = as in the config. balance: how often training takes clips, which are
        then its rows. text: [R L], tokens of the text of each of the R rows (without balance: clips), 0 behind its
        end; None for batches without text. shuffle_frames: put the frames of each clip into a random order that depends
        on the seed and the clip. skip_bad: padding in the place of a clip that cannot be read, which `take_bad` tells.

        Raises:
            ConfigProblem: the global batch is not divisible by the ranks, or larger than the number of clips.
        """
        self._clips, self._text = clips, text
        self._plan = Plan(
            shard_of=clips.shard_of,
            world=world,
            seed=seed,
            train=train,
            global_batch=global_batch,
            micro_batch=micro_batch,
            partitions=config.canonical_partitions,
            balance=balance,
        )
        if train:
            self._plan.check()
        self.steps_per_epoch, self.accumulation = self._plan.steps, self._plan.accumulation
        self.wait_seconds = 0.0
        self.max_bad = int(config.max_bad_share * self._plan.num_clips) if train else 0
        self._bad: list[BadClip] = []
        self._requests = _Requests()
        self._workers, self._keys = config.workers, "micro_batch" if train else "eval_batch"
        side = size or config.size
        show = Show(config=replace(config, size=side), seed=seed, train=train, shuffle=shuffle_frames)
        self._clip_bytes = show.rows * config.frames * 3 * show.config.size**2
        reader = Reader(clips, self._plan, show, replace_bad=self.max_bad > 0, skip_bad=skip_bad, keys=self._keys)
        self._batches = _data_loader(reader, self._requests, workers=config.workers)

    def lack_of_memory(self) -> str:
        """Return a message if this host's shared memory cannot hold the batches that its ranks' workers prepare; else
        an empty text."""
        batches, plan = len(self._plan.numbers(0)), self._plan
        clips = min(plan.micro_batch, -(-min(plan.num_clips, plan.global_batch) // plan.world.size))
        # The batches that the workers prepare, and the one in use.
        at_a_time = min(PREFETCH * self._workers + 1, batches) if self._workers else 0
        need = Need(workers=self._workers, batches=at_a_time, batch_bytes=clips * self._clip_bytes, keys=self._keys)
        return lack(need, ranks=plan.world.local_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
        """Yield this rank's micro-batches from `start_step` (a global step) to the end of the epoch.

        Raises:
            DataError: a clip cannot be read or decoded and may not be replaced; or the shards were rebuilt.
            StorageError: the shards cannot be reached, or a worker process died.
        """
        with suppress(StorageError):  # the store may be unreachable while all shards are in the cache
            self._clips.store.check_unchanged()
        self._requests.set([(epoch, start_step, number) for number in self._plan.numbers(start_step)])
        with _deaf():
            batches = iter(self._batches)  # the first call starts the workers
        while True:
            began = time.perf_counter()
            parts = _next(batches)
            self.wait_seconds += time.perf_counter() - began
            if parts is None:
                return
            self._bad += parts.pop("bad")
            yield ClipBatch(**parts, text=None if self._text is None else _rows(self._text, parts["index"]))

    def take_bad(self) -> list[BadClip]:
        """Return the clips that were replaced or skipped in this rank's batches since the last call."""
        bad, self._bad = self._bad, []
        return bad


def _rows(text: Tensor, index: Tensor) -> Tensor:
    """Return tokens int64 [B L] of the clips at index [B], cut behind the longest. Padding gets the first clip's."""
    rows = text[index.clamp(min=0)].long()
    return rows[:, : int(rows.any(dim=0).nonzero().max()) + 1]


class _Requests(Sampler[Request]):
    """The requests of the current epoch, which workers are to read. It lives in the training process."""

    def __init__(self) -> None:
        self._requests: Sequence[Request] = ()

    def set(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


def read_batches(reader: Dataset[Parts | DferError], requests: Sequence[Request], *, workers: int) -> Iterator[Parts]:
    """Yield what a reader returns for each request, in order, read ahead by worker processes; with 0, by this one.

    Raises:
        DferError: what the reader returned instead. StorageError: a worker process died.
    """
    sampler = _Requests()
    sampler.set(requests)
    loader = _data_loader(reader, sampler, workers=workers)
    with _deaf():
        batches = iter(loader)
    while (parts := _next(batches)) is not None:
        yield parts


def _data_loader(reader: Dataset[Parts | DferError], requests: _Requests, *, workers: int) -> "DataLoader[Any]":
    options: dict[str, Any] = {}
    if workers:
        keep_socket_names_short()
        resource_tracker.ensure_running()  # starting it later would undo what `_deaf` does about SIGTERM
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        options = {
            "multiprocessing_context": context,
            "persistent_workers": True,
            "prefetch_factor": PREFETCH,
            "worker_init_fn": _start_worker,
        }
        before_children_end(_end_workers)
    loader: DataLoader[Any] = DataLoader(
        reader,
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # for DataLoader's worker seeds, which else use the model's generator
        **options,
    )
    _LOADERS.add(loader)
    return loader


@contextmanager
def _deaf() -> Iterator[None]:
    """Block the signals by which schedulers announce a stop, for processes that are started within this context.

    Some schedulers send these signals to every process of a job, but the training process handles the stop and needs
    its workers until it has saved. multiprocessing cannot end such workers by SIGTERM either: see `_end_workers`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_LOADERS: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()


def _end_workers() -> None:
    """End the workers. At exit this comes before multiprocessing sends them SIGTERM, which they block, and waits."""
    for batches in list(_LOADERS):
        end_workers(batches)
    for process in multiprocessing.active_children():
        if process.daemon:  # it hangs, for example on a store that does not answer
            process.kill()


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(1)
    _end_with_parent(worker)
    on_unsent(_cannot_hand_over)


def _cannot_hand_over(error: Exception, _batch: object) -> None:
    """End the worker if a batch cannot be sent, for example because file descriptors ran out. By default, Python prints
    the error and continues, and training would wait for the batch forever; it does notice the end of a worker."""
    print(f"data worker: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _end_with_parent(worker: int) -> None:
    """End this worker if the training process is killed. torch only watches the parent process, here the fork server,
    which would continue."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=f"end-with-parent-{worker}").start()


def _next(batches: Iterator[Any]) -> Parts | None:
    try:
        parts: Parts | DferError | None = next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:  # OSError, EOFError: it died while sending a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise StorageError(
            message(
                "data worker",
                expected="it to run until the end of training",
                got=str(error) or type(error).__name__,
                do="It was killed, usually for memory: enlarge /dev/shm, or lower data.workers or micro_batch.",
            )
        ) from error
    if isinstance(parts, DferError):
        try:
            raise parts
        finally:
            del parts  # breaks the cycle error -> traceback -> this frame, which would delay the workers' end by 5 s
    return parts
