"""The loader: the same batches whatever the workers and ranks, every clip once, and clean errors."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.data import loader as loading
from dfer.data import shared_memory
from dfer.data.augment import Augment
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader, _cannot_hand_over
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.errors import DataError
from dfer.recognition import PADDING, ClipBatch
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, jpeg, write_shards


@pytest.fixture(autouse=True)
def _workers_end_with_their_test() -> Iterator[None]:
    """Else Python frees a loader that an error holds in some later test, which waits 5 s for every worker."""
    yield
    loading._end_workers()


FRAMES = {f"clip{n}": 3 + 4 * n for n in range(11)}
"""Keys and frame counts: 3, 7, ... 43 frames, so shorter and longer than the 8 that are read."""


def level(clip: int, frame: int) -> int:
    """The grey of a frame: every frame of every clip has its own for 43 frames in 11 clips, mod 251."""
    return (clip * 37 + frame * 5) % 251


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [
        Clip(key=key, label=n % 7, frames=[jpeg(level(n, t)) for t in range(count)])
        for n, (key, count) in enumerate(FRAMES.items())
    ]
    return write_shards(tmp_path_factory.mktemp("shards"), {"train": [clips[:4], clips[4:]]})


def loader(folder: Path, *, workers: int = 0, rank: int = 0, ranks: int = 1, **changes: object) -> Loader:
    clips = ClipSet.open(Store(str(folder)), ["train"], emotions=label_set("basic7"))
    config = DataConfig(
        shards=str(folder),
        frames=8,
        size=32,
        workers=workers,
        canonical_partitions=int(str(changes.pop("partitions", 1))),
    )
    options = {"seed": 3, "train": True, "global_batch": 4, "micro_batch": 2} | changes
    return Loader(clips, config, world=World(rank=rank, size=ranks), **options)


def same(a: list[ClipBatch], b: list[ClipBatch]) -> bool:
    fields = ("frames", "labels", "index")
    return len(a) == len(b) and all(torch.equal(getattr(x, f), getattr(y, f)) for x, y in zip(a, b) for f in fields)


def rows(batches: list[ClipBatch]) -> list[tuple[int, torch.Tensor]]:
    return [(i, frames) for b in batches for i, frames in zip(b.index.tolist(), b.frames, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_comes_with_its_own_tokens_cut_behind_the_longest(folder: Path, workers: int) -> None:
    lengths = torch.arange(11) % 5 + 2
    text = (torch.arange(1, 10)[None] + 100 * torch.arange(11)[:, None]) * (torch.arange(9)[None] < lengths[:, None])
    batches = [batch for epoch in (0, 1) for batch in loader(folder, text=text.int(), workers=workers).epoch(epoch)]
    assert len(batches) == 8
    for batch in batches:
        assert batch.text is not None and batch.text.dtype == torch.int64
        assert batch.text.shape == (2, int(lengths[batch.index].max()))
        assert torch.equal(batch.text, text[batch.index, : batch.text.shape[1]])
    assert next(iter(loader(folder).epoch(0))).text is None


def test_shapes_types_and_labels(folder):
    batches = list(loader(folder).epoch(0))
    assert len(batches) == 4 and loader(folder).steps_per_epoch == 2 and loader(folder).accumulation == 2
    for batch in batches:
        assert batch.frames.shape == (2, 8, 3, 32, 32) and batch.frames.dtype == torch.uint8
        assert batch.labels.tolist() == [i % 7 for i in batch.index.tolist()]
        assert batch.labels.dtype == batch.index.dtype == torch.int64


def test_evaluation_reads_the_published_frames(folder):
    """By hand for 8 of 11, 7 and 43 frames; greys survive JPEG within one level."""
    frames = dict(rows(list(loader(folder, train=False).epoch(0))))
    by_hand = {
        0: [0, 1, 2, 2, 2, 2, 2, 2],
        1: [0, 1, 2, 3, 4, 5, 6, 6],
        2: [0, 2, 3, 4, 6, 7, 8, 10],
        10: [2, 8, 13, 18, 24, 29, 34, 40],
    }
    for clip, positions in by_hand.items():
        greys = frames[clip].float().mean((1, 2, 3))
        assert torch.allclose(greys, torch.tensor([float(level(clip, t)) for t in positions]), atol=1)


def test_training_reads_one_frame_of_each_segment_and_others_next_epoch(folder):
    def greys(epoch: int) -> dict[int, list[int]]:
        batches = list(loader(folder, global_batch=1, micro_batch=1).epoch(epoch))
        return {i: f.float().mean((1, 2, 3)).round().int().tolist() for i, f in rows(batches)}

    first, second = greys(0), greys(1)
    assert sorted(first) == list(range(11))
    for clip, got in first.items():
        count = FRAMES[f"clip{clip}"]
        for t, grey in enumerate(got):
            segment = range(t * (count // 8), (t + 1) * (count // 8)) if count >= 8 else [min(t, count - 1)]
            assert any(abs(grey - level(clip, frame)) <= 1 for frame in segment)
    assert first[10] != second[10]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on machines with two cores
@pytest.mark.parametrize("train", [True, False])
def test_workers_do_not_change_a_bit(folder, train):
    here = list(loader(folder, train=train).epoch(1))
    for workers in (1, 3):
        there = loader(folder, workers=workers, train=train)
        assert same(list(there.epoch(1)), here)
        assert same(list(there.epoch(1)), here), "the same workers, a second time"
        assert not train or not same(list(there.epoch(2)), here)


def test_an_epoch_left_early_does_not_disturb_the_next(folder):
    there = loader(folder, workers=1)
    next(iter(there.epoch(0)))
    assert same(list(there.epoch(1)), list(loader(folder).epoch(1)))


@given(st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)]), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=15)
def test_ranks_micro_batches_and_starts_read_one_sequence(folder, layout, epoch, start):
    """Augmented, so that the draws are seen to follow the clip and not its place."""
    ranks, micro = layout
    augment = Augment(DferClipAugment(brightness=0.5), 3)

    def whole(batches: list[ClipBatch]) -> dict[int, torch.Tensor]:
        return dict(rows([augment(b, epoch) for b in batches]))

    reference = list(loader(folder).epoch(epoch))
    order = [i for b in reference for i in b.index.tolist()]
    expected = whole(reference)
    parts = [list(loader(folder, rank=r, ranks=ranks, micro_batch=micro).epoch(epoch, start)) for r in range(ranks)]
    got = [[i for b in part for i in b.index.tolist()] for part in parts]
    share = 4 // ranks
    steps = [[i for ids in got for i in ids[s * share : (s + 1) * share]] for s in range(2 - start)]
    assert [i for step in steps for i in step] == order[start * 4 :]
    for part in parts:
        for index, frames in whole(part).items():
            assert torch.equal(frames, expected[index])


@pytest.mark.parametrize(("ranks", "batch", "micro"), [(1, 4, 2), (2, 4, 2), (3, 6, 2), (3, 4, 1), (4, 16, 3)])
def test_evaluation_counts_every_clip_once_at_any_number_of_ranks(folder, ranks, batch, micro):
    parts = [
        list(loader(folder, rank=r, ranks=ranks, train=False, global_batch=batch, micro_batch=micro).epoch(0))
        for r in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1, "every rank takes part in as many forwards"
    seen = [(i, frames) for part in parts for i, frames in rows(part)]
    assert sorted(i for i, _ in seen if i != PADDING) == list(range(11))
    assert sum(b.num_clips for part in parts for b in part) == 11
    assert all(not frames.any() for i, frames in seen if i == PADDING), "padding is black"


def test_canonical_partitions_order_the_training(folder):
    def order(**options: object) -> list[int]:
        return [i for i, _ in rows(list(loader(folder, **options).epoch(0)))]

    mixed = order(partitions=2)
    assert len(set(mixed)) == 8 and mixed != order()
    ranks = [order(partitions=2, ranks=2, rank=r) for r in range(2)]
    assert [i for s in (0, 2) for ids in ranks for i in ids[s : s + 2]] == mixed


def test_another_size_on_demand(folder):
    assert next(loader(folder, size=40).epoch(0)).frames.shape[-2:] == (40, 40)


def test_selected_clips_are_numbered_by_their_place(folder):
    clips = ClipSet.open(Store(str(folder)), ["train"], emotions=label_set("basic7")).select([9, 2])
    config = DataConfig(shards=str(folder), frames=8, size=32, workers=0)
    batch = next(Loader(clips, config, world=World(), seed=1, train=False, global_batch=4, micro_batch=4).epoch(0))
    assert batch.index.tolist() == [0, 1]
    assert batch.labels.tolist() == [9 % 7, 2]
    assert abs(batch.frames[1, 0].float().mean() - level(2, 0)) <= 1


def test_the_random_numbers_of_the_model_are_left_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(loader(folder).epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_waiting_is_counted(folder):
    there = loader(folder)
    assert there.wait_seconds == 0
    list(there.epoch(0))
    assert 0 < there.wait_seconds < 60


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_frame_stops_with_shard_clip_and_frame(tmp_path, workers):
    frames = [jpeg(9), jpeg(9)[:-40], jpeg(9)]
    write_shards(tmp_path, {"train": [[Clip(key="good"), Clip(key="a/bad", frames=frames)]]})
    with pytest.raises(DataError) as caught:
        list(loader(tmp_path, workers=workers, train=False).epoch(0))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/train/00000.tar, clip a/bad, frame 1: expected a whole JPEG or PNG, got ")
    assert "\n" not in text
    assert caught.value.exit_code == 3


# Bad clips in training


@pytest.fixture(scope="module")
def with_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips of one frame in two shards; two do not decode, and a whole chunk of a third one is damaged."""
    clips = [Clip(key=f"k{n}", label=n % 7, frames=[jpeg(level(n, 0))] * 3) for n in range(40)]
    clips[5] = Clip(key="k5", frames=[b"no jpeg"] * 3)
    clips[17] = Clip(key="k17", frames=[jpeg(9)[:-60]] * 3)
    clips[39] = Clip(key="k39", frames=[jpeg(level(39, 0)) + b"x" * 300_000] * 3)
    folder = write_shards(tmp_path_factory.mktemp("bad"), {"train": [clips[:20], clips[20:]]})
    path = folder / "train/00001.tar"
    data = bytearray(path.read_bytes())
    data[data.rindex(b"x" * 1000) - 700_000] ^= 1
    path.write_bytes(data)
    return folder


