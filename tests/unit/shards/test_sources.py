"""Readers of the raw layouts: variants, keys, classes, and what they refuse."""

import re
import shutil
from pathlib import Path

import pytest

from dfer.errors import DataError
from shards.frames import store_frame
from shards.sources import SOURCES, dfew, ferv39k, mafw
from shards.sources.clips import BadClip, RawSet, list_frames
from tests.unit.shards import rawkit

DFEW_PATTERNS = [
    "EmoLabel_DataSplit/{side}(single-labeled)/set_{fold}.csv",
    "EmoLabel_DataSplit/{side}(single_labeled)/set_{fold}.csv",
    "EmoLabel_DataSplit/{side}/set_{fold}.csv",
    "EmoLabel_DataSplit/{side}(single-labeled)/{side}(single-labeled)/set_{fold}.csv",
    "{side}(single-labeled)/set_{fold}.csv",
    "label/single_{side}set_{fold}.csv",
]
DFEW_FRAMES = [
    "Clip/clip_224x224/{clip}",
    "Clip/clip_224x224/clip_224x224/{clip}",
    "Clip/clip_224x224_part_{part}/{clip}",
    "Clip/clip_224x224_part_{part}/clip_224x224_part_{part}/{clip}",
    "Clip/clip_224x224/clip_224x224_part_{part}/{clip}",
    "clip_224x224_part_{part}/{clip}",
    "data/{clip}",
    "Clip/clip_224x224_16f/{clip}",
]
# Names in class order of BASIC7, typed here and not taken from the code.
CLASSES = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]


def by_key(raw: RawSet) -> dict[str, tuple[str, str]]:
    return {clip.key: (clip.partition, raw.emotions.names[clip.label]) for clip in raw.clips}


@pytest.mark.parametrize("pattern", DFEW_PATTERNS)
@pytest.mark.parametrize("frames", [DFEW_FRAMES[0], DFEW_FRAMES[6]])
def test_dfew_layouts_give_the_same_clips(tmp_path: Path, pattern: str, frames: str) -> None:
    check_dfew(tmp_path / "DFEW", pattern, frames)


@pytest.mark.parametrize("frames", DFEW_FRAMES)
def test_dfew_frame_folders(tmp_path: Path, frames: str) -> None:
    check_dfew(tmp_path / "data", DFEW_PATTERNS[0], frames)


def check_dfew(root: Path, pattern: str, frames: str) -> None:
    numbers = [1, 2, 1601, 1604, 3205, 16372]
    labels = {n: position + 1 for position, n in enumerate(numbers)}
    for n in numbers:
        rawkit.fill(root / frames.format(clip=f"{n:05d}", part=(n - 1) // 1600 + 1), ["1.jpg"], seed=n)
    labels |= {3: 7, 4: 7, 5: 7}  # every fold needs a clip; these have no folder
    rawkit.write_dfew_splits(root, labels, pattern=pattern)
    raw = dfew.read(root)
    expected = {f"{n:05d}": (f"fold_{(n - 1) % 5 + 1}", CLASSES[label - 1]) for n, label in labels.items()}
    assert by_key(raw) == expected
    for clip in raw.clips:
        assert (clip.folder is None) == (int(clip.key) in (3, 4, 5))
        assert clip.folder is None or [f.name for f in list_frames(clip.folder)] == ["1.jpg"]


def test_dfew_root_unpacked_twice(tmp_path: Path) -> None:
    rawkit.dfew(tmp_path / "DFEW" / "DFEW")
    assert len(dfew.read(tmp_path / "DFEW").clips) == 10


def test_dfew_sixteen_frames_are_never_mixed_in(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    shutil.move(root / "Clip/clip_224x224/00004", root / "Clip/clip_224x224_16f/00004")
    raw = dfew.read(root)
    assert [clip.key for clip in raw.clips if clip.folder is None] == ["00004"]
    assert raw.options == {"source_frames": "clip_224x224"}


def test_ferv39k(tmp_path: Path) -> None:
    raw = ferv39k.read(rawkit.ferv39k(tmp_path / "FERV39k"))
    rows = by_key(raw)
    assert len(rows) == 12
    assert rows["Action/Happy/0001"] == ("test", "happiness")
    assert rows["War/Angry/0002"] == ("train", "anger")
    assert all(clip.folder is not None and str(clip.folder).endswith(clip.key) for clip in raw.clips)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("2_ClipsforFaceCrop", "2_ClipsforFaceCrop-002/2_ClipsforFaceCrop"),
        ("2_ClipsforFaceCrop", "2_ClipsforFaceCrop-002"),
        ("2_ClipsforFaceCrop", "2_ClipsforFaceCrop/2_ClipsforFaceCrop"),
        ("4_setups", "4_setups-001/4_setups"),
        ("4_setups", "FERV39k/4_setups"),
    ],
)
def test_ferv39k_doubled_folders(tmp_path: Path, name: str, moved: str) -> None:
    root = rawkit.ferv39k(tmp_path / "FERV39k")
    (root / name).rename(tmp_path / "aside")
    (root / moved).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "aside").rename(root / moved)
    raw = ferv39k.read(root)
    assert len(raw.clips) == 12
    assert all(list_frames(clip.folder) for clip in raw.clips)


