"""The order of clips: a pure function of (seed, epoch, global batch), the same for any number of ranks and workers.

A position in training is (epoch, global step). Ranks take contiguous shares of every step, so a run can resume in the
middle of an epoch with another number of ranks, workers or micro-batches, and still reads every clip once per epoch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dfer.config import ConfigProblem
from dfer.recognition import PADDING

Ids = NDArray[np.int64]

ORDER, PLACEMENT = 1, 2  # purposes of random streams: the clips' order in an epoch; a shard's partition in the run


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> Ids:
    """Draw a permutation of 0..num_clips-1, int64 [num_clips]."""
    return shuffled(num_clips, (ORDER, seed, epoch))


def partitioned_order(
    shard_of: Sequence[int] | Ids, *, partitions: int, global_batch: int, seed: int, epoch: int, window: int = 4
) -> Ids:
    """Draw an order in which a node reads few shards at a time, for data far larger than a node's disk.

    Shards are assigned once to a fixed number of canonical partitions. Every global step takes the same number of clips
    from each partition, in the order of the partitions. Since ranks take contiguous shares of a step, a node reads the
    same `partitions / nodes` partitions in every epoch. Within a partition, clips are shuffled in groups of `window`
    shards.

    Args:
        shard_of: shard number of every clip, [N].
    Returns:
        A permutation of 0..N-1, int64 [N].
    Raises:
        ConfigProblem: the global batch is not divisible by the partitions.
    """
    if global_batch % partitions:
        raise ConfigProblem(
            f"canonical_partitions: expected a divisor of the batch of {global_batch}, got {partitions}. "
            f"Use one of {', '.join(str(d) for d in range(1, global_batch + 1) if global_batch % d == 0)}"
        )
    parts = _partitions(np.asarray(shard_of), partitions, seed)
    mixed = [
        _window_shuffled(part, np.asarray(shard_of), window, (ORDER, seed, epoch, number))
        for number, part in enumerate(parts)
    ]
    share = global_batch // partitions
    whole_steps = min(len(part) for part in mixed) // share
    steps = [part[step * share : (step + 1) * share] for step in range(whole_steps) for part in mixed]
    rest = [part[whole_steps * share :] for part in mixed]
    return np.concatenate([*steps, *rest])


def num_steps(num_clips: int, global_batch: int, *, drop_last: bool) -> int:
    """Return the steps of an epoch. drop_last: whether a last, partial batch is left out, as in training."""
    return num_clips // global_batch if drop_last else -(-num_clips // global_batch)


def step_slice(order: Ids, *, step: int, global_batch: int, rank: int, world_size: int) -> Ids:
    """Return the clips of a rank in a step: a contiguous share of the step, of the same length on every rank.

    If the step's clips are not divisible by the ranks, the last shares are filled up with PADDING.
    """
    ids = order[step * global_batch : (step + 1) * global_batch]
    share = -(-len(ids) // world_size)
    padded = np.full(share * world_size, PADDING, np.int64)
    padded[: len(ids)] = ids
    return padded[rank * share : (rank + 1) * share]


def accumulation(global_batch: int, *, world_size: int, micro_batch: int) -> int:
    """Return the number of micro-batches of a rank in one step; the last one may be smaller than the others.

    Raises:
        ConfigProblem: the global batch is not divisible by the ranks; the message names numbers that are.
    """
    share, rest = divmod(global_batch, world_size)
    if rest or not share:
        below = global_batch - rest
        fitting = " or ".join(str(batch) for batch in (below, below + world_size) if batch)
        raise ConfigProblem(
            f"batch: expected a multiple of {world_size} ranks, got {global_batch}. Set batch to {fitting}"
        )
    return -(-share // micro_batch)


def shuffled(count: int, key: tuple[int, ...]) -> Ids:
    """Draw a permutation of 0..count-1 from the stream of `key`: purpose, seed, and what else tells streams apart."""
    # Sort by raw words of the bit generator: numpy guarantees these across versions, but not its shuffles.
    words = np.random.Philox(np.random.SeedSequence(entropy=key[1], spawn_key=(key[0], *key[2:]))).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


def _partitions(shard_of: Ids, partitions: int, seed: int) -> list[Ids]:
    """Order the clips by shard, with the shards shuffled once for the run, and divide them into equal parts (sizes
    differ by at most one)."""
    shards, inverse = np.unique(shard_of, return_inverse=True)
    place = np.empty(len(shards), np.int64)
    place[shuffled(len(shards), (PLACEMENT, seed))] = np.arange(len(shards))
    return np.array_split(np.argsort(place[inverse], kind="stable"), partitions)


def _window_shuffled(part: Ids, shard_of: Ids, window: int, key: tuple[int, ...]) -> Ids:
    """Order the clips of a partition: shards in random order, clips shuffled within groups of `window` shards."""
    shards, inverse = np.unique(shard_of[part], return_inverse=True)
    group = np.empty(len(shards), np.int64)
    group[shuffled(len(shards), (*key, 0))] = np.arange(len(shards)) // window
    mixed = shuffled(len(part), (*key, 1))
    return part[mixed[np.argsort(group[inverse][mixed], kind="stable")]]