def lenient(folder: Path, share: float, **changes: object) -> Loader:
    clips = ClipSet.open(Store(str(folder)), ["train"], emotions=label_set("basic7"))
    config = DataConfig(
        shards=str(folder), frames=2, size=32, max_bad_share=share, workers=int(str(changes.pop("workers", 0)))
    )
    options = {"world": World(), "seed": 3, "train": True, "global_batch": 8, "micro_batch": 4} | changes
    return Loader(clips, config, **options)


def test_bad_clips_are_replaced_where_that_is_allowed_and_told_once(with_bad):
    there = lenient(with_bad, 0.1)
    assert there.max_bad == 4 and lenient(with_bad, 0.1, train=False).max_bad == 0
    got = dict(rows(list(there.epoch(2))))
    bad = there.take_bad()
    assert there.take_bad() == []
    assert sorted(clip.key for clip in bad) == ["k17", "k39", "k5"] and {clip.epoch for clip in bad} == {2}
    causes = {clip.key: clip.cause for clip in bad}
    assert causes["k5"].startswith(f"{with_bad}/train/00000.tar, clip k5, frame 0: expected a whole JPEG or PNG, got ")
    assert "train/00001.tar, clip k39: expected sha256 " in causes["k39"]
    assert not {5, 17, 39} & set(got) and not {"k5", "k17", "k39"} & {clip.replaced_by for clip in bad}
    for index, frames in got.items():
        assert abs(frames.float().mean() - level(index, 0)) <= 1, "labelled and numbered as what is seen"
    labels = [(i, label) for b in there.epoch(2) for i, label in zip(b.index.tolist(), b.labels.tolist())]
    assert all(label == index % 7 for index, label in labels)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_replacements_are_the_same_in_any_layout_and_after_a_resume(with_bad, ranks, workers):
    reference = lenient(with_bad, 0.1)
    whole = [i for batch in reference.epoch(1) for i in batch.index.tolist()]
    told = {clip.key: clip.replaced_by for clip in reference.take_bad()}
    parts = [
        lenient(with_bad, 0.1, workers=workers, micro_batch=4 // ranks, world=World(rank=r, size=ranks))
        for r in range(ranks)
    ]
    got = [[i for batch in part.epoch(1, 2) for i in batch.index.tolist()] for part in parts]
    share = 8 // ranks
    assert [i for s in range(3) for ids in got for i in ids[s * share : (s + 1) * share]] == whole[16:]
    again = {clip.key: clip.replaced_by for part in parts for clip in part.take_bad()}
    assert again.items() <= told.items()


def test_bad_clips_stop_evaluation_and_training_that_allows_none(with_bad):
    for there in (lenient(with_bad, 0.5, train=False), lenient(with_bad, 0.0), lenient(with_bad, 0.02)):
        with pytest.raises(DataError, match=r"clip k(5|17|39)"):
            list(there.epoch(0))


def test_only_bad_clips_stop_the_training_whatever_is_allowed(tmp_path):
    write_shards(tmp_path, {"train": [[Clip(key=f"k{n}", frames=[b"bad"]) for n in range(8)]]})
    with pytest.raises(DataError, match=r"clip k\d, frame 0: expected a whole JPEG"):
        list(lenient(tmp_path, 0.9).epoch(0))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("max_bad_share", 1.0, "max_bad_share: expected a share of the clips, 0 to 1, got 1.0. 0.001 is a lot"),
        ("cache_gib", 0.0, "cache_gib: expected more than 0, got 0.0. Correct it in data"),
    ],
)
def test_shares_and_sizes_out_of_bounds_are_named(field, value, says):
    with pytest.raises(ConfigProblem, match=says):
        DataConfig(shards="x", **{field: value})


