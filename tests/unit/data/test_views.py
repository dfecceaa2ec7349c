"""Views of test clips, sampling that repeats frames, and stills, through the loader."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dfer.config import ConfigProblem
from dfer.data import shared_memory
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.data.recipes import AugmentConfig, CnnAugment, DferClipAugment, DkClipAugment, ViewsConfig, seen_in_words
from dfer.data.views import distinct, fixed_views
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.recognition import PADDING, ClipBatch
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, jpeg, write_shards

COUNTS = (3, 8, 40, 5)
"""Frames of the four clips."""
DK = DkClipAugment(crop=False, flip=0.0, jitter=0.0, grey=0.0)
TWELVE = ViewsConfig(clips=4, crops=3)
TEN = ViewsConfig(crops=10)


def level(clip: int, frame: int) -> int:
    return (clip * 60 + frame * 5) % 251


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [
        Clip(key=f"clip{n}", label=n, frames=[jpeg(level(n, t)) for t in range(count)])
        for n, count in enumerate(COUNTS)
    ]
    return write_shards(tmp_path_factory.mktemp("views"), {"train": [clips]})


def loader(
    folder: Path, *, train: bool = False, clips: int = 4, workers: int = 0, world: World | None = None, **keys: object
) -> Loader:
    config = DataConfig(shards=str(folder), **{"frames": 8, "size": 32, "workers": workers} | keys)  # type: ignore[arg-type]
    found = ClipSet.open(Store(str(folder)), ["train"], emotions=label_set("basic7"))
    sizes = {"global_batch": clips, "micro_batch": clips // (world.size if world else 1)}
    return Loader(found, config, world=world or World(), seed=3, train=train, **sizes)


def greys(batch: ClipBatch) -> list[list[int]]:
    """The level of every frame of every row."""
    return [[round(float(grey)) for grey in row.float().mean((1, 2, 3))] for row in batch.frames]


def near(got: list[int], clip: int, positions: list[int]) -> bool:
    """JPEG keeps greys within one level."""
    return all(abs(grey - level(clip, at)) <= 1 for grey, at in zip(got, positions, strict=True))


def test_views_are_rows_with_the_same_index_and_label(folder):
    batch = next(loader(folder, augment=DK, sampling="dk_clip", views=TWELVE).epoch(0))
    assert batch.frames.shape == (48, 8, 3, 32, 32) and batch.num_clips == 4
    assert batch.index.tolist() == np.arange(4).repeat(12).tolist()
    assert batch.labels is not None and batch.labels.tolist() == batch.index.tolist()


def test_views_sample_at_fixed_places_of_the_segments(folder):
    """40 frames in 8 segments of five: four places are 0, 1, 3 and 4; the same for the three crops of each."""
    rows = greys(next(loader(folder, augment=DK, sampling="dk_clip", views=TWELVE).epoch(0)))
    for view in range(12):
        at = (0, 1, 3, 4)[view // 3]
        assert near(rows[2 * 12 + view], 2, [at + 5 * segment for segment in range(8)])


def test_one_view_among_them_is_none_other_than_without_views(folder):
    plain = next(loader(folder).epoch(0))
    one = next(loader(folder, views=ViewsConfig()).epoch(0))
    assert torch.equal(plain.frames, one.frames) and torch.equal(plain.index, one.index)


def test_training_never_sees_views(folder):
    batch = next(loader(folder, train=True, augment=DK, views=TWELVE).epoch(0))
    assert batch.frames.shape == (4, 8, 3, 32, 32) and sorted(batch.index.tolist()) == [0, 1, 2, 3]


def test_padding_has_as_many_rows_as_a_clip(folder):
    parts = [
        list(loader(folder, clips=3, views=TEN, size=28, frames=1, augment=CnnAugment(side=32), world=world).epoch(0))
        for world in (World(rank=rank, size=3, local_rank=rank, local_size=3) for rank in range(3))
    ]
    index = [i for part in parts for batch in part for i in batch.index.tolist()]
    assert {i: index.count(i) for i in (0, 1, 2, 3)} == dict.fromkeys(range(4), 10)
    assert index.count(PADDING) % 10 == 0 and index.count(PADDING) > 0


def test_sampled_frames_may_repeat_and_go_back_to_the_first(folder):
    """Three frames as eight by DK-CLIP: 0 .375 .75 1.125 1.5 1.875 2.25 2.625, half to even, and 3 is frame 0 again."""
    batch = next(loader(folder, train=True, augment=DK, sampling="dk_clip").epoch(0))
    row = batch.index.tolist().index(0)
    assert near(greys(batch)[row], 0, [0, 0, 1, 1, 2, 2, 2, 0])
    test = next(loader(folder, sampling="dk_clip").epoch(0))
    assert near(greys(test)[0], 0, [0, 0, 0, 1, 1, 2, 2, 2])


def test_exp_clip_s_short_clips_are_their_first_frame(folder):
    rows = greys(next(loader(folder, sampling="exp_clip").epoch(0)))
    assert near(rows[0], 0, [0] * 8) and near(rows[1], 1, [0] * 8)
    assert near(rows[2], 2, [2, 7, 12, 17, 22, 27, 32, 37])


def test_a_frame_is_decoded_once_for_all_views():
    data = DataConfig(shards="-", frames=8, augment=DK, sampling="dk_clip", views=TWELVE)
    views = fixed_views(data, 40)
    assert len(views) == 12 and distinct(views).tolist() == [5 * s + at for s in range(8) for at in (0, 1, 3, 4)]


RECIPES: list[AugmentConfig] = [DferClipAugment(), DkClipAugment(), CnnAugment()]


@pytest.mark.parametrize("size", [44, 48])
@pytest.mark.parametrize("augment", RECIPES, ids=lambda augment: augment.name)
def test_stills_are_clips_of_one_frame(tmp_path, augment, size):
    """Also of FER2013's size."""
    clips = [Clip(key=f"s{n}", label=n % 7, frames=[jpeg(20 * n, height=48, width=48)]) for n in range(4)]
    write_shards(tmp_path, {"train": [clips]})
    for train in (False, True):
        batch = next(loader(tmp_path, train=train, frames=1, size=size, augment=augment).epoch(0))
        assert batch.frames.shape == (4, 1, 3, size, size)
        for index, grey in zip(batch.index.tolist(), greys(batch), strict=True):
            assert augment.name == "dk_clip" or abs(grey[0] - 20 * index) <= 2