def test_ferv39k_scenes_spread_over_two_downloads(tmp_path: Path) -> None:
    root = rawkit.ferv39k(tmp_path / "FERV39k")
    (root / "2_ClipsforFaceCrop").rename(root / "2_ClipsforFaceCrop-001")
    (root / "2_ClipsforFaceCrop-002").mkdir()
    (root / "2_ClipsforFaceCrop-001/War").rename(root / "2_ClipsforFaceCrop-002/War")
    assert all(list_frames(clip.folder) for clip in ferv39k.read(root).clips)


@pytest.mark.parametrize("faces", ["data/faces", "faces", "data/faces/faces", "data/data/faces"])
def test_mafw(tmp_path: Path, faces: str) -> None:
    raw = mafw.read(rawkit.mafw(tmp_path / "MAFW", faces=faces))
    rows = by_key(raw)
    assert rows["00020"] == ("fold_1", "anger")
    assert rows["00083"] == ("fold_5", "helplessness")
    assert raw.notes == ()
    frames = list_frames(raw.clips[0].folder)
    assert [f.name.split("_")[1] for f in frames] == ["1.png", "2.png", "10.png"]


@pytest.mark.parametrize("frames", ["data/frames", "data/frames/frames", "frames/frames"])
def test_mafw_whole_pictures_are_named_as_such(tmp_path: Path, frames: str) -> None:
    raw = mafw.read(rawkit.mafw(tmp_path / "MAFW", faces=frames))
    assert "holds whole pictures, not faces" in raw.notes[0]
    assert raw.options == {"source_frames": "whole pictures"}
    assert all(list_frames(clip.folder) for clip in raw.clips)


@pytest.mark.parametrize("dataset", ["dfew", "ferv39k", "mafw"])
def test_a_folder_of_something_else(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError, match=r"expected .*'s split files at .*got a folder with holiday\. Give the folder"):
        SOURCES[dataset](tmp_path)
    with pytest.raises(DataError, match=r"expected the folder of .*, got nothing there. Correct the path"):
        SOURCES[dataset](tmp_path / "absent")


@pytest.mark.parametrize(("dataset", "faces"), [("dfew", "Clip"), ("ferv39k", "2_ClipsforFaceCrop"), ("mafw", "data")])
def test_frames_not_unpacked(tmp_path: Path, dataset: str, faces: str) -> None:
    root = getattr(rawkit, dataset)(tmp_path / "raw")
    shutil.rmtree(root / faces)
    with pytest.raises(DataError, match=r"face (frames|crops|folders) at "):
        SOURCES[dataset](root)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DFEW_TEST = "EmoLabel_DataSplit/test(single-labeled)/set_{}.csv"
DFEW_TRAIN = "EmoLabel_DataSplit/train(single-labeled)/set_{}.csv"


@pytest.mark.parametrize(
    ("file", "old", "new", "text"),
    [
        (DFEW_TEST.format(2), "2,7", "2,0", r"set_2\.csv, line 2: expected a label 1\.\.7 .*, got '0'"),
        (DFEW_TEST.format(2), "2,7", "2,8", "got '8'.*number from 0 or in another order are refused"),
        (DFEW_TEST.format(2), "2,7", "2,happy", "expected a label 1..7 .* got 'happy'"),
        (DFEW_TEST.format(2), "2,7", "2", "expected a label 1..7 .* got ''"),
        (DFEW_TEST.format(2), "2,7", "../2,7", r"expected a clip number 1\.\.16372, got '\.\./2'"),
        (DFEW_TEST.format(2), "2,7", "16373,7", "expected a clip number 1..16372, got '16373'"),
        (DFEW_TEST.format(2), "2,7", "2,7\n2,7", "line 3: expected every clip once, got 00002 a second time"),
        (DFEW_TEST.format(1), "video_name,label\n", "", "line 1: expected the header video_name,label, got '1,4'"),
        (
            DFEW_TEST.format(1),
            "1,4\n",
            "1,4\n2,7\n",
            "expected every clip in one part, got 00002 in test set 1 and in test set 2",
        ),
        (DFEW_TRAIN.format(1), "3,3\n", "", "train set 1: expected the 8 clips of the other test sets, got 00003 left"),
        (DFEW_TRAIN.format(1), "3,3\n", "3,3\n1,4\n", "got 00001 in test set 1 as well"),
        (DFEW_TRAIN.format(1), "3,3\n", "3,3\n77,4\n", "got 00077 in no test set"),
        (DFEW_TRAIN.format(1), "3,3\n", "3,5\n", "got another label for 00003"),
        (DFEW_TRAIN.format(1), "3,3\n", "77,3\n", "got 00077 in no test set"),
    ],
)
def test_dfew_refuses(tmp_path: Path, file: str, old: str, new: str, text: str) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    edit(root / file, old, new)
    with pytest.raises(DataError, match=text) as caught:
        dfew.read(root)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", ["", "video_name,label\n"])
