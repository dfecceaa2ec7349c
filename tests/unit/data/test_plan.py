"""Which clips a rank reads when, against the same told in plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.data.plan import Plan
from dfer.distributed import World
from dfer.recognition import PADDING

LAYOUTS = st.sampled_from(
    [(1, 1, 4), (2, 2, 1), (2, 1, 2), (4, 2, 1), (3, 3, 2), (1, 1, 5), (2, 1, 4), (2, 2, 5), (3, 1, 3)]
)
"""Ranks, ranks of a node, micro-batch; the last four do not divide a rank's share."""


def plans(num_clips: int, ranks: int, local: int, micro: int, *, train: bool) -> list[Plan]:
    shard_of = np.arange(num_clips) // 5
    worlds = [World(rank=r, size=ranks, local_rank=r % local, local_size=local) for r in range(ranks)]
    return [
        Plan(shard_of=shard_of, world=world, seed=2, train=train, global_batch=12, micro_batch=micro)
        for world in worlds
    ]


@given(LAYOUTS, st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_micro_batches_of_all_ranks_are_the_steps_of_the_order(
    layout: tuple[int, int, int], num_clips: int, start: int, train: bool
) -> None:
    all_ranks = plans(num_clips, *layout, train=train)
    order = all_ranks[0].order(1)
    steps = num_clips // 12 if train else -(-num_clips // 12)
    got = [
        [(number, plan.ids(order, number).tolist()) for number in plan.numbers(min(start, steps))] for plan in all_ranks
    ]
    assert len({len(batches) for batches in got}) == 1
    seen: dict[int, list[int]] = {}
    for plan, batches in zip(all_ranks, got):
        for number, ids in batches:
            seen.setdefault(number // plan.accumulation, []).extend(i for i in ids if i != PADDING)
    expected = {s: order[s * 12 : (s + 1) * 12].tolist() for s in range(min(start, steps), steps)}
    assert {step: sorted(ids) for step, ids in seen.items()} == {s: sorted(ids) for s, ids in expected.items()}


@given(LAYOUTS, st.integers(1, 60), st.integers(0, 2), st.booleans())
def test_uses_are_the_first_and_last_reads_of_a_node(
    layout: tuple[int, int, int], num_clips: int, start: int, train: bool
) -> None:
    all_ranks = plans(num_clips, *layout, train=train)
    order = all_ranks[0].order(4)
    for plan in all_ranks:
        node = [p for p in all_ranks if p.world.rank // layout[1] == plan.world.rank // layout[1]]
        reads = [
            (int(plan.shard_of[index]), number // p.accumulation)
            for p in node
            for number in p.numbers(min(start, p.steps))
            for index in p.ids(order, number)
            if index != PADDING
        ]
        first, last = plan.uses(order, min(start, plan.steps))
        for shard in range(-(-num_clips // 5)):
            steps = [step for where, step in reads if where == shard]
            assert (first[shard], last[shard]) == ((min(steps), max(steps)) if steps else (-1, -1))


def test_replacements_depend_on_seed_epoch_and_clip_alone() -> None:
    one, two = plans(60, 2, 2, 1, train=True)
    assert one.replacements(3, 7) == two.replacements(3, 7)
    assert one.replacements(3, 7) != one.replacements(4, 7) != one.replacements(4, 8)
    drawn = [other for clip in range(60) for other in one.replacements(0, clip)]
    assert set(drawn) == set(range(60)), "any clip may stand in"
    assert all(clip not in one.replacements(0, clip) for clip in range(60))


@pytest.mark.parametrize("num_clips", [0, 11])
def test_fewer_clips_than_a_batch(num_clips: int) -> None:
    (plan,) = plans(num_clips, 1, 1, 4, train=True)
    assert plan.steps == 0 and list(plan.numbers(0)) == []


def test_the_last_micro_batch_of_a_step_may_be_smaller_and_the_order_does_not_change() -> None:
    """46 clips on 2 ranks, 8 at once: step by step the clips of one rank that takes all 46, in the same order."""
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    shared = {"shard_of": np.zeros(150, np.int64), "seed": 5, "train": True, "global_batch": 46}
    two = [Plan(world=world, micro_batch=8, **shared) for world in worlds]
    whole = Plan(world=World(), micro_batch=46, **shared)
    order = whole.order(3)
    for plan in two:
        plan.check()
        sizes = [len(plan.ids(order, number)) for number in plan.numbers(1)]
        assert sizes == [8, 8, 7] * 2 and plan.accumulation == 3
    for step in range(3):
        got = [two[rank].ids(order, 3 * step + part) for rank in range(2) for part in range(3)]
        assert np.concatenate(got).tolist() == whole.ids(order, step).tolist()