def test_the_configuration_says_where_shards_are_cached(folder, tmp_path):
    store = DataConfig(shards=str(folder), cache=str(tmp_path / "c"), cache_gib=0.5).store()
    assert (store.cache.folder, store.cache.budget) == (tmp_path / "c", 2**29)
    assert DataConfig(shards=str(folder)).store().cache.budget == 64 * 2**30


def test_a_batch_that_does_not_divide_by_the_world(folder):
    with pytest.raises(ConfigProblem, match=r"batch: expected a multiple of 3 ranks, got 4\. Set batch to 3 or 6"):
        loader(folder, ranks=3)


def test_more_clips_a_batch_than_there_are(folder):
    with pytest.raises(ConfigProblem, match=r"batch: expected at most the 11 clips .* got 12. Set a smaller") as caught:
        loader(folder, global_batch=12)
    assert caught.value.exit_code == 2


def test_partitions_are_checked_at_once(folder):
    with pytest.raises(ConfigProblem, match="canonical_partitions: expected a divisor of the batch of 4, got 3"):
        loader(folder, partitions=3)


@pytest.mark.parametrize("field", ["frames", "size", "canonical_partitions"])
def test_numbers_below_one_are_named(field):
    with pytest.raises(ConfigProblem, match=f"{field}: expected at least 1, got 0. Correct it in data"):
        DataConfig(shards="x", **{field: 0})


