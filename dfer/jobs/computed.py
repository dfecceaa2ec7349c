"""Features of any source of rows, such as the test clips of a data set or a folder of pictures: computed by all ranks,
stored in feature shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.data.features import name_of, read_manifest, standing_shards, write_manifest
from dfer.distributed import World, gather_objects, on_first
from dfer.interruption import Stop
from dfer.jobs.features import Encode, Progress, Writer, in_step, write_rows
from dfer.recognition import ClipBatch
from dfer.storage import Folder

MAX_ROWS, MIN_SHARDS = 256, 16
"""Most rows of a feature shard; fewest shards, also of a small source, so that every rank computes some."""


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
    at = [at for number in mine for at in parts[number]]
    batches = in_step(source.batches(at), len(at), source.batch)
    write_rows(batches, encode, writer, world, stop, tell=lambda rows: progress.add(rows * world.size))
    written = {number: shard for rank in gather_objects(writer.written) for number, shard in rank.items()}
    shards = [shard for _, shard in sorted({**standing, **written}.items())]
    on_first(lambda: None if read_manifest(home) else write_manifest(home, key, shards, origin=origin), world)
    progress.end()
    return home


def _parts(rows: int) -> list[range]:
    """Divide rows into shards: for each, the positions of its rows among all."""
    each = min(MAX_ROWS, max(1, -(-rows // MIN_SHARDS)))
    return [range(at, min(at + each, rows)) for at in range(0, rows, each)]
