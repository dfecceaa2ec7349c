"""Generated faces: raw trees, splits, reruns and refusals."""

import errno
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from dfer.emotions import BASIC7, MAFW11
from dfer.errors import DataError, DferError, StorageError, UsageError
from shards.synthetic import SynthSummary, synth
from shards.synthetic.layouts import LAYOUTS, apportion, plan_clips

FEWEST = {"dfew": 35, "ferv39k": 14, "mafw": 55}


def make(dataset: str, out: Path, *, seed: int = 5, clips: int | None = None, size: int = 32) -> SynthSummary:
    return synth(dataset, out, clips=clips or FEWEST[dataset], seed=seed, size=size, progress=False)


@pytest.fixture(scope="module")
def dfew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trees") / "dfew"
    make("dfew", out)
    return out


@pytest.fixture
def copy(dfew: Path, tmp_path: Path) -> Path:
    """A copy of the DFEW tree to be spoilt."""
    return shutil.copytree(dfew, tmp_path / "dfew")


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# What a tree is


def test_dfew_has_the_distributors_layout(dfew: Path) -> None:
    clips = sorted((dfew / "Clip" / "clip_224x224").iterdir())
    assert [c.name for c in clips] == [f"{i:05d}" for i in range(1, 36)]
    for clip in clips:
        frames = sorted(f.name for f in clip.iterdir())
        assert frames == [f"{clip.name}_{i:05d}.jpg" for i in range(1, len(frames) + 1)]
        assert 8 <= len(frames) <= 32
    tests = []
    for k in range(1, 6):
        test, train = (
            (dfew / "EmoLabel_DataSplit" / f"{part}(single-labeled)" / f"set_{k}.csv").read_text().splitlines()
            for part in ("test", "train")
        )
        assert test[0] == train[0] == "video_name,label"
        rows = [tuple(map(int, line.split(","))) for line in test[1:] + train[1:]]
        assert sorted(name for name, _ in rows) == list(range(1, 36))
        assert {label for _, label in rows} == set(range(1, 8))
        tests += [int(line.split(",")[0]) for line in test[1:]]
    assert sorted(tests) == list(range(1, 36)), "test folds are disjoint and cover all clips"


def test_dfew_labels_are_the_distributors_numbers(dfew: Path) -> None:
    """1 happy 2 sad 3 neutral 4 angry 5 surprise 6 disgust 7 fear."""
    record = json.loads((dfew / "synthetic.json").read_text())
    words = {1: "happiness", 2: "sadness", 3: "neutral", 4: "anger", 5: "surprise", 6: "disgust", 7: "fear"}
    for line in (dfew / "EmoLabel_DataSplit/test(single-labeled)/set_2.csv").read_text().splitlines()[1:]:
        name, label = line.split(",")
        clip = record["per_clip"][f"Clip/clip_224x224/{int(name):05d}"]
        assert clip["emotion"] == words[int(label)]
        assert clip["fold"] == 2
        assert clip["frames"] == len(list((dfew / f"Clip/clip_224x224/{int(name):05d}").iterdir()))


def test_frames_decode_at_the_asked_size(dfew: Path) -> None:
    frame = dfew / "Clip/clip_224x224/00007/00007_00001.jpg"
    assert simplejpeg.decode_jpeg(frame.read_bytes()).shape == (32, 32, 3)


def test_ferv39k_has_the_distributors_layout(tmp_path: Path) -> None:
    make("ferv39k", tmp_path / "f", clips=40)
    root = tmp_path / "f" / "2_ClipsforFaceCrop"
    words = {"Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"}
    on_disk = set()
    for emotion in root.glob("*/*"):
        assert emotion.name in words
        ids = sorted(c.name for c in emotion.iterdir())
        assert ids == [f"{i:04d}" for i in range(len(ids))], "0-based and without gaps in each folder"
        on_disk |= {f"{emotion.parent.name}/{emotion.name}/{i}" for i in ids}
    for clip in on_disk:
        frames = sorted(f.name for f in (root / clip).iterdir())
        assert frames == [f"{i:02d}.jpg" for i in range(1, len(frames) + 1)]
    listed = {}
    for part in ("train", "test"):
        for line in (tmp_path / "f" / "4_setups" / "All_scenes" / f"{part}_All.csv").read_text().splitlines():
            key, word = line.split(" ")
            assert key.split("/")[1] == word
            assert key not in listed
            listed[key] = part
    assert set(listed) == on_disk
    assert Counter(listed.values()) == {"train": 32, "test": 8}


