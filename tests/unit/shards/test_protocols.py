"""Raw sets with what only some data sets have: PNG, no labels, facts of clips, face boxes, protocols of keys."""

import gc
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from dfer.emotions import Emotions, emotions_of
from dfer.errors import DataError, UsageError
from dfer.store.format import FaceSettings, Manifest, Media, Subset
from dfer.store.index import ClipEntry, read_index
from shards.__main__ import main
from shards.build import build
from shards.shard import BuildOptions
from shards.show import describe
from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.verify import verify
from tests.decoded import decode
from tests.unit.shards import rawkit

OWN = emotions_of(["sleepy", "awake"])


def clip(folder: Path, number: int, **facts: Any) -> RawClip:
    """A clip of one grey PNG of 48 pixels, as FER2013 has them."""
    key = f"{number:05d}"
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)
    (folder / key).mkdir(parents=True)
    Image.fromarray(pixels).save(folder / key / "1.png")
    fields = {"key": key, "label": number % 2, "partition": "all", "folder": folder / key}
    return RawClip(**{**fields, **facts})


def keys(*numbers: int) -> RawSubset:
    return RawSubset(keys=tuple(f"{number:05d}" for number in numbers))


def stills(folder: Path, **changes: Any) -> RawSet:
    clips = (
        clip(folder, 1, subject="anna", votes=(1, 9), text="She looks up.", faces=((1.0, 2.0, 30.0, 40.0),)),
        clip(folder, 2, subject="ben", source="film 7"),
        clip(folder, 3, label=None, subject="anna"),
        clip(folder, 4),
    )
    subjects = RawProtocol(
        source="this test",
        folds=(
            RawFold(train=keys(1, 3), test=keys(2)),
            RawFold(train=keys(2), test=keys(1, 3), validation=keys(4)),
        ),
    )
    fields: dict[str, Any] = {
        "dataset": "stills",
        "emotions": OWN,
        "clips": clips,
        "media": "png",
        "protocols": {"subjects": subjects},
        "faces": FaceSettings(finder="by hand", margin=0.1),
        "licence": "for research",
    }
    return RawSet(**{**fields, **changes})


def built(raw: RawSet, out: Path, *, media: Media = "png", **more: Any) -> Manifest:
    return build(raw, str(out), BuildOptions(media=media), progress=False, **more).manifest


def entries(out: Path, manifest: Manifest) -> dict[str, ClipEntry]:
    found = {}
    for shard in manifest.shards:
        data = (out / shard.index_path).read_bytes()
        index = read_index(data, where="i", shard=shard, num_classes=len(manifest.classes))
        found.update({entry.key: entry for entry in map(index.entry, range(len(index)))})
    return found


# webdataset leaves the closing of its files to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def read_by_webdataset(out: Path) -> dict[str, Any]:
    """Samples by key, as plain webdataset reads them."""
    samples = list(webdataset.WebDataset(str(out / "all/00000.tar"), shardshuffle=False))
    gc.collect()
    return {sample["__key__"]: sample for sample in samples}


@pytest.fixture
def raw(tmp_path: Path) -> RawSet:
    return stills(tmp_path / "raw")