def test_dfew_empty_split_file(tmp_path: Path, content: str) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    (root / DFEW_TEST.format(3)).write_text(content)
    with pytest.raises(DataError, match=r"expected (the header video_name,label, got ''|at least one clip, got none)"):
        dfew.read(root)


def test_split_file_that_is_no_text(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    (root / DFEW_TEST.format(3)).write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(
        DataError, match="expected a text in UTF-8 or UTF-16, got one that begins as UTF-16 and is none at byte"
    ):
        dfew.read(root)


@pytest.mark.parametrize(
    ("side", "old", "new", "text"),
    [
        ("train", "Action", "video_name,label\nAction", "line 1: expected no header, but a clip and its emotion"),
        (
            "test",
            "0001 Happy",
            "0001,Happy",
            "line 2: .* got 'Action/Angry/0001 Angry', read as UTF-8 separated by commas",
        ),
        ("test", "Action/Happy", "../Happy", "as in `Action/Happy/0015 Happy`"),
        ("test", "0001 Happy", "0001 3", "expected one of the seven emotions as a word, got '3'"),
        ("test", "0001 Happy", "0001 Contempt", "expected one of the seven emotions as a word, got 'Contempt'"),
        ("test", "0001 Happy", "0001 Sad", "expected the emotion of the folder, Happy, got 'Sad'"),
        ("test", "Action/Happy/0001 Happy", "Action/Happy/0000 Happy", "got Action/Happy/0000 in train and in test"),
        ("train", "Action/Happy/0002", "Action/Happy/0000", "got Action/Happy/0000 a second time"),
    ],
)
def test_ferv39k_refuses(tmp_path: Path, side: str, old: str, new: str, text: str) -> None:
    root = rawkit.ferv39k(tmp_path / "FERV39k")
    edit(root / f"4_setups/All_scenes/{side}_All.csv", old, new)
    with pytest.raises(DataError, match=text):
        ferv39k.read(root)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("00020.mp4", "clip label\n00020.mp4", "line 1: expected no header, but a clip and its emotion"),
        ("00020.mp4 anger", "00020.mp4 1", "expected one of the eleven emotions as a word, got '1'"),
        ("00020.mp4 anger", "00020.mp4 hapiness", r"got 'hapiness'\. Did you mean 'happiness'"),
        ("00020.mp4 anger", "00020.mp4\tanger\twords", "Use the files of single/no_caption"),
        ("00020.mp4 anger", "00020.mp4 fear", "train set 2: .* got another label for 00020"),
        ("00020.mp4", "99999.mp4", "train set 2: .* got 00020 in no test set"),
    ],
)
def test_mafw_refuses(tmp_path: Path, old: str, new: str, text: str) -> None:
    root = rawkit.mafw(tmp_path / "MAFW")
    edit(root / "Train & Test Set/single/no_caption/set_1/test.txt", old, new)
    with pytest.raises(DataError, match=text):
        mafw.read(root)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no frames"),
        ([".hidden_1.jpg", "Thumbs.db", "notes_1.txt"], "no frames"),
        (["1.jpg", "01.jpg"], r"frames 01\.jpg and 1\.jpg have the same number"),
        (["2.jpg", "2.png"], r"frames 2\.jpg and 2\.png have the same number"),
        (["1.jpg", "cover.jpg"], r"frame cover\.jpg has no number in its name"),
        (["1.jpg", "1.JPG"], r"frames 1\.JPG and 1\.jpg have the same number"),
        (["00001.jpg", "00001 (2).jpg"], r"frames 00001 \(2\)\.jpg and 00001\.jpg are named in unlike ways"),
        (["1.9.jpg", "1.10.jpg"], r"frames 1\.10\.jpg and 1\.9\.jpg can be put in order in two ways"),
        (["1.jpg", "2.psd"], r"pictures of a kind that is not read \(1 \.psd\) beside 1 that can be read"),
        (["1.gif", "2.GIF", "3.ppm"], r"pictures of a kind that is not read \(2 \.gif, 1 \.ppm\)$"),
    ],
)
def test_bad_frame_folders(tmp_path: Path, names: list[str], reason: str) -> None:
    rawkit.fill(tmp_path / "clip", names, seed=1)
    with pytest.raises(BadClip, match=reason):
        list_frames(tmp_path / "clip")