def test_shared_memory_is_that_of_all_views(folder, monkeypatch):
    """Batches of 4 clips of 12 views, 8 frames of 32 pixels: the one that there is."""
    need = 4 * 12 * 8 * 3 * 32 * 32
    for free, told in ((need - 1, True), (need, False)):
        monkeypatch.setattr(shared_memory, "free_bytes", lambda free=free: free)
        text = loader(folder, augment=DK, views=TWELVE, workers=1).lack_of_memory()
        assert bool(text) is told and ("1.1 MiB" in text or not told)


def test_a_frame_too_narrow_for_its_recipe_is_refused_with_its_place(tmp_path):
    import simplejpeg

    strip = simplejpeg.encode_jpeg(np.zeros((1, 60_000, 3), np.uint8))
    write_shards(tmp_path, {"train": [[Clip(key="strip", frames=[strip])]]})
    with pytest.raises(Exception, match=r"clip strip, frame 0: expected a whole JPEG or PNG, got 60000 x 1 pixels, so"):
        list(loader(tmp_path, augment=DkClipAugment(), size=224).epoch(0))


STORED = {"features": "f", "train_frames": "middle"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"views": TWELVE}, "views.crops: expected 1 for the recipe dfer_clip, got 3. 3 go with data.augment.name=dk"),
        ({"views": TEN, "augment": DK}, "views.crops: expected 1 or 3 for the recipe dk_clip, got 10"),
        ({"augment": CnnAugment()}, "size: expected at most data.augment.side, 48, got 224. The authors cut 44"),
        (
            STORED | {"views": ViewsConfig(clips=2), "augment": DferClipAugment(crop=False, flip=0.0)},
            "features: expected one view of a clip, got data.views of 2 views. Leave one of the two out",
        ),
        (
            STORED | {"augment": DkClipAugment()},
            "features: expected clips that look the same in every epoch, got data.augment.crop=true, "
            "data.augment.flip=0.5, data.augment.jitter=0.8, data.augment.grey=0.2. "
            "Set data.augment.crop=false data.augment.flip=0 data.augment.jitter=0 data.augment.grey=0, or leave",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(keys, says):
    with pytest.raises(ConfigProblem) as caught:
        DataConfig(shards="-", **keys)
    assert str(caught.value).startswith(says)


def test_views_and_inputs_in_words():
    assert seen_in_words(DferClipAugment(), None, 224) == "1 view"
    assert seen_in_words(DkClipAugment(), None, 224) == "1 view, short side 256 not antialiased, centre 224"
    assert seen_in_words(DkClipAugment(), TWELVE, 224) == (
        "12 views averaged (4 samplings of the frames x 3 crops), short side 224 not antialiased"
    )
    assert seen_in_words(CnnAugment(), TEN, 44) == "10 views averaged (10 crops), 44 of 48"