def test_bench_measures_what_it_says(folder, capsys):
    from dfer.bench.loader import bench_loader

    threads = torch.get_num_threads()
    result = bench_loader(str(folder), frames=8, size=32, seconds=0.2)
    assert set(result) == {"train", "test", "decode", "train_share", "test_share"}
    assert result["train_share"] == pytest.approx(result["train"] / result["decode"])
    assert 0 < result["train"] < result["decode"]
    assert f"train augmentation {result['train']:,.0f} (" in capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert np.isfinite(list(result.values())).all()


@pytest.mark.parametrize(("workers", "batches"), [(0, 0), (1, 3), (2, 4)])
def test_shared_memory_is_counted_before_the_first_step(folder, monkeypatch, workers, batches):
    """Two a worker and one in use, of 2 clips of 8 frames; an epoch has 4."""
    need = batches * 2 * 8 * 3 * 32 * 32
    for free, told in ((max(0, need - 1), workers > 0), (need, False), (None, False)):
        monkeypatch.setattr(shared_memory, "free_bytes", lambda free=free: free)
        text = loader(folder, workers=workers).lack_of_memory()
        assert bool(text) is told
        assert not told or f"({batches} of 0.0 MiB from {workers} workers), got 0." in text


def test_shared_memory_is_that_of_all_ranks_of_a_host(monkeypatch):
    need = shared_memory.Need(workers=2, batches=5, batch_bytes=110 * 2**20, keys="eval_batch")
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 1000 * 2**20)
    assert shared_memory.lack(need, ranks=1) == ""
    assert shared_memory.lack(need, ranks=2) == (
        f"host {socket.gethostname()}, /dev/shm: expected room for 1100.0 MiB of batches (5 of 110.0 MiB from 2 "
        "workers in each of 2 ranks), got 1000.0 MiB free. Enlarge /dev/shm (docker run --shm-size=2g; in a pod a "
        "memory emptyDir), or set data.workers=0, or lower eval_batch."
    )


def test_a_batch_that_cannot_be_handed_over_ends_the_worker(monkeypatch, capfd):
    """Python would print the error, and training would wait for the batch for ever."""
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    _cannot_hand_over(OSError(24, "Too many open files"), object())
    assert codes == [1] and capfd.readouterr().err == "data worker: OSError: [Errno 24] Too many open files\n"