def test_frames_are_in_time_order_whatever_the_padding(tmp_path: Path) -> None:
    names = [f"{i}.JPG" if i % 2 else f"{i}.jpeg" for i in range(1, 17)]
    rawkit.fill(tmp_path / "clip", [*names, ".DS_Store", "._1.jpg"], seed=1)
    (tmp_path / "clip" / "99.jpg").mkdir()
    assert [f.name for f in list_frames(tmp_path / "clip")] == names


def test_frames_of_all_kinds_that_are_read_stand_in_one_order(tmp_path: Path) -> None:
    names = ["1.jpg", "2.bmp", "3.webp", "4.png", "5.jfif", "6.JPE", "10.BMP"]
    rawkit.fill(tmp_path / "clip", names, seed=1)
    frames = list_frames(tmp_path / "clip")
    assert [f.name for f in frames] == names
    assert all(store_frame(frame, media="jpeg", max_side=64, quality=95).data for frame in frames)


@pytest.mark.parametrize("target", ["nothing.jpg", "3.jpg", "/dev/zero"])
def test_a_frame_that_is_no_file_is_told(tmp_path: Path, target: str) -> None:
    rawkit.fill(tmp_path / "clip", ["1.jpg", "2.jpg"], seed=1)
    (tmp_path / "clip" / "3.jpg").symlink_to(target)
    with pytest.raises(BadClip, match=r"frame 3\.jpg (is a link to nothing|cannot be read)"):
        list_frames(tmp_path / "clip")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "clip").write_text("x")
    with pytest.raises(BadClip, match="no folder"):
        list_frames(tmp_path / "clip")


FORMS = {
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t").replace(" ", "\t"),
    "commas": lambda text: text.replace(" ", ","),
    "quotes": lambda text: re.sub(r"[^\s,]+", r'"\g<0>"', text),
    "blank rows": lambda text: "\n \n" + text.replace("\n", "\n\n") + "\n\n",
    "rows of separators": lambda text: text.replace(" ", ",").replace("\n", "\n,\n"),
    "old line ends": lambda text: text.replace("\n", "\r"),
    "blanks around": lambda text: text.replace(",", " , ").replace(" ", "  ").replace("\n", " \n "),
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")


def clips_of(raw: RawSet) -> list[tuple[str, int, str]]:
    return [(clip.key, clip.label, clip.partition) for clip in raw.clips]


@pytest.mark.parametrize("dataset", ["dfew", "ferv39k", "mafw"])
def test_split_files_that_another_program_saved(tmp_path: Path, dataset: str) -> None:
    root = getattr(rawkit, dataset)(tmp_path / "raw")
    expected = clips_of(SOURCES[dataset](root))
    files = {path: path.read_text() for path in root.rglob("*") if path.suffix in (".csv", ".txt")}
    for form, encoding in [(form, "utf-8") for form in FORMS] + [("semicolons", name) for name in ENCODINGS]:
        for path, text in files.items():
            path.write_bytes(FORMS[form](text).encode(encoding))
        assert clips_of(SOURCES[dataset](root)) == expected, (form, encoding)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name;label\n1;4\n", "got 'name;label', read as UTF-8 separated by semicolons"),
        ("name\tlabel\n".encode("utf-16"), r"got 'name\\tlabel', read as UTF-16 separated by tabs"),
        (b"video_name,label\n1,4\xff\n", "got one that begins as UTF-8 and is none at byte 20"),
        (b'video_name,label\n"1,4\n', "expected a table in UTF-8 separated by commas, got unexpected end of data"),
        (b"\n\n", "line 1: expected the header video_name,label, got '', read as UTF-8"),
    ],
)
def test_how_a_split_file_was_read_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    (root / DFEW_TEST.format(1)).write_bytes(content)
    with pytest.raises(DataError, match=says):
        dfew.read(root)