@UNCLOSED
def test_grey_pngs_of_48_pixels_survive_losslessly(raw: RawSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = built(raw, out)
    assert (manifest.media, manifest.frames.kept, manifest.frames.encoded) == ("png", 4, 0)
    tar = (out / "all/00000.tar").read_bytes()
    for key, entry in entries(out, manifest).items():
        ((at, size),) = entry.frame_spans()
        delivered = (tmp_path / "raw" / key / "1.png").read_bytes()
        assert tar[at : at + size] == delivered
        pixels = np.asarray(Image.open(io.BytesIO(delivered)).convert("RGB"))
        np.testing.assert_array_equal(decode(tar[at : at + size], size=48, where="x"), pixels)
    assert verify(str(out), progress=False).frames == 4
    assert read_by_webdataset(out)["00002"]["000.png"] == (tmp_path / "raw/00002/1.png").read_bytes()


@UNCLOSED
def test_facts_of_clips_are_in_index_and_json(raw: RawSet, tmp_path: Path) -> None:
    manifest = built(raw, tmp_path / "out")
    found = entries(tmp_path / "out", manifest)
    first = found["00001"]
    assert (first.label, first.subject, first.text, first.votes) == (1, "anna", "She looks up.", (1, 9))
    assert first.faces == ((1.0, 2.0, 30.0, 40.0),) and found["00002"].source == "film 7"
    assert (found["00003"].label, found["00004"].subject) == (None, None)
    said = {key: json.loads(sample["json"]) for key, sample in read_by_webdataset(tmp_path / "out").items()}
    assert said["00001"] == {
        "key": "00001",
        "num_frames": 1,
        "partition": "all",
        "label": 1,
        "class_name": "awake",
        "subject": "anna",
        "text": "She looks up.",
        "votes": [1, 9],
        "faces": [[1.0, 2.0, 30.0, 40.0]],
    }
    assert said["00003"] == {"key": "00003", "num_frames": 1, "partition": "all", "subject": "anna"}
    assert manifest.counts == {"all": (2, 1)}
    assert (manifest.faces, manifest.licence) == (raw.faces, "for research")


def test_protocols_of_keys_share_the_shards(raw: RawSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folds = built(raw, out).protocols["subjects"].folds
    sha256 = hashlib.sha256(b"00004\n").hexdigest()
    assert folds["2"].validation == Subset(keys="protocols/subjects.2.validation.txt", sha256=sha256)
    assert (out / "protocols/subjects.2.test.txt").read_text() == "00001\n00003\n"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert built(raw, out).protocols["subjects"].folds == folds
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before

    # Another protocol over the same clips makes no shard again, and lists that nobody names go.
    official = RawProtocol(source="release", folds=(RawFold(train=keys(1, 2), test=keys(3, 4)),))
    report = build(replace(raw, protocols={"official": official}), str(out), BuildOptions(media="png"), progress=False)
    assert (report.made.new, list(report.manifest.protocols)) == (0, ["official"])
    assert sorted(path.name for path in (out / "protocols").iterdir()) == [
        "official.1.test.txt",
        "official.1.train.txt",
    ]


def test_clips_that_cannot_be_packed_leave_the_lists(raw: RawSet, tmp_path: Path) -> None:
    (tmp_path / "raw/00002/1.png").write_bytes(b"no picture")
    (tmp_path / "raw/00003/1.png").unlink()
    manifest = built(raw, tmp_path / "out", allow_missing=2)
    assert manifest.protocols == {}  # neither fold has both training and test clips any more
    assert not (tmp_path / "out/protocols/subjects.1.test.txt").exists()


def test_show_tells_protocols_faces_and_what_has_no_label(raw: RawSet, tmp_path: Path) -> None:
    text = describe(built(raw, tmp_path / "out"))
    assert "frames: PNG, 4 kept as they were, 0 encoded" in text
    assert (
        "protocol subjects: 2 folds, testing on protocols/subjects.1.test.txt, protocols/subjects.2.test.txt (this"
        in text
    )
    assert "licence: for research" in text and "faces: found by by hand, margin 0.1" in text
    assert "clips without a label: 1" in text and "stills: 4 clips" in text


def test_a_set_without_classes_and_protocols(tmp_path: Path) -> None:
    clips = tuple(clip(tmp_path / "raw", number, label=None) for number in range(3))
    raw = RawSet(dataset="plain", emotions=Emotions(names=()), clips=clips)
    manifest = built(raw, tmp_path / "out", media="jpeg")
    assert (manifest.classes, manifest.counts, manifest.frames.encoded) == ((), {"all": ()}, 3)
    assert verify(str(tmp_path / "out"), progress=False).clips == 3
    assert "protocols: none, these shards cannot be split" in describe(manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain.update(media="jpeg"), "expected the plain file 0000"),
        (
            lambda plain: plain["protocols"]["subjects"]["folds"]["1"]["test"].update(sha256="0" * 64),
            "expected sha256 0",
        ),
        (
            lambda plain: plain["protocols"]["subjects"]["folds"]["1"].update(test={"partitions": ["all"]}),
            "fold 1 of subjects: 2 clips are in train and in test",
        ),
    ],
)
def test_verify_holds_the_protocols_to_the_clips(
    raw: RawSet, tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    path = tmp_path / "out/manifest.json"
    built(raw, tmp_path / "out")
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(DataError) as caught:
        verify(str(tmp_path / "out"), progress=False)
    assert says in str(caught.value)


def test_verify_finds_a_list_that_is_missing_or_names_others(raw: RawSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built(raw, out)
    (out / "protocols/subjects.1.test.txt").unlink()
    with pytest.raises(DataError, match=r"subjects\.1\.test\.txt: missing"):
        verify(str(out), progress=False)
    (out / "protocols/subjects.1.test.txt").write_bytes(b"nobody\n")
    plain = json.loads((out / "manifest.json").read_text())
    test = plain["protocols"]["subjects"]["folds"]["1"]["test"]
    test["sha256"] = hashlib.sha256(b"nobody\n").hexdigest()
    (out / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="fold 1 of subjects: test names clips that are not here"):
        verify(str(out), progress=False)


def with_fold(test: RawSubset) -> dict[str, Any]:
    return {"protocols": {"subjects": RawProtocol(source="x", folds=(RawFold(train=keys(1), test=test),))}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "../x"}, r"expected keys of up to four parts .* got '\.\./x' for \.\./x"),
        ({"key": "00002"}, "expected every clip once, got 00002 2 times"),
        ({"partition": "Fold 1"}, "expected plain names of partitions, got 'Fold 1'"),
        ({"label": 2}, r"expected a label in 0\.\.1, got 2 for 00001"),
        ({"votes": (1,)}, "expected a number of votes for each of 2 classes"),
        ({"votes": (1, -1)}, "expected a number of votes for each of 2 classes"),
        ({"faces": ((0.0, 0.0, 1.0, float("nan")),)}, "expected face boxes in pixels, got"),
        ({"text": "x" * 5000}, "expected a text of at most 4,096 letters, got 5000 for 00001"),
        ({"protocols": {}, "clips": ()}, "expected at least one clip, got none"),
        (with_fold(RawSubset()), "expected known partitions or keys in fold 1 of subjects, got neither"),
        (with_fold(RawSubset(partitions=("all",), keys=("00001",))), "got both"),
        (with_fold(RawSubset(partitions=("dev",))), "got dev"),
        (with_fold(RawSubset(keys=("nobody",))), "got nobody"),
        (with_fold(keys(2, 2)), "got one of them twice"),
        ({"protocols": {"A b": RawProtocol(source="x", folds=())}}, "expected plain names of protocols, got 'A b'"),
    ],
)
def test_what_the_format_does_not_hold_is_a_fault_of_the_source(
    raw: RawSet, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    if "protocols" in change:
        raw = replace(raw, **change)
    else:
        raw = replace(raw, clips=(replace(raw.clips[0], **change), *raw.clips[1:]), protocols={})
    with pytest.raises(DataError, match=rf"raw set stills: .*{says}.*Correct the source of the data set"):
        built(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_boxes_of_another_number_of_frames_exclude_the_clip(raw: RawSet, tmp_path: Path) -> None:
    odd = replace(raw.clips[0], faces=((0.0, 0.0, 1.0, 1.0),) * 2)
    with pytest.raises(DataError, match="00001: 2 face boxes for 1 frames"):
        built(replace(raw, clips=(odd, *raw.clips[1:])), tmp_path / "out")


def test_an_index_too_large_to_be_read_is_not_written(
    raw: RawSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.shard.MAX_JSON_BYTES", 100)
    with pytest.raises(
        UsageError, match=r"--clips-per-shard: expected fewer clips, got .* bytes of index for all/00000"
    ):
        built(raw, tmp_path / "out")


def test_the_media_of_a_build_belongs_to_its_options(raw: RawSet, tmp_path: Path) -> None:
    built(raw, tmp_path / "out")
    with pytest.raises(UsageError, match=r"expected a build of .*media jpeg.* got one of .*media png"):
        built(raw, tmp_path / "out", media="jpeg")


def test_the_command_line_chooses_the_media(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = rawkit.dfew(tmp_path / "DFEW")
    assert main(["build", "dfew", str(root), str(tmp_path / "out"), "--media", "png", "--no-progress"]) == 0
    told = capsys.readouterr().out
    assert "frames: PNG, 0 kept as they were" in told
    assert "protocol published: 5 folds, testing on fold_1, fold_2, fold_3, fold_4, fold_5 (Jiang et al." in told
    assert verify(str(tmp_path / "out"), progress=False).clips == 10
