"""Class-balanced sampling: whole epochs whose class counts are exact, and draws that differ for every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.data.balance import Balance
from dfer.data.config import DataConfig
from dfer.data.order import epoch_order
from dfer.data.plan import Plan
from dfer.distributed import World

LABELS = np.repeat([0, 1, 2, 4], [600, 300, 97, 3])
labels = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(np.array)
powers = st.floats(0.01, 1)


def taken(balance: Balance, *, epoch: int = 0) -> np.ndarray:
    """The clips of an epoch, in its order."""
    clips: np.ndarray = balance.rows()[balance.order(seed=1, epoch=epoch)]
    return clips


@given(labels, powers)
def test_an_epoch_has_as_many_clips_as_the_set_and_its_classes_their_parts(found: np.ndarray, power: float) -> None:
    balance = Balance(labels=found, power=power)
    rows, order = balance.rows(), balance.order(seed=1, epoch=3)
    assert len(order) == len(found) == len(set(order.tolist())) and order.max() < len(rows)
    assert rows[: len(found)].tolist() == list(range(len(found)))
    sizes = {int(k): int((found == k).sum()) for k in np.unique(found)}
    total = sum(n ** (1 - power) for n in sizes.values())
    for k, n in sizes.items():
        assert abs((found[rows[order]] == k).sum() - len(found) * n ** (1 - power) / total) < 1 + 1e-6


def test_power_one_takes_all_classes_equally_often() -> None:
    counts = np.bincount(LABELS[taken(Balance(labels=LABELS, power=1.0))], minlength=5)
    assert counts.tolist() == [250, 250, 250, 0, 250]


def test_no_power_is_the_order_without_balance() -> None:
    balance = Balance(labels=LABELS, power=0.0)
    assert balance.rows().tolist() == list(range(1000))
    assert balance.order(seed=5, epoch=2).tolist() == epoch_order(1000, seed=5, epoch=2).tolist()


def test_clips_of_a_class_are_taken_equally_often_and_the_rest_changes() -> None:
    balance = Balance(labels=LABELS, power=1.0)
    first, second = taken(balance), taken(balance, epoch=1)
    for clips in (first, second):
        times = np.bincount(clips, minlength=1000)
        assert set(times[LABELS == 4].tolist()) == {83, 84} and set(times[LABELS == 0].tolist()) == {0, 1}
    large = [set(clips[LABELS[clips] == 0].tolist()) for clips in (first, second)]
    assert large[0] != large[1]
    assert taken(balance).tolist() == first.tolist()


def test_all_clips_of_a_large_class_have_their_turn() -> None:
    balance = Balance(labels=LABELS, power=1.0)
    seen = np.zeros(1000)
    for epoch in range(60):
        np.add.at(seen, taken(balance, epoch=epoch), 1)
    assert seen.min() > 0 and seen[LABELS == 0].max() < 2.2 * seen[LABELS == 0].mean()


def test_a_clip_that_is_taken_again_has_another_row_in_the_same_place_every_epoch() -> None:
    """So that its frames and its augmentation are drawn anew."""
    balance = Balance(labels=np.array([0, 0, 0, 0, 0, 0, 0, 1]), power=1.0)
    assert balance.rows().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]
    for epoch in range(5):
        rows = balance.order(seed=1, epoch=epoch)
        assert sorted(rows[rows >= 7].tolist()) == [7, 8, 9, 10]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_one_order_and_a_resume_goes_on_in_it(world: int) -> None:
    balance = Balance(labels=LABELS, power=0.5)
    shard_of = np.arange(1000) // 100
    orders = []
    for rank in range(world):
        plan = Plan(
            shard_of=shard_of[balance.rows()],
            world=World(rank=rank, size=world),
            seed=1,
            train=True,
            global_batch=12,
            micro_batch=2,
            balance=balance,
        )
        plan.check()
        assert (plan.num_clips, plan.steps) == (1000, 83)
        order = plan.order(4)
        orders.append([plan.ids(order, number).tolist() for number in plan.numbers(80)])
        first, _ = plan.uses(order, 80)
        mine = {shard_of[balance.rows()[row]] for ids in orders[-1] for row in ids}
        assert mine <= set(np.flatnonzero(first >= 0).tolist())
    each = 12 // world
    steps = [
        [row for rank in orders for ids in rank[s * each // 2 : (s + 1) * each // 2] for row in ids] for s in range(3)
    ]
    whole = balance.order(seed=1, epoch=4)
    assert steps == [whole[step * 12 : (step + 1) * 12].tolist() for step in (80, 81, 82)]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"balance": 1.5}, "balance: expected 0 to 1, got 1.5. 1 takes all classes equally often"),
        (
            {"balance": 0.5, "canonical_partitions": 2},
            "balance: expected 0 with canonical_partitions, got 0.5 with 2 partitions, each of which reads every clip",
        ),
    ],
)
def test_messages(values: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        DataConfig(shards="x", **values)  # type: ignore[arg-type]
    assert text in str(caught.value)