def test_mafw_has_the_packages_layout(tmp_path: Path) -> None:
    make("mafw", tmp_path / "m")
    ids = sorted(p.name for p in (tmp_path / "m" / "data" / "faces").iterdir())
    assert len(ids) == 55 and all(len(i) == 5 and i.isdigit() for i in ids)
    assert int(ids[-1]) - int(ids[0]) > 54, "the numbers have gaps"
    tests = []
    for k in range(1, 6):
        parts = {
            part: (tmp_path / "m/Train & Test Set/single/no_caption" / f"set_{k}" / f"{part}.txt").read_text()
            for part in ("train", "test")
        }
        rows = {part: [line.split(" ") for line in text.split("\n")] for part, text in parts.items()}
        assert all(not text.endswith("\n") for text in parts.values())
        assert sorted(name for row in rows.values() for name, _ in row) == [f"{i}.mp4" for i in ids]
        assert {word for _, word in rows["test"]} == set(MAFW11)
        tests += [name for name, _ in rows["test"]]
    assert sorted(tests) == [f"{i}.mp4" for i in ids]


@given(st.sampled_from(sorted(LAYOUTS)), st.integers(55, 900), st.integers(0, 2**31))
def test_plans_keep_identities_in_their_fold(dataset: str, clips: int, seed: int) -> None:
    plan = plan_clips(LAYOUTS[dataset], clips=clips, seed=seed)
    names = MAFW11 if dataset == "mafw" else BASIC7
    folds = {c.fold for c in plan}
    assert len(plan) == len({c.folder for c in plan}) == clips
    assert all({c.emotion for c in plan if c.fold == fold} == set(names) for fold in folds)
    pools = [{c.identity for c in plan if c.fold == fold} for fold in folds]
    assert sum(map(len, pools)) == len(set.union(*pools)), "no identity in two folds"
    assert all(8 <= c.frames <= 47 for c in plan)
    if clips >= 350 and dataset != "mafw":
        assert min(Counter(c.emotion for c in plan).values()) >= 0.085 * clips
    if clips >= 350:
        assert max(Counter(c.identity for c in plan).values()) > 1
        assert 20 < sum(c.frames for c in plan) / clips < 28


@given(st.integers(1, 400), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12), st.integers(0, 3))
def test_apportioned_parts_add_up(total: int, shares: list[float], least: int) -> None:
    total = max(total, least * len(shares))
    parts = apportion(total, shares=shares, least=least)
    assert sum(parts) == total
    assert min(parts) >= least


# Running again


def test_same_seed_same_bytes(dfew: Path, tmp_path: Path) -> None:
    make("dfew", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dfew)


def test_another_seed_other_pictures(dfew: Path, tmp_path: Path) -> None:
    make("dfew", tmp_path / "other", seed=6)
    name = "Clip/clip_224x224/00001/00001_00001.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (dfew / name).read_bytes()


