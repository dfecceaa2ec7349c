"""The clips of each of a rank's micro-batches, and the first and last step in which its node needs a shard. These are
pure functions, so every worker computes them itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dfer.config import ConfigProblem
from dfer.data.balance import Balance
from dfer.data.order import accumulation, epoch_order, num_steps, partitioned_order, step_slice
from dfer.data.sampling import REPLACEMENT, clip_rng
from dfer.distributed import World

Ids = NDArray[np.int64]
REPLACEMENTS = 10
"""Number of clips that are tried as a replacement of a bad one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The micro-batches of one rank, numbered from 0 in every epoch. shard_of: shard of every clip, int64 [N]; with
    `balance`, of every row of it."""

    shard_of: Ids
    world: World
    seed: int
    train: bool
    global_batch: int
    micro_batch: int
    partitions: int = 1
    balance: Balance | None = None

    @property
    def num_clips(self) -> int:
        """Clips of an epoch."""
        return len(self.shard_of) if self.balance is None else len(self.balance.labels)

    @property
    def steps(self) -> int:
        """Global steps of an epoch; training leaves out the last, partial one."""
        return num_steps(self.num_clips, self.global_batch, drop_last=self.train)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a full step; the last may be smaller than the others."""
        return -(-self.global_batch // (self.world.size * self.micro_batch))

    def check(self) -> None:
        """Raise ConfigProblem if the clips of a training cannot be divided into steps."""
        accumulation(self.global_batch, world_size=self.world.size, micro_batch=self.micro_batch)
        self.order(0)  # raises now, before the model is built, if the batch is not divisible by the partitions
        if not self.steps:
            raise ConfigProblem(
                f"batch: expected at most the {self.num_clips} clips of the training partitions, "
                f"got {self.global_batch}. Set a smaller batch or add partitions"
            )

    def numbers(self, start_step: int) -> range:
        """Return the numbers of the micro-batches from a global step to the end of the epoch."""
        if not self.steps:
            return range(0)
        last = self.num_clips - (self.steps - 1) * self.global_batch
        share = -(-min(last, self.global_batch) // self.world.size)
        end = (self.steps - 1) * self.accumulation + -(-share // self.micro_batch)
        return range(start_step * self.accumulation, end)

    def ids(self, order: Ids, number: int) -> Ids:
        """Return the clips of a micro-batch, given the order of its epoch, filled up with PADDING."""
        step, part = divmod(number, self.accumulation)
        share = step_slice(
            order, step=step, global_batch=self.global_batch, rank=self.world.rank, world_size=self.world.size
        )
        return share[part * self.micro_batch : (part + 1) * self.micro_batch]

    def order(self, epoch: int) -> Ids:
        """Return the clips of an epoch in their order, int64 [N]; with `balance`, the rows."""
        if not self.train:
            return np.arange(self.num_clips)
        if self.balance is not None:
            return self.balance.order(seed=self.seed, epoch=epoch)
        if self.partitions == 1:
            return epoch_order(self.num_clips, seed=self.seed, epoch=epoch)
        return partitioned_order(
            self.shard_of, partitions=self.partitions, global_batch=self.global_batch, seed=self.seed, epoch=epoch
        )

    def uses(self, order: Ids, start_step: int) -> tuple[Ids, Ids]:
        """Return the first and the last step, from `start_step` on, in which this node reads each shard: two arrays,
        int64 [shards]; -1 = never."""
        at = np.arange(start_step * self.global_batch, min(self.num_clips, self.steps * self.global_batch))
        step, within = np.divmod(at, self.global_batch)
        in_step = np.minimum(self.global_batch, self.num_clips - step * self.global_batch)
        rank = within // -(-in_step // self.world.size)
        mine = rank // self.world.local_size == self.world.rank // self.world.local_size
        shards, steps = self.shard_of[order[at[mine]]], step[mine]
        first, last = (np.full(int(self.shard_of.max(initial=-1)) + 1, -1, np.int64) for _ in range(2))
        last[shards] = steps  # for repeated indices, numpy keeps the last value
        first[shards[::-1]] = steps[::-1]
        return first, last

    def replacements(self, epoch: int, index: int) -> list[int]:
        """Draw clips that may replace a bad one. They depend only on (seed, epoch, clip), so they are the same on all
        ranks and after a resume."""
        draws = clip_rng(self.seed, epoch, index, purpose=REPLACEMENT).integers(self.num_clips, size=REPLACEMENTS)
        return [int(draw) for draw in draws if draw != index]
