"""Features of any source of rows, such as the test clips of a data set or a folder of pictures: computed by all ranks,
stored in feature shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.features import name_of, read_manifest, standing_shards, write_manifest
from dfer.data.loader import Loader
from dfer.distributed import World, gather_objects, highest, on_first
from dfer.interruption import Stop
from dfer.jobs.features import Progress, Writer
from dfer.jobs.fold_data import refuse_little_memory
from dfer.recognition import PADDING, ClipBatch
from dfer.storage import Folder
from dfer.training.loop import stopped

MAX_ROWS, MIN_SHARDS = 256, 16
"""Most rows of a feature shard; fewest shards, also of a small source, so that every rank computes some."""
Encode = Callable[[ClipBatch], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where features come from. keys: of all rows, in order. batches: this rank's rows at some positions in batches of
    at most `batch`, whose padding is PADDING; a collective call. encode: makes the function from a batch on the device
    to features by name, [B ...], with the origin of the weights in words; called after all else is checked."""

    keys: Sequence[str]
    batch: int
    batches: Callable[[Sequence[int]], Iterator[ClipBatch]]
    encode: Callable[[], tuple[Encode, str]]


def compute(root: Folder, key: Mapping[str, Any], source: Source, world: World, stop: Stop) -> Folder:
    """Compute and store the features of all rows below `root`; whole shards that are there are kept. COLLECTIVE.

    key: everything that they depend on.

    Raises:
        StoppedError: on all ranks; whole shards are kept. DataError: a row cannot be read. StorageError.
    """
    home = root / name_of(key)
    on_first(home.check_writable, world)
    parts = _parts(len(source.keys))
    keys = [list(source.keys[part.start : part.stop]) for part in parts]
    standing = on_first(lambda: standing_shards(home, keys), world)
    mine = [number for number in range(len(parts)) if number not in standing][world.rank :: world.size]
    encode, origin = source.encode()
    writer = Writer(home, [(number, keys[number]) for number in mine])
    progress = Progress(home, total=len(source.keys), done=sum(each.rows for each in standing.values()), world=world)
    for batch in _in_step(source, [at for number in mine for at in parts[number]]):
        if batch is not None:
            counts = batch.index != PADDING
            made = encode(batch.to(world.device))
            writer.add({name: value[counts.to(value.device)].cpu() for name, value in made.items()})
        if highest([stop.requested])[0]:
            raise stopped(stop, at=f"the features in {home}")
        progress.add(source.batch * world.size)
    written = {number: shard for rank in gather_objects(writer.written) for number, shard in rank.items()}
    shards = [shard for _, shard in sorted({**standing, **written}.items())]
    on_first(lambda: None if read_manifest(home) else write_manifest(home, key, shards, origin=origin), world)
    progress.end()
    return home


def _parts(rows: int) -> list[range]:
    """Divide rows into shards: for each, the positions of its rows among all."""
    each = min(MAX_ROWS, max(1, -(-rows // MIN_SHARDS)))
    return [range(at, min(at + each, rows)) for at in range(0, rows, each)]


def _in_step(source: Source, rows: Sequence[int]) -> Iterator[ClipBatch | None]:
    """Yield this rank's rows in batches, then None until the rank with the most batches has finished. COLLECTIVE."""
    rounds = highest([-(-len(rows) // source.batch)])[0]
    batches = source.batches(rows)
    return (next(batches, None) for _ in range(rounds))


def clip_batches(clips: ClipSet, data: DataConfig, batch: int, world: World, *, seed: int) -> Iterator[ClipBatch]:
    """Yield this rank's clips as a test sees them. COLLECTIVE. Raises UsageError if shared memory is too small."""
    alone = World(local_rank=world.local_rank, local_size=world.local_size)
    loader = Loader(clips, data, world=alone, seed=seed, train=False, global_batch=batch, micro_batch=batch)
    refuse_little_memory([loader] if len(clips) else [])
    return loader.epoch(0) if len(clips) else iter(())
