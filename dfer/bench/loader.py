"""Measure frames per second on one core: read, decode and augment, against a bare decode loop on the same frames."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import simplejpeg
import torch

from dfer.data.augment import Augment
from dfer.data.clips import ClipSet, emotions_for
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.data.recipes import DferClipAugment
from dfer.data.sampling import clip_rng, train_frames
from dfer.distributed import World
from dfer.errors import UsageError, message
from dfer.recognition import ClipBatch
from dfer.store.shards import Store

T = TypeVar("T")

NAMES = ("train", "test", "decode")
SEED = 1
BATCH = 8
"""Clips per turn: the recipe's 48 on two ranks with three micro-batches each."""
AUGMENT = DferClipAugment(brightness=0.5)
"""Augmentation of the recipe for DFEW: crop, flip and brightness."""


@dataclass(kw_only=True)
class _Meter:
    """Frames and seconds of one of the compared loops."""

    frames: int = 0
    seconds: float = 0.0

    def time(self, work: Callable[[], T], *, frames: int) -> T:
        began = time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - began
        self.frames += frames
        return result

    @property
    def rate(self) -> float:
        return self.frames / self.seconds


def bench_loader(shards: str, *, frames: int = 16, size: int = 224, seconds: float = 10.0) -> dict[str, float]:
    """Measure and print frames/s on one core: train augmentation, test, and the bare decode loop.

    The three take turns batch by batch, so that a change of the machine's speed affects all of them equally.

    Raises:
        UsageError: `seconds` is not above 0. DataError: the shards cannot be read.
    """
    if not 0 < seconds < math.inf:
        do = "10 give stable numbers."
        raise UsageError(message("--seconds", expected="more than 0", got=str(seconds), do=do))
    store = Store(shards)
    clips = ClipSet.open(store, store.manifest.partitions(), emotions=emotions_for(None, store.manifest))
    config = DataConfig(shards=shards, frames=frames, size=size, workers=0, augment=AUGMENT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = _measure(clips, config, seconds=seconds)
    finally:
        torch.set_num_threads(threads)
    print(f"{len(clips)} clips of {shards}, {frames} frames a clip at {size} px, one core, frames/s:")
    print(f"  train augmentation {result['train']:,.0f} ({result['train_share']:.0%} of bare decode)")
    print(f"  test               {result['test']:,.0f} ({result['test_share']:.0%} of bare decode)")
    print(f"  bare decode        {result['decode']:,.0f}")
    return result


def _measure(clips: ClipSet, config: DataConfig, *, seconds: float) -> dict[str, float]:
    train, test = _endless(clips, config, train=True), _endless(clips, config, train=False)
    _turn(clips, config, train, test, {name: _Meter() for name in NAMES})  # warm-up: page faults and lazy imports
    meters = {name: _Meter() for name in NAMES}
    deadline = time.perf_counter() + seconds
    while not meters["train"].frames or time.perf_counter() < deadline:
        _turn(clips, config, train, test, meters)
    rates = {name: meter.rate for name, meter in meters.items()}
    return rates | {f"{name}_share": rates[name] / rates["decode"] for name in ("train", "test")}


def _turn(
    clips: ClipSet, config: DataConfig, train: Iterator[ClipBatch], test: Iterator[ClipBatch], meters: dict[str, _Meter]
) -> None:
    augment = Augment(config.augment, SEED)
    frames = _batch_size(clips) * config.frames
    batch = meters["train"].time(lambda: augment(next(train), 0), frames=frames)
    meters["test"].time(lambda: next(test), frames=frames)
    jpegs = [jpeg for index in batch.index.tolist() for jpeg in _jpegs(clips, config, index)]
    meters["decode"].time(lambda: _bare(jpegs), frames=len(jpegs))


def _endless(clips: ClipSet, config: DataConfig, *, train: bool) -> Iterator[ClipBatch]:
    """Yield batches forever; every round is epoch 0, so that `_jpegs` can compute which frames were read."""
    size = _batch_size(clips)
    whole = clips.select(range(len(clips) // size * size))
    loader = Loader(whole, config, world=World(), seed=SEED, train=train, global_batch=size, micro_batch=size)
    while True:
        yield from loader.epoch(0)


def _batch_size(clips: ClipSet) -> int:
    return min(BATCH, len(clips))


def _jpegs(clips: ClipSet, config: DataConfig, index: int) -> list[bytes]:
    """Read the JPEGs that the training loader read for this clip."""
    positions = train_frames(clips.num_frames(index), config.frames, clip_rng(SEED, 0, index))
    return [bytes(jpeg) for jpeg in clips.read(index, positions)]


def _bare(jpegs: list[bytes]) -> None:
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg)