def test_a_complete_tree_is_left_alone(copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    summary = make("dfew", copy)
    assert summary.drawn == 0
    assert "is complete already" in str(summary) and "Nothing to do" in str(summary)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_an_incomplete_tree_is_completed(dfew: Path, copy: Path) -> None:
    (copy / "Clip/clip_224x224/00003/00003_00002.jpg").unlink()
    shutil.rmtree(copy / "Clip/clip_224x224/00009")
    (copy / "Clip/clip_224x224/00009.part").mkdir()
    (copy / "Clip/clip_224x224/00009.part/00009_00001.jpg").write_bytes(b"half")
    untouched = copy / "Clip/clip_224x224/00001/00001_00001.jpg"
    before = untouched.stat().st_mtime_ns
    summary = make("dfew", copy)
    assert summary.drawn == 2
    assert contents(copy) == contents(dfew)
    assert untouched.stat().st_mtime_ns == before


def test_a_full_disk_is_explained_and_the_next_run_goes_on(
    dfew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = Path.write_bytes, []

    def full_after_100(self: Path, data: bytes) -> int:
        written.append(self)
        if len(written) > 100:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_after_100)
    with pytest.raises(StorageError) as caught:
        make("dfew", tmp_path / "d")
    assert caught.value.exit_code == 6
    assert "No space left on device" in str(caught.value) and "Free some space" in str(caught.value)
    assert not (tmp_path / "d" / "synthetic.json").exists()
    monkeypatch.undo()
    summary = make("dfew", tmp_path / "d")
    assert 0 < summary.drawn < 35
    assert contents(tmp_path / "d") == contents(dfew)


def test_the_summary_says_what_was_made(tmp_path: Path) -> None:
    summary = make("ferv39k", tmp_path / "f")
    text = str(summary)
    assert "generated ferv39k, 14 clips" in text and "happiness 2" in text and "frames/s" in text
    assert summary.frames == len(list((tmp_path / "f").rglob("*.jpg")))
    assert summary.per_class == dict.fromkeys(BASIC7, 2)


# Refusals


def refused(kind: type[DferError], dataset: str, out: Path, **changes: int) -> str:
    numbers = {"clips": 35, "seed": 5, "size": 32} | changes
    with pytest.raises(kind) as caught:
        synth(dataset, out, progress=False, **numbers)
    assert caught.value.exit_code == {UsageError: 2, DataError: 3}[kind]
    return str(caught.value)


def test_an_unknown_data_set(tmp_path: Path) -> None:
    assert "Did you mean 'ferv39k' or 'fer2013'?" in refused(UsageError, "ferv39", tmp_path / "x")
    assert "Known: afew, affectnet, affectnet_folders, " in refused(UsageError, "imagenet", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("dataset", "fewest"), FEWEST.items())
def test_too_few_clips(dataset: str, fewest: int, tmp_path: Path) -> None:
    text = refused(UsageError, dataset, tmp_path / "x", clips=fewest - 1)
    assert f"expected at least {fewest} for {dataset}" in text and f"got {fewest - 1}" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": -1}, "--seed: expected 0 or more, got -1"),
        ({"jobs": 0}, "--jobs: expected 1 process or more, got 0"),
        ({"size": 31}, "--size: expected 32 to 1024 pixels, got 31"),
        ({"size": 1025}, "got 1025"),
        ({"clips": -3}, "got -3"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, int], expected: str, tmp_path: Path) -> None:
    assert expected in refused(UsageError, "dfew", tmp_path / "x", **changes)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "expected a folder, got a file" in refused(UsageError, "dfew", tmp_path / "x")


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "got a folder with other files in it" in refused(UsageError, "dfew", tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize("complete", [True, False])
def test_a_tree_of_other_arguments_is_not_touched(complete: bool, copy: Path) -> None:
    if not complete:
        (copy / "synthetic.json").rename(copy / "synthetic.part.json")
    before = contents(copy)
    text = refused(UsageError, "dfew", copy, seed=6, size=64)
    assert "expected generated faces with seed 6, size 64, got seed 5, size 32" in text
    assert "Choose another folder, or delete this one" in text
    assert contents(copy) == before


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_spoilt_record(text: str, copy: Path) -> None:
    (copy / "synthetic.json").write_text(text)
    assert "expected the record of generated faces" in refused(DataError, "dfew", copy)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        make("dfew", tmp_path / "file" / "below")
    assert "expected a folder that takes the frames" in str(caught.value) and "Check the folder" in str(caught.value)
