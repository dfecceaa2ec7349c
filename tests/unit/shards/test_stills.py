"""Readers of stills and of AFEW on trees typed from the distributors' descriptions, and what they refuse."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfer.emotions import canonical_name
from dfer.errors import DataError
from dfer.store.format import Manifest, Media
from dfer.store.index import ClipEntry, read_index
from shards.build import build, check_numbering
from shards.shard import BuildOptions
from shards.sources import SOURCES, afew, affectnet, ckplus, ckplus48, fer2013, ferplus, kmu_fed, raf_db
from shards.sources.clips import BadClip, RawSet, frames_of
from shards.verify import verify
from tests.unit.shards import stillkit
from tests.unit.shards.stillkit import HASH, classes, fill, write


def built(raw: RawSet, out: Path, *, media: Media | None = None, allow_missing: int = 0) -> dict[str, bytes]:
    """Build shards, verify them, and return the stored picture of every still by its key."""
    options = BuildOptions(media=media or raw.media, max_side=raw.max_side)
    manifest = build(raw, str(out), options, progress=False, allow_missing=allow_missing).manifest
    verify(str(out), progress=False)
    stored = {}
    for entry, tar in entries(out, manifest):
        ((at, size), *_) = entry.frame_spans()
        stored[entry.key] = tar[at : at + size]
    return stored


def entries(out: Path, manifest: Manifest) -> list[tuple[ClipEntry, bytes]]:
    found = []
    for shard in manifest.shards:
        data = (out / shard.index_path).read_bytes()
        index = read_index(data, where="i", shard=shard, num_classes=len(manifest.classes))
        found += [(index.entry(row), (out / shard.path).read_bytes()) for row in range(len(index))]
    return found


def pixels(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def refused(read: Callable[[Path], RawSet], root: Path, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(root)
    assert caught.value.exit_code == 3


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "dataset", ["raf_db", "affectnet", "fer2013", "ferplus", "ckplus", "ckplus48", "kmu_fed", "afew"]
)
def test_a_folder_of_something_else(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "holiday").mkdir()
    refused(SOURCES[dataset], tmp_path, "expected .*got (a folder with holiday|none)")
    refused(SOURCES[dataset], tmp_path / "absent", "expected the folder of .*, got nothing there. Correct the path")


# RAF-DB

RAF = {
    "train_00001": ("train", "sadness"),
    "train_00002": ("train", "happiness"),
    "test_0001": ("test", "surprise"),
    "test_0002": ("test", "neutral"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("line", ["{} {}", "{}\t{}", "{}\t{}\ttrain", "{}\ttrain\t{}"])
def test_raf_db_in_its_forms_of_writing(tmp_path: Path, line: str, encoding: str) -> None:
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    path = root / "basic/EmoLabel/list_patition_label.txt"
    rows = [text.split() for text in path.read_text().splitlines()]
    text = "\r\n".join(line.replace("train", name.partition("_")[0]).format(name, number) for name, number in rows)
    write(path, text, encoding)
    raw = raf_db.read(root)
    assert classes(raw) == RAF and raw.media == "jpeg" and raw.notes == ()
    assert [frame.name for clip in raw.clips for frame in frames_of(clip)] == [f"{key}_aligned.jpg" for key in RAF]


@pytest.mark.parametrize("moved", ["basic/basic", "RAF-DB/basic", "."])
def test_raf_db_in_doubled_folders(tmp_path: Path, moved: str) -> None:
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    shutil.move(root / "basic", tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", root / moved, dirs_exist_ok=True)
    assert classes(raf_db.read(root)) == RAF


def test_raf_db_pictures_are_kept_as_delivered(tmp_path: Path) -> None:
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    stored = built(raf_db.read(root), tmp_path / "out")
    assert stored["test_0001"] == (root / "basic/Image/aligned/test_0001_aligned.jpg").read_bytes()


def test_raf_db_whole_pictures_are_named_as_such(tmp_path: Path) -> None:
    raw = raf_db.read(stillkit.raf_db(tmp_path / "RAF-DB", images="basic/Image/original", end=".jpg"))
    assert classes(raw) == RAF and "holds whole pictures, not faces" in raw.notes[0]


def test_raf_db_in_class_folders(tmp_path: Path) -> None:
    for part, number, name in (("train", 5, "train_00001"), ("train", 4, "train_00002"), ("test", 1, "test_0001")):
        fill(tmp_path / f"DATASET/{part}/{number}", f"{name}_aligned.jpg")
    write(tmp_path / "train_labels.csv", "image,label\n")
    assert classes(raf_db.read(tmp_path)) == {key: RAF[key] for key in ("train_00001", "train_00002", "test_0001")}
    fill(tmp_path / "DATASET/train/1", "train_00001_aligned.jpg")
    refused(raf_db.read, tmp_path, "expected every picture in one folder, got .*train_00001_aligned.jpg as well")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("train_00001.jpg 5", "train_00001.jpg 0", r"line 1: expected a label 1..7 \(1 surprise, 2 fear.*got '0'"),
        ("train_00001.jpg 5", "train_00001.jpg 11", "got '11'.*compound emotions and lists that number from 0"),
        ("train_00001.jpg 5", "train_00001.jpg", "expected no header, but a picture and its label"),
        ("train_00001.jpg 5", "train_00001.jpg 5 test", "got 'train_00001.jpg 5 test'. The part, train or test"),
        ("train_00001.jpg 5", "name label", "expected no header"),
        ("train_00002.jpg 4", "train_00001.jpg 4", "expected every clip once, got train_00001 a second time"),
    ],
)
def test_raf_db_refuses(tmp_path: Path, old: str, new: str, says: str) -> None:
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    edit(root / "basic/EmoLabel/list_patition_label.txt", old, new)
    refused(raf_db.read, root, says)


def test_raf_db_without_pictures_or_with_missing_ones(tmp_path: Path) -> None:
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    (root / "basic/Image/aligned/test_0002_aligned.jpg").unlink()
    with pytest.raises(BadClip, match="no picture"):
        frames_of(raf_db.read(root).clips[3])
    (root / "basic/Image/aligned/test_0002_aligned.jpg").mkdir()
    with pytest.raises(BadClip, match="no picture but something else of its name"):
        frames_of(raf_db.read(root).clips[3])
    with pytest.raises(DataError, match="test_0002: no picture but"):
        built(raf_db.read(root), tmp_path / "out")
    shutil.rmtree(root / "basic/Image")
    refused(raf_db.read, root, "expected RAF-DB's pictures at basic/Image/aligned or")


def test_numbers_of_another_order_are_refused_by_their_totals(tmp_path: Path) -> None:
    """RAF-DB's training totals under AffectNet's numbering, and nearly so."""
    counts = {1: 4772, 2: 1982, 3: 1290, 4: 281, 5: 717, 6: 700, 7: 2524}
    rows = [f"train_{n:05d}.jpg {label}" for n, label in enumerate(x for x, c in counts.items() for _ in range(c))]
    root = stillkit.raf_db(tmp_path / "RAF-DB")
    write(root / "basic/EmoLabel/list_patition_label.txt", "\n".join([*rows, "test_0001.jpg 1"]))
    with pytest.raises(DataError, match="raf_db train: expected the published number of clips of each class, got the"):
        check_numbering(raf_db.read(root))


# AffectNet

LONG = f"{HASH[:40]}/{HASH[40:]}"
BACK = HASH[::-1]
AFFECTNET = {
    f"1/{LONG}": ("train", "happiness"),
    "1/two": ("train", "neutral"),
    "689/three": ("train", "contempt"),
    f"3/{BACK[:40]}/{BACK[40:]}": ("val", "anger"),
    "3/b": ("val", "surprise"),
}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("lists", ["Manually_Annotated_file_lists/", ""])
def test_affectnet_of_the_original_release(tmp_path: Path, lists: str, header: bool) -> None:
    raw = affectnet.read(stillkit.affectnet(tmp_path / "AffectNet", header=header, lists=lists))
    assert classes(raw) == AFFECTNET
    assert [note.split()[0] for note in raw.notes] == ["2", "2", "1"]
    assert [note.partition(" ")[2][:24] for note in raw.notes] == [
        "pictures are left out: n",
        "pictures have no face bo",
        "rows repeat another one,",
    ]
    by_key = {clip.key: clip for clip in raw.clips}
    assert by_key[f"1/{LONG}"].faces == ((10.0, 4.0, 20.0, 16.0),)
    assert by_key["1/two"].faces is None and by_key[f"3/{BACK[:40]}/{BACK[40:]}"].faces is None
    assert [frame.name for frame in frames_of(by_key["3/b"])] == ["b.TIF"]


def test_affectnet_faces_are_cut_out_along_their_boxes(tmp_path: Path) -> None:
    root = stillkit.affectnet(tmp_path / "AffectNet")
    stored = built(affectnet.read(root), tmp_path / "out", media="png")
    images = root / "Manually_Annotated_Images"
    # Left 2, top 3, width 8, height 6 of a PNG, which loses nothing.
    np.testing.assert_array_equal(
        pixels(stored["689/three"]), pixels((images / "689/three.png").read_bytes())[3:9, 2:10]
    )
    np.testing.assert_array_equal(pixels(stored["3/b"]), pixels((images / "3/b.TIF").read_bytes())[:4, :4])
    assert pixels(stored[f"1/{LONG}"]).shape == (16, 20, 3)
    assert pixels(stored["1/two"]).shape == (40, 42, 3), "without a box the whole picture"


def test_affectnet_picture_of_a_kind_that_is_not_read(tmp_path: Path) -> None:
    root = stillkit.affectnet(tmp_path / "AffectNet")
    edit(root / "Manually_Annotated_file_lists/validation.csv", "b.TIF", "b.GIF")
    (root / "Manually_Annotated_Images/3/b.TIF").rename(root / "Manually_Annotated_Images/3/b.GIF")
    (clip,) = [clip for clip in affectnet.read(root).clips if clip.key == "3/b"]
    with pytest.raises(BadClip, match=r"a picture of a kind that is not read \(.GIF\)"):
        frames_of(clip)


def test_affectnet_box_that_leaves_the_picture(tmp_path: Path) -> None:
    root = stillkit.affectnet(tmp_path / "AffectNet")
    path = root / "Manually_Annotated_file_lists/training.csv"
    edit(path, "three.png,2,3,8,6", "three.png,-2,-3,8,6")
    assert pixels(built(affectnet.read(root), tmp_path / "a")["689/three"]).shape == (3, 6, 3)
    edit(path, "three.png,-2,-3,8,6", "three.png,99,99,8,6")
    with pytest.raises(DataError, match=r"689/three: frame three.png has its face box outside of the picture"):
        built(affectnet.read(root), tmp_path / "b")


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "training",
            "1;2,7,0,0",
            "1;2,11,0,0",
            "line 4: expected an expression out of 0 neutral, .*10 no face, got '11'",
        ),
        ("training", "1;2,7,0,0", "1;2,happy,0,0", "got 'happy'"),
        ("training", "689/three.png", "../three.png", "line 4: expected a picture such as"),
        ("training", "three.png,2,", "three.png,x,", "its face box in four numbers"),
        ("training", "face_width", "width", "expected columns .*, got no face_width"),
        (
            "training",
            "1/two.JPG,-1,-1,-1,-1,1;2,0",
            "689/three.png,-1,-1,-1,-1,1;2,0",
            "one expression a picture, got two",
        ),
        (
            "validation",
            "3/b.TIF",
            "689/three.png",
            "expected every picture in one list, got 689/three.png in training.csv",
        ),
    ],
)
def test_affectnet_refuses(tmp_path: Path, file: str, old: str, new: str, says: str) -> None:
    root = stillkit.affectnet(tmp_path / "AffectNet")
    edit(root / f"Manually_Annotated_file_lists/{file}.csv", old, new)
    refused(affectnet.read, root, says)


@pytest.mark.parametrize("content", [b"", stillkit.AFFECTNET_HEADER.encode(), b"\xff\xfe\x00", b'1/a.jpg,"'])
def test_affectnet_lists_without_a_picture(tmp_path: Path, content: bytes) -> None:
    root = stillkit.affectnet(tmp_path / "AffectNet")
    write(root / "Manually_Annotated_file_lists/training.csv", content)
    refused(affectnet.read, root, r"training.csv: expected (at least one picture|a table in .* separated by commas)")


def test_affectnet_of_the_resized_release(tmp_path: Path) -> None:
    raw = affectnet.read(stillkit.resized(tmp_path / "AffectNet"))
    assert classes(raw) == {
        "train/0": ("train", "happiness"),
        "train/7": ("train", "contempt"),
        "val/0": ("val", "neutral"),
        "val/3": ("val", "anger"),
    }
    assert raw.notes == ("1 pictures are left out: none, uncertain or no face",)
    assert len(built(raw, tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (stillkit.npy("|O", "()", b"\x80\x04N."), "got object of shape"),
        (stillkit.npy("<f8", "(999999999,)", b"\0" * 8), r"got float64 of shape \(999999999,\)"),
        (stillkit.npy("<i8", "()", b"\0"), "got int64 of shape"),
        (b"cos\nsystem\n(S'x'\ntR.", "got a file of something else"),
        (b"\x93NUMPY\x01\x00\x08\x00__import", "got a damaged header"),
        (stillkit.npy("<U1", "()", "x".encode("utf-32-le")), "expected an expression out of .* got 'x'"),
        (b"\0" * 5000, "expected a .npy of one number or word, got more than"),
    ],
)
def test_affectnet_annotations_that_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    root = stillkit.resized(tmp_path / "AffectNet")
    write(root / "train_set/annotations/7_exp.npy", data)
    refused(affectnet.read, root, says)


def test_affectnet_without_an_annotation(tmp_path: Path) -> None:
    root = stillkit.resized(tmp_path / "AffectNet")
    (root / "train_set/annotations/7_exp.npy").unlink()
    refused(affectnet.read, root, "expected N_exp.npy for every picture, got none for 7")


@pytest.mark.parametrize(("names", "val"), [(("0", "7", "9"), "val"), (("Neutral", "contempt", "8"), "test")])
def test_affectnet_in_class_folders(tmp_path: Path, names: tuple[str, ...], val: str) -> None:
    for part in ("train", val):
        for name in names:
            fill(tmp_path / part / name, "image0000001.jpg", "b-2.JPEG")
    raw = affectnet.read(tmp_path)
    assert sorted(classes(raw).values()) == sorted(
        (part, word) for part in ("train", "val") for word in ("neutral", "contempt") for _ in range(2)
    )
    (tmp_path / "train/11").mkdir()
    refused(affectnet.read, tmp_path, "expected a class of AffectNet as its name .*or a number out of 0 neutral.*'11'")


def test_affectnet_folder_test_beside_val_is_left_out(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path / part / "3", "a.jpg")
    raw = affectnet.read(tmp_path)
    assert {clip.partition for clip in raw.clips} == {"train", "val"} and "/test is left out" in raw.notes[0]
    fill(tmp_path / "train/3", "odd name.jpg")
    refused(affectnet.read, tmp_path, "expected names of letters, digits, _ and -, got 'train/3/odd name'. Rename")


# FER2013

FER = {
    "00000": ("train", "anger"),
    "00001": ("train", "happiness"),
    "00002": ("public", "neutral"),
    "00003": ("private", "surprise"),
}


@pytest.mark.parametrize(
    "make",
    [
        stillkit.fer2013,
        stillkit.icml,
        lambda root: stillkit.fer2013(root, encoding="utf-8-sig", end="\r\n"),
        lambda root: stillkit.fer2013(root, name="fer2013/fer2013/fer2013.csv"),
    ],
    ids=["fer2013.csv", "icml_face_data.csv", "BOM and CRLF", "doubled folder"],
)
def test_fer2013_numbers_become_png(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    raw = fer2013.read(make(tmp_path / "raw"))
    assert classes(raw) == FER and raw.media == "png"
    assert set(raw.protocols) == {"private", "public"}
    (fold,) = raw.protocols["private"].folds
    assert fold.validation and (fold.test.partitions, fold.validation.partitions) == (("private",), ("public",))
    for row, data in enumerate(built(raw, tmp_path / "out")[key] for key in FER):
        assert Image.open(io.BytesIO(data)).mode == "L"
        np.testing.assert_array_equal(pixels(data, "L").ravel(), stillkit.pixels(row))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("emotion,pixels,Usage\n", "", "line 1: expected the header emotion,pixels,Usage"),
        ("\n3,", "\n7,", r"line 3: expected an emotion 0..6 \(0 angry, 1 disgust.*got '7'"),
        ("\n3,", "\nhappy,", "got 'happy'"),
        (",Training\n3", ",Test\n3", "line 2: expected Training, PublicTest or PrivateTest, got 'Test'"),
        (",Training\n3", "\n3", "line 2: expected an emotion, the pixels and a use, got 2 cells"),
    ],
)
def test_fer2013_refuses(tmp_path: Path, old: str, new: str, says: str) -> None:
    root = stillkit.fer2013(tmp_path)
    edit(root / "fer2013.csv", old, new)
    refused(fer2013.read, root, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n", "expected a header and at least one picture, got none. .*placeholder"),
        (b"emotion,pixels,Usage\n", "at least one picture, got none"),
        ("emotion,pixels,Usage\n".encode("utf-16"), "got UTF-16 or no text. Save the file as UTF-8"),
        (
            b"emotion,pixels,Usage\n0," + b"1 " * 40_000,
            "line 2: expected a line of text of at most 65,536 bytes, got a lo",
        ),
    ],
)
def test_fer2013_files_that_are_no_csv_of_pictures(tmp_path: Path, content: bytes, says: str) -> None:
    write(tmp_path / "fer2013.csv", content)
    refused(fer2013.read, tmp_path, says)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (" 2 ", " 256 ", "a grey value of 256, more than 255"),
        (" 2 ", " -2 ", "2304 grey values, or others than whole numbers, in place of 48x48"),
        (" 2 ", " ", "2303 grey values"),
    ],
)
def test_fer2013_pixels_that_are_none_exclude_the_picture(tmp_path: Path, old: str, new: str, says: str) -> None:
    root = stillkit.fer2013(tmp_path)
    edit(root / "fer2013.csv", old, new)
    with pytest.raises(DataError, match=f"00000: {says}"):
        built(fer2013.read(root), tmp_path / "out")


@pytest.mark.parametrize("named", [True, False])
def test_fer2013_in_folders(tmp_path: Path, named: bool) -> None:
    """Alphabetical folders: 4, 5, 6 of the csv are others than the fifth to seventh folder."""
    fill(tmp_path / "train/angry", "Training_3908.jpg", side=48)
    fill(tmp_path / "train/neutral", "Training_4.jpg", side=48)
    tests = ("PublicTest_1.jpg", "PrivateTest_2.jpg") if named else ("1.jpg", "2.jpg")
    fill(tmp_path / "test/surprise", *tests, side=48)
    raw = fer2013.read(tmp_path)
    parts = ("private", "public") if named else ("test", "test")
    assert classes(raw) == {
        "train/angry/Training_3908": ("train", "anger"),
        "train/neutral/Training_4": ("train", "neutral"),
        f"test/surprise/{tests[1][:-4]}": (parts[0], "surprise"),
        f"test/surprise/{tests[0][:-4]}": (parts[1], "surprise"),
    }
    assert set(raw.protocols) == ({"private", "public"} if named else {"published"})
    assert [note[:30] for note in raw.notes] == ([] if named else ["the 2 pictures of test/ are Pu"])
    assert raw.media == "jpeg" and len(built(raw, tmp_path / "out")) == 4
    (tmp_path / "train/4").mkdir()
    refused(fer2013.read, tmp_path, "expected a class of FER2013 as its name .*, got '4'")


# FERPlus

VOTED = {
    "00000": ("train", None),
    "00002": ("validation", None),
    "00003": ("test", None),
    "00004": ("test", "contempt"),
}
FERPLUS_NOTES = [
    "2 pictures have no label: no column has more than half of the votes",
    "1 pictures have no label: unknown or NF has more than half of the votes",
    "1 rows have no image name, and are left out",
]


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        # neutral happiness surprise sadness anger disgust fear contempt unknown NF
        ((4, 3, 3, 0, 0, 0, 0, 0, 0, 0), None),
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), None),
        ((5, 3, 2, 0, 0, 0, 0, 0, 0, 0), None),
        ((6, 4, 0, 0, 0, 0, 0, 0, 0, 0), "neutral"),
        ((0, 4, 1, 1, 1, 1, 1, 1, 0, 0), "happiness"),  # single votes do not count
        ((0, 4, 3, 1, 1, 1, 0, 0, 0, 0), "happiness"),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None),
        ((0, 3, 0, 0, 0, 0, 0, 0, 7, 0), "unknown"),
        ((0, 3, 0, 0, 0, 0, 0, 0, 4, 3), None),
        ((0, 0, 0, 0, 0, 0, 0, 0, 0, 10), "nf"),
    ],
)
def test_ferplus_takes_the_majority_of_the_release(votes: tuple[int, ...], winner: str | None) -> None:
    """By hand after _process_data of its src/ferplus.py, mode majority."""
    columns = [canonical_name(name) for name in ferplus.VOTES]
    row = ferplus.Voted(number=0, name="a.png", partition="train", votes=dict(zip(columns, votes, strict=True)))
    assert row.winner == (winner and canonical_name(winner))


def test_ferplus_shards_of_an_older_rule_are_built_again(tmp_path: Path) -> None:
    """Earlier versions took the column with the most votes."""
    raw = ferplus.read(stillkit.ferplus(tmp_path / "FERPlus"))
    neutral = raw.emotions.index("neutral")
    older = replace(
        raw, clips=tuple(replace(clip, label=neutral) if clip.key == "00000" else clip for clip in raw.clips)
    )
    options = BuildOptions(media=raw.media, max_side=raw.max_side)
    counts = [
        build(each, str(tmp_path / "out"), options, progress=False).manifest.counts["train"][neutral]
        for each in (older, raw)
    ]
    assert counts == [1, 0]


def test_ferplus_with_folders(tmp_path: Path) -> None:
    root = stillkit.ferplus(tmp_path / "FERPlus")
    raw = ferplus.read(root)
    assert classes(raw) == VOTED
    assert [note.partition(" (")[0] for note in raw.notes] == FERPLUS_NOTES
    # happiness sadness neutral anger surprise disgust fear contempt
    assert [clip.votes for clip in raw.clips] == [
        (0, 1, 4, 3, 0, 2, 0, 0),
        (5, 0, 0, 0, 5, 0, 0, 0),
        (0, 1, 0, 0, 0, 0, 0, 2),
        (0, 0, 0, 0, 1, 1, 0, 8),
    ]
    stored = built(raw, tmp_path / "out")
    assert stored["00004"] == (root / "FER2013Test/fer0000003.png").read_bytes()


def test_ferplus_rows_follow_fer2013_csv(tmp_path: Path) -> None:
    """A row without an image name has pixels: the next picture is that of the next row."""
    write(tmp_path / "fer2013new.csv", stillkit.FERPLUS, "utf-8-sig")
    usages = ("Training", "Training", "PublicTest", "PrivateTest", "PrivateTest")
    rows = [f"0,{' '.join(map(str, stillkit.pixels(row)))},{usage}\n" for row, usage in enumerate(usages)]
    write(tmp_path / "fer2013.csv", "emotion,pixels,Usage\n" + "".join(rows))
    raw = ferplus.read(tmp_path)
    assert classes(raw) == VOTED
    stored = built(raw, tmp_path / "out")
    np.testing.assert_array_equal(pixels(stored["00002"], "L").ravel(), stillkit.pixels(2))
    edit(tmp_path / "fer2013.csv", ",PublicTest", ",Training")
    refused(
        ferplus.read, tmp_path, "expected the rows of fer2013new.csv, got another use in row 2. The votes of FERPlus"
    )
    write(tmp_path / "fer2013.csv", "emotion,pixels,Usage\n" + "".join(rows[1:]))
    refused(ferplus.read, tmp_path, "got 4 rows for 5")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Usage,Image name", "Usage,Image", "expected the header Usage,Image name,neutral,.*NF, got 'Usage,Image,"),
        ("Training,fer", "Test,fer", "line 2: expected a use out of Training, PublicTest, PrivateTest, a name and ten"),
        ("4,0,0,1,3,2,0,0,0,0", "4,0,0,1,3,2,0,0,0,-1", "ten numbers of votes, got 'Training,"),
        ("4,0,0,1,3,2,0,0,0,0", "4,0,0,1,3,2,0,0,0", "ten numbers of votes"),
        ("fer0000000.png", "../fer0000000.png", "row 0: expected the name of a picture, got '../fer0000000.png'"),
    ],
)
def test_ferplus_refuses(tmp_path: Path, old: str, new: str, says: str) -> None:
    root = stillkit.ferplus(tmp_path)
    edit(root / "fer2013new.csv", old, new)
    refused(ferplus.read, root, says)


def test_ferplus_without_pictures(tmp_path: Path) -> None:
    root = stillkit.ferplus(tmp_path)
    edit(root / "fer2013new.csv", "0,0,1,0,0,1,0,8,0,0", "0,0,1,0,0,1,0,9,0,0")
    assert ferplus.read(root).notes[-1] == "1 rows have other than 10 votes"
    shutil.rmtree(root / "FER2013Valid")
    refused(ferplus.read, root, "expected the folders of all three parts, got no FER2013Valid")
    shutil.rmtree(root / "FER2013Test")
    shutil.rmtree(root / "FER2013Train")
    refused(ferplus.read, root, "expected FERPlus's pictures at fer2013.csv or")
    write(root / "fer2013new.csv", stillkit.FERPLUS.splitlines()[0])
    refused(ferplus.read, root, "expected at least one picture, got none")


# CK+ and CK+48


def ck_keys(sequence: str, *numbers: int) -> list[str]:
    return [f"{sequence}_{number:08d}" for number in numbers]


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ("Emotion", "cohn-kanade-images"),
        ("Emotion/Emotion", "extended-cohn-kanade-images/cohn-kanade-images"),
        ("Emotion_labels/Emotion", "cohn-kanade-images/cohn-kanade-images"),
    ],
)
def test_ckplus(tmp_path: Path, labels: str, images: str) -> None:
    raw = ckplus.read(stillkit.ckplus(tmp_path / "CK+", labels=labels, images=images))
    expected = dict.fromkeys(ck_keys("S005_001", 9, 10, 11), ("all", "disgust"))
    expected |= dict.fromkeys(ck_keys("S010_002", 12, 13, 14), ("all", "surprise"))
    expected |= dict.fromkeys(ck_keys("S999_003", 1, 2), ("all", "contempt"))
    assert classes(raw) == expected
    assert {clip.subject for clip in raw.clips} == {"S005", "S010", "S999"}
    assert {clip.source for clip in raw.clips} == {"S005_001", "S010_002", "S999_003"}
    assert all(frames_of(clip)[0].name == f"{clip.key}.png" for clip in raw.clips)
    assert "holds whole pictures, not faces" in raw.notes[0] and len(raw.notes) == 1


def test_ckplus_frames_are_kept_as_delivered(tmp_path: Path) -> None:
    root = stillkit.ckplus(tmp_path / "CK+")
    path = root / "cohn-kanade-images/S005/001/S005_001_00000011.png"
    grey = np.random.default_rng(1).integers(0, 256, (490, 640), np.uint8)
    Image.fromarray(grey).save(path)
    assert built(ckplus.read(root), tmp_path / "out")["S005_001_00000011"] == path.read_bytes()


def test_ckplus_frames_after_the_peak_and_a_peak_that_is_not_there(tmp_path: Path) -> None:
    root = stillkit.ckplus(tmp_path / "CK+")
    folder = root / "Emotion/S005/001"
    (folder / "S005_001_00000011_emotion.txt").rename(folder / "S005_001_00000010_emotion.txt")
    (root / "cohn-kanade-images/S010/002/S010_002_00000014.png").unlink()
    write(root / "Emotion/S010/006/S010_006_00000008_emotion.txt", "   0.0000000e+00\n")
    raw = ckplus.read(root)
    assert [clip.key for clip in raw.clips[:3]] == ck_keys("S005_001", 8, 9, 10)
    assert [clip.key for clip in raw.clips[3:6]] == ck_keys("S010_002", 12, 13, 14)
    with pytest.raises(DataError, match="S010_002_00000014: no picture"):
        built(raw, tmp_path / "out")
    assert raw.notes[1] == "1 sequences labelled neutral are left out"
    shutil.rmtree(root / "cohn-kanade-images/S005")
    assert [clip.key for clip in ckplus.read(root).clips[:3]] == ck_keys("S005_001", 8, 9, 10)


@pytest.mark.parametrize("text", ["   8.0000000e+00\n", "3.5", "disgust", "", "3 4", "-3"])
def test_ckplus_labels_of_other_numbers(tmp_path: Path, text: str) -> None:
    root = stillkit.ckplus(tmp_path / "CK+")
    write(root / "Emotion/S005/001/S005_001_00000011_emotion.txt", text)
    refused(
        ckplus.read, root, r"_emotion.txt: expected one number out of 1 anger, 2 contempt, .*Use the labels of the r"
    )


def test_ckplus_labels_that_do_not_belong_there(tmp_path: Path) -> None:
    root = stillkit.ckplus(tmp_path / "CK+")
    write(root / "Emotion/S005/001/S005_001_00000010_emotion.txt", "3")
    refused(ckplus.read, root, "expected one label of sequence S005_001, got 2 of them")
    (root / "Emotion/S005/001/S005_001_00000010_emotion.txt").rename(
        root / "Emotion/S010/006/S005_001_00000010_emotion.txt"
    )
    refused(ckplus.read, root, "expected one label of sequence S010_006, got S005_001_00000010_emotion.txt")
    for path in (root / "Emotion").rglob("*_emotion.txt"):
        path.unlink()
    refused(ckplus.read, root, "expected at least one labelled sequence, got none")


@pytest.mark.parametrize("base", ["CK+48", "CK+48/CK+48", "."])
def test_ckplus48(tmp_path: Path, base: str) -> None:
    root = stillkit.ckplus48(tmp_path / "raw", base=base)
    raw = ckplus48.read(root)
    assert classes(raw) == {
        **dict.fromkeys(ck_keys("S010_004", 17, 18, 19), ("all", "anger")),
        "S138_008_00000007": ("all", "contempt"),
        "S011_006_00000011": ("all", "happiness"),
    }
    assert raw.media == "png" and raw.clips[0].subject == "S010" and raw.clips[0].source == "S010_004"
    stored = built(raw, tmp_path / "out")
    assert stored["S138_008_00000007"] == (root / base / "contempt/S138_008_00000007.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CK+48/happy/17.png", "expected a name such as S010_004_00000017.png: person, sequence, frame, got '17.png'"),
        ("CK+48/happy/S010_004_00000017.png", "expected every picture in one class, got .*as well"),
        ("CK+48/neutral/S010_004_00000001.png", "expected a class of CK.48 as its name .*got 'neutral'"),
    ],
)
def test_ckplus48_refuses(tmp_path: Path, name: str, says: str) -> None:
    root = stillkit.ckplus48(tmp_path)
    fill(root, name)
    refused(ckplus48.read, root, says)


def test_ckplus48_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "CK+48").mkdir()
    refused(ckplus48.read, tmp_path, "expected a folder for each class, got none")
    (tmp_path / "CK+48/anger").mkdir()
    refused(ckplus48.read, tmp_path, "expected at least one picture, got none")


# KMU-FED

KMU = {
    "01_AN_mr_005": ("all", "anger"),
    "01_AN_mr_006": ("all", "anger"),
    "05_HA_uj_080": ("all", "happiness"),
    "03_HA_s02_036": ("all", "happiness"),
    "12_SU_s02_001": ("all", "surprise"),
}


@pytest.mark.parametrize("base", ["KMU-FED", "KMU-FED/KMU-FED", "."])
def test_kmu_fed(tmp_path: Path, base: str) -> None:
    raw = kmu_fed.read(stillkit.kmu_fed(tmp_path / "raw", base=base))
    assert classes(raw) == KMU
    assert {clip.subject for clip in raw.clips} == {"01", "05", "03", "12"}
    assert raw.clips[0].source == "01_AN_mr"
    assert raw.notes[1] == (
        "2 pictures are byte copies of others, such as 1_AN_mr_005.jpg of 01_AN_mr_005.jpg, and are left out"
    )
    assert len(built(raw, tmp_path / "out")) == 5


def test_kmu_fed_in_class_folders(tmp_path: Path) -> None:
    root = stillkit.kmu_fed(tmp_path / "raw")
    for path in (root / "KMU-FED").glob("*.jpg"):
        folder = root / "KMU-FED" / {"AN": "anger", "HA": "happy", "SU": "surprise"}[path.name.split("_")[1]]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    assert classes(kmu_fed.read(root)) == KMU
    (root / "KMU-FED/anger/01_AN_mr_005.jpg").rename(root / "KMU-FED/happy/01_AN_mr_005.jpg")
    refused(kmu_fed.read, root, "expected a picture of happiness, got one of anger by its name")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "01_NE_mr_005.jpg",
            "expected a name such as 01_AN_mr_005.jpg, with a code out of AN, DI, FE, .*'01_NE_mr_005",
        ),
        ("photo.jpg", "The label is in the name"),
        ("1_HA_uj_080.jpg", None),
        ("5_HA_uj_080.jpg", "expected a byte copy of .*05_HA_uj_080.jpg, got another picture"),
    ],
)
def test_kmu_fed_refuses(tmp_path: Path, name: str, says: str | None) -> None:
    root = stillkit.kmu_fed(tmp_path)
    write(root / "KMU-FED" / name, b"another picture")
    if says is None:
        assert len(kmu_fed.read(root).clips) == 6
    else:
        refused(kmu_fed.read, root, says)


# AFEW


@pytest.mark.parametrize(
    ("train", "val"), [("Train_AFEW", "Val_AFEW"), ("train_afew", "val_afew"), ("train/train", "val"), ("Train", "Val")]
)
def test_afew(tmp_path: Path, train: str, val: str) -> None:
    raw = afew.read(stillkit.afew(tmp_path / "AFEW", train=train, val=val))
    assert classes(raw) == {
        "013736360": ("train", "anger"),
        "000046280": ("train", "happiness"),
        "000149120": ("train", "happiness"),
        "012949687": ("val", "neutral"),
    }
    assert [[frame.name for frame in frames_of(clip)] for clip in raw.clips] == [["001.jpg", "002.jpg", "010.jpg"]] * 4
    assert raw.options == {"source_frames": "aligned faces"}


def test_afew_clips_without_faces_are_missing(tmp_path: Path) -> None:
    root = stillkit.afew(tmp_path / "AFEW")
    shutil.rmtree(root / "Train_AFEW/AlignedFaces_LBPTOP_Points/Faces/013736360")
    with pytest.raises(DataError, match="013736360: no folder"):
        built(afew.read(root), tmp_path / "out")
    assert len(built(afew.read(root), tmp_path / "out", allow_missing=1)) == 3


def test_afew_frames_in_class_folders(tmp_path: Path) -> None:
    root = stillkit.afew(tmp_path / "AFEW")
    shutil.rmtree(root / "Val_AFEW/AlignedFaces_LBPTOP_Points_Val")
    fill(root / "Val_AFEW/Neutral/012949687", "0000001.jpg")
    raw = afew.read(root)
    assert frames_of(raw.clips[3])[0].name == "0000001.jpg"
    assert raw.options == {"source_frames": "aligned faces and frames of the class folders"}


def test_afew_clips_under_two_emotions_or_in_two_parts(tmp_path: Path) -> None:
    root = stillkit.afew(tmp_path / "AFEW")
    write(root / "Train_AFEW/Neutral/013736360.avi", b"")
    refused(afew.read, root, "expected every clip in one class, got 013736360 in Angry and in Neutral")
    (root / "Train_AFEW/Neutral/013736360.avi").rename(root / "Val_AFEW/Neutral/000046280.avi")
    refused(afew.read, root, "expected every clip in one part, got 000046280 in train and in val")
    shutil.rmtree(root / "Val_AFEW/Neutral")
    refused(afew.read, root, "expected at least one clip, got none")
