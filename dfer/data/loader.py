"""From a shard folder to this rank's micro-batches, in an order that ranks and worker processes do not change.

Workers only read and decode. They come from a fork server: a fork of the training process would inherit its CUDA
context, its gloo threads and any lock they hold, while a spawned worker pays the import of torch each time.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfer.config import ConfigProblem
from dfer.data.augment import AugmentConfig
from dfer.data.clips import ClipSet
from dfer.data.decode import decode
from dfer.data.order import accumulation, epoch_order, num_steps, partitioned_order, step_slice
from dfer.data.sampling import clip_rng, test_frames, train_frames
from dfer.distributed import World
from dfer.errors import DferError, StorageError, message
from dfer.recognition import PADDING, ClipBatch

Ids = NDArray[np.int64]
Request = tuple[int, Ids]
Parts = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how. shards: folder or fsspec URL. frames: T of a clip (16: DFER-CLIP, section 4.1).

    size: pixels of a side (224: CLIP ViT-B/32). workers: decoding processes of a rank, 0 decodes in the training
    process. canonical_partitions: 1 shuffles all clips; more make a node read few shards at a time (docs/data.md).
    classes: label set, `basic7` or `mafw11`.
    """

    shards: str
    frames: int = 16
    size: int = 224
    workers: int = 2
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    canonical_partitions: int = 1
    classes: str = "basic7"

    def __post_init__(self) -> None:
        for name, low in {"frames": 1, "size": 1, "workers": 0, "canonical_partitions": 1}.items():
            if getattr(self, name) < low:
                raise ConfigProblem(f"{name}: expected at least {low}, got {getattr(self, name)}. Correct it in data")


class Loader:
    """Micro-batches of one rank: uint8 frames on the CPU (pinned where there is a GPU), not augmented.

    Training leaves out the last, partial batch of an epoch. Evaluation gives every clip once, in order, and fills
    up with rows whose index is PADDING (black frames, label 0) so that every rank gets equally many.

    Attributes:
        steps_per_epoch: global steps.
        accumulation: micro-batches a step, in training.
        wait_seconds: time the consumer has waited for data so far.
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
    ) -> None:
        """size: pixels of a side where it is not the config's.

        Raises:
            ConfigProblem: the global batch does not divide by ranks and micro-batch, or there are fewer clips.
        """
        self._clips, self._config, self._world = clips, config, world
        self._seed, self._train = seed, train
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self.steps_per_epoch = num_steps(len(clips), global_batch, drop_last=train)
        self.accumulation = -(-global_batch // (world.size * micro_batch))
        self.wait_seconds = 0.0
        if train:
            self._check_training()
        self._requests = _Requests()
        reader = _Reader(clips, frames=config.frames, size=size or config.size, seed=seed, train=train)
        self._batches = _data_loader(reader, self._requests, workers=config.workers)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
        """This rank's micro-batches from `start_step` (a global step) to the end of the epoch.

        Raises:
            DataError: a clip that cannot be read or decoded.
            StorageError: a worker process died.
        """
        self._requests.set(self._plan(epoch, start_step))
        batches = iter(self._batches)
        while True:
            began = time.perf_counter()
            parts = _next(batches)
            self.wait_seconds += time.perf_counter() - began
            if parts is None:
                return
            yield ClipBatch(**parts)

    def _plan(self, epoch: int, start_step: int) -> list[Request]:
        order = self._order(epoch)
        requests = []
        for step in range(start_step, self.steps_per_epoch):
            ids = step_slice(
                order, step=step, global_batch=self._global_batch, rank=self._world.rank, world_size=self._world.size
            )
            requests += [(epoch, ids[at : at + self._micro_batch]) for at in range(0, len(ids), self._micro_batch)]
        return requests

    def _order(self, epoch: int) -> Ids:
        if not self._train:
            return np.arange(len(self._clips))
        if self._config.canonical_partitions == 1:
            return epoch_order(len(self._clips), seed=self._seed, epoch=epoch)
        return partitioned_order(
            self._clips.shard_of,
            partitions=self._config.canonical_partitions,
            global_batch=self._global_batch,
            seed=self._seed,
            epoch=epoch,
        )

    def _check_training(self) -> None:
        accumulation(self._global_batch, world_size=self._world.size, micro_batch=self._micro_batch)
        self._order(0)  # reports partitions that do not divide the batch now rather than after the model is built
        if not self.steps_per_epoch:
            raise ConfigProblem(
                f"batch: expected at most the {len(self._clips)} clips of the training partitions, "
                f"got {self._global_batch}. Set a smaller batch or add partitions"
            )


class _Requests(Sampler[Request]):
    """What the workers are to read next; lives in the training process and is set anew every epoch."""

    def __init__(self) -> None:
        self._requests: Sequence[Request] = ()

    def set(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


class _Reader(Dataset[Parts | DferError]):
    """Reads and decodes the clips of one request; runs in a worker process or in the training process."""

    def __init__(self, clips: ClipSet, *, frames: int, size: int, seed: int, train: bool) -> None:
        self._clips = clips
        self._frames, self._size, self._seed, self._train = frames, size, seed, train

    def __getitem__(self, request: Request) -> Parts | DferError:
        """Fields of a ClipBatch; an error is returned, since DataLoader would bury its message in a traceback."""
        epoch, ids = request
        frames = np.empty((len(ids), self._frames, self._size, self._size, 3), np.uint8)
        try:
            for row, index in enumerate(ids):
                if index == PADDING:
                    frames[row] = 0
                else:
                    self._read(int(index), epoch, frames[row])
        except DferError as error:
            return error
        labels = np.where(ids == PADDING, 0, self._clips.labels[ids])
        return {
            "frames": torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            "labels": torch.from_numpy(labels),
            "index": torch.from_numpy(ids.copy()),
        }

    def _read(self, index: int, epoch: int, out: NDArray[np.uint8]) -> None:
        """Decode the sampled frames of a clip into `out` [T H W C]."""
        positions = self._positions(self._clips.num_frames(index), index, epoch)
        distinct = np.unique(positions)
        where = self._clips.where(index)
        for row, (at, jpeg) in enumerate(zip(distinct, self._clips.read(index, distinct), strict=True)):
            decode(jpeg, size=self._size, where=f"{where}, frame {at}", out=out[row])
        out[len(distinct) :] = out[len(distinct) - 1]  # only the last frame of a short clip stands more than once

    def _positions(self, num_frames: int, index: int, epoch: int) -> Ids:
        if self._train:
            return train_frames(num_frames, self._frames, clip_rng(self._seed, epoch, index))
        return test_frames(num_frames, self._frames)


def _data_loader(reader: _Reader, requests: _Requests, *, workers: int) -> "DataLoader[Any]":
    options: dict[str, Any] = {}
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        options = {
            "multiprocessing_context": context,
            "persistent_workers": True,
            "worker_init_fn": _end_with_parent,
        }
    return DataLoader(
        reader,
        sampler=requests,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a worker seed is drawn every epoch: not from the model's random numbers
        **options,
    )


def _end_with_parent(worker: int) -> None:
    """Make this worker end when the training process is killed: torch watches the fork server, which lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=f"end-with-parent-{worker}").start()


def _next(batches: Iterator[Any]) -> Parts | None:
    try:
        parts: Parts | DferError | None = next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:  # the latter two: it died while handing over a batch
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
            del parts  # error -> traceback -> this frame -> error: left to the collector, workers end 5 s too late
    return parts
