"""Folds of stills: blocks of positions as the releases cut them, folds that share nobody, overlap in numbers."""

from collections import Counter
from pathlib import Path

import pytest

from dfer.errors import DataError
from dfer.store.format import Overlap
from shards.build import build
from shards.overlap import Packed, duplicates, overlap
from shards.shard import BuildOptions
from shards.show import describe
from shards.sources import ckplus48, kmu_fed
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.folds import by_subject
from tests.unit.shards import rawkit, stillkit

# WuJie1010, CK.py at fefe665, typed from it: where the classes begin, test stills of each.
ORDER = ("anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt")
BEGINS = (0, 135, 312, 387, 594, 678, 927, 981)
TESTS = (12, 18, 9, 21, 9, 24, 6)
KMU_CODES = ("AN", "DI", "FE", "HA", "SA", "SU")


def released(fold: int, begins: tuple[int, ...], tests: tuple[int, ...]) -> list[int]:
    """Positions of the test stills of a fold, 1 to 10; the tenth counts from the end."""
    found = []
    for place, count in enumerate(tests):
        for k in range(count):
            found.append(begins[place + 1] - 1 - k if fold == 10 else begins[place] + (fold - 1) * count + k)
    return found


@pytest.fixture(scope="module")
def ck(tmp_path_factory: pytest.TempPathFactory) -> RawSet:
    """CK+48 with the numbers of the real one; a reader opens no pictures, so the files are empty."""
    root = tmp_path_factory.mktemp("ck")
    for place, word in enumerate(ORDER):
        for number in range((BEGINS[place + 1] - BEGINS[place]) // 3):
            for frame in (10, 11, 12):
                stillkit.write(root / f"CK+48/{word}/S{number % 118:03d}_{place}{number:02d}_{frame:08d}.png", b"")
    return ckplus48.read(root)


def in_order(raw: RawSet) -> list[str]:
    """All keys as the release lays them end to end."""
    words = {"happy": "happiness"}
    labels = [raw.emotions.index(words.get(word, word)) for word in ORDER]
    return [key for label in labels for key in sorted(clip.key for clip in raw.clips if clip.label == label)]


def test_ck_folds_are_those_of_the_release(ck: RawSet) -> None:
    keys = in_order(ck)
    assert len(keys) == 981
    folds = ck.protocols["positional"].folds
    assert len(folds) == 10
    for number, fold in enumerate(folds, start=1):
        expected = [keys[at] for at in released(number, BEGINS, TESTS)]
        assert sorted(fold.test.keys) == sorted(expected) and len(expected) == len(set(expected)) == 99
        assert sorted(fold.train.keys) == sorted(set(keys) - set(expected))
    # The ninth block of fear reaches into happiness.
    assert keys[BEGINS[3] : BEGINS[3] + 6] == [key for key in folds[8].test.keys if key in keys[387:400]]


def test_ck_folds_make_990_predictions_33_twice_and_24_never(ck: RawSet) -> None:
    tested = Counter(key for fold in ck.protocols["positional"].folds for key in fold.test.keys)
    assert tested.total() == 990
    assert sum(count == 2 for count in tested.values()) == 33 and max(tested.values()) == 2
    assert 981 - len(tested) == 24
    found = overlap(ck.protocols["positional"], Packed(clips={clip.key: clip for clip in ck.clips}, pictures={}))
    assert (found.tests, found.twice, found.never, found.pictures) == (990, 33, 24, None)
    assert found.subjects and found.subjects > 900, "people are on both sides"
    assert found.sources == 0, "blocks are multiples of three, so that no sequence is parted"


def test_ck_subjects_share_nobody(ck: RawSet) -> None:
    who = {clip.key: clip.subject for clip in ck.clips}
    folds = ck.protocols["subjects"].folds
    assert len(folds) == 10
    tested = Counter(key for fold in folds for key in fold.test.keys)
    assert tested == dict.fromkeys(who, 1)
    for fold in folds:
        assert not {who[key] for key in fold.train.keys} & {who[key] for key in fold.test.keys}
        assert len(fold.train.keys) + len(fold.test.keys) == 981
    people = sorted(set(who.values()))
    assert {who[key] for key in folds[1].test.keys} == set(people[1::10]), "every tenth person"
    found = overlap(ck.protocols["subjects"], Packed(clips={clip.key: clip for clip in ck.clips}, pictures={}))
    assert found == Overlap(tests=981, twice=0, never=0, subjects=0, sources=0)


def kmu(root: Path, counts: tuple[int, ...]) -> RawSet:
    for code, count in zip(KMU_CODES, counts, strict=True):
        for number in range(count):
            person = number // 20 % 12 + 1
            stillkit.write(root / f"{person:02d}_{code}_s01_{number:03d}.jpg", b"")
    return kmu_fed.read(root)


def test_kmu_folds_are_those_of_the_release(tmp_path: Path) -> None:
    """1,104 pictures, six of them byte copies: anger 190 with blocks of 19, happiness 209 of 21, surprise 199 of 20."""
    for number in range(6):
        stillkit.write(tmp_path / f"1_AN_s01_{number:03d}.jpg", b"")
    raw = kmu(tmp_path, (190, 120, 200, 209, 180, 199))
    tested = Counter(key for fold in raw.protocols["positional"].folds for key in fold.test.keys)
    assert tested.total() == 1100 and not any("positional" in note for note in raw.notes)
    assert len(raw.clips) == 1098 and {*tested} == {clip.key for clip in raw.clips}
    assert sorted(key[3:5] for key, count in tested.items() if count == 2) == ["HA", "SU"]
    assert [len(fold.test.keys) for fold in raw.protocols["positional"].folds] == [110] * 10


def test_kmu_without_the_copies_is_tested_once(tmp_path: Path) -> None:
    raw = kmu(tmp_path, (190, 120, 200, 210, 180, 200))
    tested = Counter(key for fold in raw.protocols["positional"].folds for key in fold.test.keys)
    assert tested == dict.fromkeys((clip.key for clip in raw.clips), 1)
    assert [len(fold.test.keys) for fold in raw.protocols["positional"].folds] == [110] * 10
    who = {clip.key: clip.subject for clip in raw.clips}
    for fold in raw.protocols["subjects"].folds:
        assert not {who[key] for key in fold.train.keys} & {who[key] for key in fold.test.keys}


def test_other_numbers_give_a_tenth_each_and_few_give_no_blocks(tmp_path: Path) -> None:
    raw = kmu(tmp_path / "a", (10, 19, 20, 21, 30, 40))
    assert [len(fold.test.keys) for fold in raw.protocols["positional"].folds] == [1 + 1 + 2 + 2 + 3 + 4] * 10
    assert raw.notes[-1] == (
        "CLIVP-FER has other numbers of pictures than these (anger, disgust, fear, happiness, sadness, surprise: "
        "10, 19, 20, 21, 30, 40); each block of `positional` is here a tenth of every class, and not CLIVP-FER's"
    )
    assert set(kmu(tmp_path / "b", (9, 40, 20, 20, 20, 20)).protocols) == {"subjects"}


def test_fewer_than_ten_people_are_a_fold_each() -> None:
    clips = [RawClip(key=f"k{n}", label=0, partition="all", subject=f"p{n % 3}") for n in range(7)]
    (protocol,) = by_subject(clips, source="x").values()
    assert [fold.test.keys for fold in protocol.folds] == [("k0", "k3", "k6"), ("k1", "k4"), ("k2", "k5")]
    assert by_subject(clips[:1], source="x") == by_subject([], source="x") == {}


def test_overlap_counts_people_sequences_and_pictures() -> None:
    facts = {
        "a": ("anna", "film 1", "x"),
        "b": ("anna", "film 2", "y"),
        "c": ("ben", "film 2", "x"),
        "d": (None, None, "z"),
    }
    clips = {key: RawClip(key=key, label=0, partition="all", subject=s, source=o) for key, (s, o, _) in facts.items()}
    packed = Packed(clips=clips, pictures={key: picture for key, (*_, picture) in facts.items()})

    def fold(train: str, test: str) -> RawFold:
        return RawFold(train=RawSubset(keys=tuple(train)), test=RawSubset(keys=tuple(test)))

    once = RawProtocol(source="x", folds=(fold("ad", "bc"),))
    assert overlap(once, packed) == Overlap(tests=2, twice=0, never=2, subjects=1, sources=0, pictures=1)
    more = RawProtocol(source="x", folds=(fold("ad", "bc"), fold("bd", "c"), fold("d", "gone")))
    assert overlap(more, packed) == Overlap(tests=3, twice=1, never=2, subjects=1, sources=1, pictures=1)
    whole = RawProtocol(source="x", folds=(RawFold(train=RawSubset(partitions=("all",)), test=RawSubset(keys=("a",))),))
    assert overlap(whole, packed).pictures == 1


def test_stills_with_the_same_picture_are_named() -> None:
    pictures = {"e": "1", "a": "1", "b": "2", "c": "1", "d": "2", "f": "1"}
    (note,) = duplicates(pictures)
    assert note == "4 stills hold the same picture as another one, byte for byte: c = a, d = b, e = a, ..."
    assert duplicates({"a": "1", "b": "2"}) == ()


def test_a_build_tells_of_overlap_and_copies(tmp_path: Path) -> None:
    root = stillkit.ckplus48(tmp_path)
    copy = root / "CK+48/happy/S011_006_00000012.png"
    copy.write_bytes((root / "CK+48/anger/S010_004_00000017.png").read_bytes())
    report = build(ckplus48.read(root), str(tmp_path / "out"), BuildOptions(media="png"), progress=False)
    assert report.notes == (
        "1 stills hold the same picture as another one, byte for byte: S011_006_00000012 = S010_004_00000017",
    )
    assert report.manifest.protocols["subjects"].overlap == Overlap(
        tests=6, twice=0, never=0, subjects=0, sources=0, pictures=2
    )
    told = describe(report.manifest)
    assert "  6 test clips in all folds; 0 clips tested more than once, 0 never; in the training of the same " in told
    assert "fold: the person of 0, the sequence of 0, the very picture of 2" in told
    again = build(ckplus48.read(root), str(tmp_path / "out"), BuildOptions(media="png"), progress=False)
    assert again.made.new == 0 and again.notes == report.notes and again.manifest == report.manifest


def test_a_set_of_clips_tells_of_its_folds_alone(tmp_path: Path) -> None:
    from shards.sources import SOURCES

    raw = SOURCES["dfew"](rawkit.dfew(tmp_path / "DFEW"))
    manifest = build(raw, str(tmp_path / "out"), BuildOptions(max_side=64), progress=False).manifest
    assert manifest.protocols["published"].overlap == Overlap(tests=10, twice=0, never=0)
    assert "  10 test clips in all folds; 0 clips tested more than once, 0 never\n" in describe(manifest)


def test_a_fold_that_trains_on_what_it_tests_is_still_refused(tmp_path: Path) -> None:
    """Folds may test a clip twice; within a fold it is in one subset."""
    from shards.verify import verify

    raw = ckplus48.read(stillkit.ckplus48(tmp_path))
    keys = tuple(clip.key for clip in raw.clips)
    fold = RawFold(train=RawSubset(keys=keys), test=RawSubset(keys=keys[:1]))
    odd = RawSet(
        dataset=raw.dataset,
        emotions=raw.emotions,
        clips=raw.clips,
        media="png",
        protocols={"positional": RawProtocol(source="x", folds=(fold,))},
    )
    build(odd, str(tmp_path / "out"), BuildOptions(media="png"), progress=False)
    with pytest.raises(DataError, match="fold 1 of positional: 1 clips are in train and in test"):
        verify(str(tmp_path / "out"), progress=False)
