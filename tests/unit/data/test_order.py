"""The order of samples: exact for any number of ranks, workers and start steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.data.order import accumulation, epoch_order, num_steps, partitioned_order, step_slice
from dfer.recognition import PADDING

clips = st.integers(1, 200)
seeds = st.integers(0, 2**62)


def by_ranks(order, *, world_size, global_batch, steps, start_step=0):
    """What all ranks read, put together step by step."""
    return [
        [
            step_slice(order, step=step, global_batch=global_batch, rank=rank, world_size=world_size).tolist()
            for rank in range(world_size)
        ]
        for step in range(start_step, steps)
    ]


@given(clips, seeds, st.integers(0, 50))
def test_an_epoch_holds_every_clip_once(n, seed, epoch):
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert epoch_order(n, seed=seed, epoch=epoch).tolist() == order.tolist()


@given(seeds, st.integers(0, 50))
def test_epochs_and_seeds_differ(seed, epoch):
    order = epoch_order(100, seed=seed, epoch=epoch).tolist()
    assert order != epoch_order(100, seed=seed, epoch=epoch + 1).tolist()
    assert order != epoch_order(100, seed=seed + 1, epoch=epoch).tolist()


def test_the_order_is_uniform():
    """Every clip stands at every place equally often: chi-square over 6 places x 6 clips, 25 degrees of freedom."""
    table = np.zeros((6, 6))
    for epoch in range(3000):
        table[np.arange(6), epoch_order(6, seed=1, epoch=epoch)] += 1
    assert ((table - 500) ** 2 / 500).sum() < 60  # 99.99 % of random tables


def test_the_order_of_a_seed_never_changes():
    """Recorded once: a run resumed with a later version must go on in the order it began with."""
    assert epoch_order(10, seed=1, epoch=0).tolist() == RECORDED


RECORDED = [0, 4, 5, 6, 1, 9, 7, 3, 8, 2]


@given(clips, st.integers(1, 8), st.integers(1, 6), seeds, st.data())
def test_training_is_one_sequence_for_any_world_and_start(n, world_size, share, seed, data):
    global_batch = world_size * share
    order = epoch_order(n, seed=seed, epoch=3)
    steps = num_steps(n, global_batch, drop_last=True)
    start = data.draw(st.integers(0, steps))
    read = by_ranks(order, world_size=world_size, global_batch=global_batch, steps=steps, start_step=start)
    assert all(len(ids) == share for step in read for ids in step)
    together = [i for step in read for ids in step for i in ids]
    assert together == order[start * global_batch : steps * global_batch].tolist()
    assert n - steps * global_batch < global_batch, "only the last, partial batch is left out"


@given(clips, st.integers(1, 9), st.integers(1, 20))
def test_evaluation_gives_every_clip_once_and_equal_shares(n, world_size, global_batch):
    steps = num_steps(n, global_batch, drop_last=False)
    read = by_ranks(np.arange(n), world_size=world_size, global_batch=global_batch, steps=steps)
    assert all(len({len(ids) for ids in step}) == 1 for step in read), "every rank gets equally many"
    together = [i for step in read for ids in step for i in ids]
    assert [i for i in together if i != PADDING] == list(range(n))
    for number, step in enumerate(read):
        in_step = min(global_batch, n - number * global_batch)
        flat = [i for ids in step for i in ids]
        assert flat[in_step:] == [PADDING] * (-in_step % world_size), "at the end of the last shares"


@given(st.lists(st.integers(1, 12), min_size=1, max_size=25), st.sampled_from([1, 2, 4]), st.integers(1, 4), seeds)
def test_canonical_partitions_hold_every_clip_once(sizes, partitions, share, seed):
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = partitioned_order(shard_of, partitions=partitions, global_batch=partitions * share, seed=seed, epoch=0)
    assert sorted(order.tolist()) == list(range(len(shard_of)))
    other = partitioned_order(shard_of, partitions=partitions, global_batch=partitions * share, seed=seed, epoch=0)
    assert other.tolist() == order.tolist()


def test_with_partitions_a_node_reads_few_shards_at_a_time():
    shard_of = np.repeat(np.arange(64), 50)
    order = {
        epoch: partitioned_order(shard_of, partitions=4, global_batch=32, seed=5, epoch=epoch, window=2)
        for epoch in (0, 1)
    }
    assert order[0].tolist() != order[1].tolist()
    for nodes in (1, 2, 4):
        of_node = []
        for epoch in (0, 1):
            for node in range(nodes):
                shards = [
                    set(shard_of[step_slice(order[epoch], step=s, global_batch=32, rank=node, world_size=nodes)])
                    for s in range(100)
                ]
                assert max(map(len, shards)) <= 4 // nodes * 4, "two windows of two shards a partition at most"
                of_node.append(set().union(*shards))
        for node in range(nodes):
            assert of_node[node] == of_node[nodes + node], "the node's shards stay the same over the epochs"
            assert len(of_node[node]) <= 64 // nodes + 2


def test_partitions_are_mixed_inside():
    """A batch does not come from one shard: the clips of neighbouring shards are shuffled together."""
    shard_of = np.repeat(np.arange(64), 50)
    order = partitioned_order(shard_of, partitions=4, global_batch=32, seed=5, epoch=0)
    assert np.mean([len(set(shard_of[order[s * 32 : s * 32 + 32]])) for s in range(100)]) > 8


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "text"),
    [
        (50, 3, 8, "batch: expected a multiple of 3 ranks, got 50. Set batch to 48 or 51"),
        (4, 3, 2, "got 4. Set batch to 3 or 6"),
        (2, 3, 2, "got 2. Set batch to 3"),
        (0, 3, 2, "got 0. Set batch to 3"),
    ],
)
def test_a_batch_that_does_not_fit_names_those_that_do(batch, ranks, micro, text):
    with pytest.raises(ConfigProblem) as caught:
        accumulation(batch, world_size=ranks, micro_batch=micro)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16))
def test_accumulation_fills_the_batch(ranks, micro, times):
    assert accumulation(ranks * micro * times, world_size=ranks, micro_batch=micro) == times


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "times"), [(46, 2, 8, 3), (48, 2, 9, 3), (46, 2, 99, 1), (7, 7, 3, 1)]
)
def test_micro_batches_that_do_not_divide_the_share_are_rounded_up(batch, ranks, micro, times):
    assert accumulation(batch, world_size=ranks, micro_batch=micro) == times


def test_partitions_that_do_not_divide_the_batch():
    with pytest.raises(ConfigProblem, match=r"expected a divisor of the batch of 6, got 4. Use one of 1, 2, 3, 6"):
        partitioned_order([0, 1], partitions=4, global_batch=6, seed=1, epoch=0)
