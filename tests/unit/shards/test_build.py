"""Shards against the raw trees they were made of, read back by tarfile, tar and webdataset; repeats and refusals."""

import errno
import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from dfer.errors import DataError, StorageError, UsageError
from dfer.storage import Folder
from dfer.store.format import Manifest, ShardInfo, read_manifest
from dfer.store.index import ShardIndex, read_index
from shards.__main__ import main
from shards.build import build
from shards.output import only_writer
from shards.shard import BuildOptions, _HashingFile
from shards.sources import SOURCES
from shards.verify import load_manifest
from tests.unit.shards import rawkit

SMALL = BuildOptions(max_side=64, clips_per_shard=2)


def build_small(root: Path, out: Path, *, dataset: str = "dfew", **more: Any) -> Manifest:
    return build(SOURCES[dataset](root), str(out), SMALL, progress=False, **more).manifest


def load_index(out: Path, shard: ShardInfo) -> ShardIndex:
    return read_index((out / shard.index_path).read_bytes(), where="index", shard=shard, num_classes=7)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return rawkit.dfew(tmp_path / "DFEW", clips=15)


@pytest.mark.parametrize("dataset", ["dfew", "ferv39k"])
def test_every_frame_is_stored_byte_for_byte_where_the_index_says(tmp_path: Path, dataset: str) -> None:
    root = getattr(rawkit, dataset)(tmp_path / "raw")
    manifest = build_small(root, tmp_path / "out", dataset=dataset)
    raw = SOURCES[dataset](root)
    left = {clip.key: clip for clip in raw.clips}
    for shard in manifest.shards:
        tar = (tmp_path / "out" / shard.path).read_bytes()
        index = load_index(tmp_path / "out", shard)
        for entry in map(index.entry, range(len(index))):
            clip = left.pop(entry.key)
            assert (clip.label, clip.partition) == (entry.label, shard.partition)
            assert clip.folder is not None
            files = [path.read_bytes() for path in sorted(clip.folder.iterdir())]
            assert [tar[at : at + size] for at, size in entry.frame_spans()] == files
    assert not left
    assert manifest.frames.encoded == 0
    assert sum(map(sum, manifest.counts.values())) == len(raw.clips)


def test_partitions_are_the_test_sets(raw: Path, tmp_path: Path) -> None:
    manifest = build_small(raw, tmp_path / "out")
    labels = rawkit.dfew_labels(15)
    for fold in range(1, 6):
        row = [0] * 7
        for n in range(fold, 16, 5):
            row[labels[n] - 1] += 1
        assert manifest.counts[f"fold_{fold}"] == tuple(row)
    assert manifest.partitions() == [f"fold_{k}" for k in range(1, 6)]
    assert max(shard.clips for shard in manifest.shards) == 2


def test_tar_members_are_plain_and_without_time_or_owner(raw: Path, tmp_path: Path) -> None:
    manifest = build_small(raw, tmp_path / "out")
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "out" / shard.path) as tar:
            members = tar.getmembers()
            assert all(m.isreg() and (m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)
            assert all(m.offset_data - m.offset == 512 for m in members)
            names = subprocess.run(["tar", "tf", tar.name], capture_output=True, text=True, check=True).stdout.split()
            assert names == [m.name for m in members]
            clip = json.loads(tar.extractfile(members[-1]).read())  # type: ignore[union-attr]
            assert names[-1] == f"{clip['key']}.json"
            assert clip["num_frames"] == sum(n.startswith(f"{clip['key']}.") and n.endswith(".jpg") for n in names)


@pytest.mark.parametrize("sizes", [[1], [262_144], [262_143, 1], [100_000] * 9, [700_000, 3], [524_288]])
def test_chunks_are_hashed_whatever_the_writes(sizes: list[int]) -> None:
    file = io.BytesIO()
    hashing = _HashingFile(file)
    for number, size in enumerate(sizes):
        hashing.write(bytes([number]) * size)
    data = file.getvalue()
    chunks = [data[at : at + 262_144] for at in range(0, len(data), 262_144)]
    assert hashing.chunks() == tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks)
    assert hashing.sha256.hexdigest() == hashlib.sha256(data).hexdigest() and hashing.tell() == len(data)


# webdataset leaves the closing of its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    manifest = build_small(rawkit.ferv39k(tmp_path / "raw"), tmp_path / "out", dataset="ferv39k")
    urls = [str(tmp_path / "out" / shard.path) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    assert len(samples) == 12
    for sample in samples:
        scene, emotion, number = sample["__key__"].split("/")
        folder = tmp_path / "raw/2_ClipsforFaceCrop" / scene / emotion / number
        assert sample["000.jpg"] == (folder / "01.jpg").read_bytes()
        assert sample["001.jpg"] == (folder / "02.jpg").read_bytes()
        assert json.loads(sample["json"])["class_name"] == {"Happy": "happiness", "Angry": "anger"}[emotion]


def test_png_crops_are_encoded_and_counted(tmp_path: Path) -> None:
    manifest = build_small(rawkit.mafw(tmp_path / "raw"), tmp_path / "out", dataset="mafw")
    assert (manifest.frames.kept, manifest.frames.encoded) == (0, 30)
    assert len(manifest.classes) == 11


def test_long_clips_keep_their_order(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "raw", clips=5)
    folder = root / "Clip/clip_224x224/00001"
    shutil.rmtree(folder)
    folder.mkdir()
    for i in range(1001):
        (folder / f"{i}.jpg").write_bytes(rawkit.picture(i, side=4))
    shard = build_small(root, tmp_path / "out").shards[0]
    index = load_index(tmp_path / "out", shard)
    tar = (tmp_path / "out" / shard.path).read_bytes()
    spans = index.entry(0).frame_spans()
    assert len(spans) == 1001
    assert all(tar[at : at + size] == (folder / f"{i}.jpg").read_bytes() for i, (at, size) in enumerate(spans))


def test_two_builds_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "a")
    build_small(raw, tmp_path / "b")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_an_unchanged_build_writes_nothing(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "out")
    before = times(tmp_path / "out")
    report = build(SOURCES["dfew"](raw), str(tmp_path / "out"), SMALL, progress=False)
    assert (report.made.new, report.made.unchanged) == (0, 10)
    assert times(tmp_path / "out") == before


def test_a_changed_clip_rebuilds_its_shard_alone(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "out")
    before = times(tmp_path / "out")
    (raw / "Clip/clip_224x224/00007/00007_00001.jpg").write_bytes(rawkit.picture(999))
    manifest = build_small(raw, tmp_path / "out")
    after = times(tmp_path / "out")
    changed = {name.split(".")[0] for name in after if after[name] != before[name]}
    assert len(changed) == 2
    assert next(c for c in changed if c != "manifest").startswith("fold_2/")
    build_small(raw, tmp_path / "fresh")
    assert snapshot(tmp_path / "fresh") == snapshot(tmp_path / "out")
    assert manifest == load_manifest(str(tmp_path / "fresh"))


@pytest.mark.parametrize("name", ["fold_3/00000.tar", "fold_3/00000.index.json", "fold_3/00000.done.json"])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_what_is_lost_is_made_again(raw: Path, tmp_path: Path, name: str, damage: str) -> None:
    build_small(raw, tmp_path / "out")
    whole = snapshot(tmp_path / "out")
    if damage == "removed":
        (tmp_path / "out" / name).unlink()
    else:
        os.truncate(tmp_path / "out" / name, 100)
    build_small(raw, tmp_path / "out")
    assert snapshot(tmp_path / "out") == whole


def test_clips_gone_from_the_split_files_leave_no_shard_behind(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "out")
    rawkit.write_dfew_splits(raw, rawkit.dfew_labels(10))
    build_small(raw, tmp_path / "out")
    build_small(raw, tmp_path / "fresh")
    assert snapshot(tmp_path / "fresh") == snapshot(tmp_path / "out")


def spoil(raw: Path) -> None:
    """Three clips of three kinds that cannot be packed."""
    frames = raw / "Clip/clip_224x224"
    shutil.rmtree(frames / "00002")
    for path in (frames / "00003").iterdir():
        path.unlink()
    path = frames / "00011/00011_00002.jpg"
    path.write_bytes(path.read_bytes()[:-40])


REASONS = {
    "00002": "no folder",
    "00003": "no frames",
    "00011": "frame 00011_00002.jpg is truncated (Premature end of JPEG file)",
}


def test_strict_build_ends_with_the_list_and_no_manifest(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    with pytest.raises(DataError, match="got 3 clips that cannot be packed") as caught:
        build_small(raw, tmp_path / "out", allow_missing=2)
    text = str(caught.value)
    assert all(f"  {key}: {reason}\n" in text for key, reason in REASONS.items())
    assert "--allow-missing 3" in text
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out/manifest.json").exists()
    rows = (tmp_path / "out/excluded.txt").read_text().splitlines()
    assert dict(row.split("\t") for row in rows) == REASONS


def test_accepted_gaps_are_listed_in_the_manifest(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    with pytest.raises(DataError):
        build_small(raw, tmp_path / "out")
    before = times(tmp_path / "out")
    manifest = build_small(raw, tmp_path / "out", allow_missing=3)
    assert {e.key: e.reason for e in manifest.excluded} == REASONS
    assert sum(map(sum, manifest.counts.values())) == 12
    assert not (tmp_path / "out/excluded.txt").exists()
    tars = {name for name in before if name.endswith(".tar")}
    assert {name: before[name] for name in tars} == {name: times(tmp_path / "out")[name] for name in tars}


def test_mended_clips_complete_the_build(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "good" / "DFEW")
    spoil(raw)
    with pytest.raises(DataError):
        build_small(raw, tmp_path / "out")
    shutil.rmtree(raw)
    (tmp_path / "good/DFEW").rename(raw)
    assert build_small(raw, tmp_path / "out") == build_small(raw, tmp_path / "fresh")


def test_a_long_list_is_cut_on_the_screen_only(tmp_path: Path) -> None:
    raw = rawkit.dfew(tmp_path / "DFEW", clips=30)
    for n in range(1, 26):
        shutil.rmtree(raw / f"Clip/clip_224x224/{n:05d}")
    with pytest.raises(DataError, match="and 5 more"):
        build_small(raw, tmp_path / "out")
    assert len((tmp_path / "out/excluded.txt").read_text().splitlines()) == 25


def test_a_partition_without_any_readable_clip(raw: Path, tmp_path: Path) -> None:
    for n in (1, 6, 11):
        shutil.rmtree(raw / f"Clip/clip_224x224/{n:05d}")
    manifest = build_small(raw, tmp_path / "out", allow_missing=3)
    assert manifest.counts["fold_1"] == (0,) * 7
    assert manifest.partitions() == ["fold_2", "fold_3", "fold_4", "fold_5"]


def test_raw_data_that_went_away_does_not_cost_a_finished_build(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "out")
    before = times(tmp_path / "out")
    shutil.rmtree(raw / "Clip/clip_224x224")
    (raw / "Clip/clip_224x224").mkdir()
    with pytest.raises(DataError, match="The finished build there is left as it is"):
        build_small(raw, tmp_path / "out")
    assert times(tmp_path / "out") == before


def test_a_read_error_is_tried_again(raw: Path, tmp_path: Path) -> None:
    said = r"00004: frame 00004_00001\.jpg cannot be read \(Input/output error\)"
    with rawkit.unreadable("00004_00001.jpg"), pytest.raises(DataError, match=said):
        build_small(raw, tmp_path / "out")
    assert not build_small(raw, tmp_path / "out").excluded


def test_a_folder_with_something_else_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"got a folder with thesis\.tex\. Give another folder") as caught:
        build_small(raw, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_file_as_output_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="expected a folder, got a file"):
        build_small(raw, tmp_path / "out")


def test_other_options_and_other_data_sets_are_refused(raw: Path, tmp_path: Path) -> None:
    build_small(raw, tmp_path / "out")
    with pytest.raises(UsageError, match=r"max_side 128.* got one of .*max_side 64.*Repeat the options"):
        build(
            SOURCES["dfew"](raw), str(tmp_path / "out"), BuildOptions(max_side=128, clips_per_shard=2), progress=False
        )
    with pytest.raises(UsageError, match=r"dataset ferv39k.* got one of dataset dfew"):
        build_small(rawkit.ferv39k(tmp_path / "FERV39k"), tmp_path / "out", dataset="ferv39k")


@pytest.mark.parametrize(("name", "value"), [("max_side", 15), ("quality", 101), ("clips_per_shard", 0)])
def test_options_out_of_range(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')}: expected .*, got {value}"):
        BuildOptions(**{name: value})


def test_published_counts_under_other_classes_are_refused(monkeypatch: pytest.MonkeyPatch, raw: Path) -> None:
    known = {"dfew": {"fold_1": (0, 1, 1, 1, 0, 0, 0)}}
    monkeypatch.setattr("shards.totals.TOTALS", known)
    rows = rawkit.dfew_labels(15)
    assert sorted(rows[n] for n in (1, 6, 11)) == [4, 5, 6]
    with pytest.raises(DataError, match=r"dfew fold_1: .*got the same numbers in another order .*anger 1, surprise 1"):
        build(SOURCES["dfew"](raw), "memory://never-written", SMALL, progress=False)


@pytest.mark.parametrize(
    ("code", "nth"),
    [*((errno.ENOSPC, nth) for nth in (0, 1, 2, 4, 31)), (errno.EDQUOT, 2), (errno.EFBIG, 2)],
)
def test_a_full_disk(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, nth: int) -> None:
    """Whichever write fails: a message, nothing half-written, and the continuation completes the build."""
    calls = iter(range(1000))
    fsync = os.fsync

    def full(handle: int) -> None:
        if next(calls) == nth:
            raise OSError(code, os.strerror(code))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            StorageError,
            match=r"expected to write it, got (no space left. Free|File too large. Raise) .* Then run the same command",
        ) as caught:
            build_small(raw, tmp_path / "out")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    build_small(raw, tmp_path / "fresh")
    whole = snapshot(tmp_path / "fresh")
    assert all(whole[name] == data for name, data in snapshot(tmp_path / "out").items())
    build_small(raw, tmp_path / "out")
    assert snapshot(tmp_path / "out") == whole


def test_no_permission(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", forbidden)
    with pytest.raises(StorageError, match=r"build.json: expected to write it, got Permission denied. Check"):
        build_small(raw, tmp_path / "out")


def test_a_second_builder_is_kept_out(raw: Path, tmp_path: Path) -> None:
    with (
        only_writer(Folder(tmp_path / "out")),
        pytest.raises(StorageError, match="another dfer-shards build running there"),
    ):
        build_small(raw, tmp_path / "out")


def test_left_over_temporary_files_go(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out/fold_1").mkdir(parents=True)
    (tmp_path / "out/fold_1/.00000.tar.4711.tmp").write_bytes(b"half")
    build_small(raw, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_any_fsspec_url(raw: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    build(SOURCES["dfew"](raw), url, SMALL, progress=False)
    build_small(raw, tmp_path / "out")
    out = Folder(url)
    assert {name: out.read(name) for name in out.names()} == snapshot(tmp_path / "out")
    assert build(SOURCES["dfew"](raw), url, SMALL, progress=False).made.new == 0


@pytest.mark.parametrize("url", ["nosuchscheme://bucket/x", "sftp://host/x"])
def test_an_address_nobody_can_open(raw: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"expected a folder or an fsspec URL, got .* Correct the address."):
        build(SOURCES["dfew"](raw), url, SMALL, progress=False)


def test_a_store_without_credentials(raw: Path, no_credentials: None, capsys: pytest.CaptureFixture[str]) -> None:
    url = "s3://no-such-bucket/dfew"
    for arguments in (["build", "dfew", str(raw), url, "--jobs", "1"], ["verify", url], ["show", url]):
        assert main([*arguments]) == 6
        told = capsys.readouterr().err
        assert told.startswith(
            f"error: {url}: expected to look at it, got Unable to locate credentials. "
            "Check the URL, the network and the credentials that the store needs."
        )
        assert ("finished shards are kept" in told) == (arguments[0] == "build") and told.count("\n") == 1


def test_what_a_client_raises_in_the_midst_of_a_build_is_told_without_credentials(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("PUT https://host/x?X-Amz-Signature=open-sesame failed")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StorageError) as caught:
        build(SOURCES["dfew"](raw), "memory://never-written", SMALL, progress=False)
    assert str(caught.value).startswith(
        "memory://never-written/build.json: expected to write it, got PUT https://host/x failed (6 attempts). Check the"
    )


def test_the_manifest_reads_back(raw: Path, tmp_path: Path) -> None:
    manifest = build_small(raw, tmp_path / "out")
    assert read_manifest((tmp_path / "out/manifest.json").read_bytes(), where="manifest") == manifest
    assert manifest.options == {"clips_per_shard": "2", "source_frames": "clip_224x224"}


def test_a_data_set_of_bmp_and_webp_frames_is_packed_whole(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "raw", clips=5)
    folder = root / "Clip/clip_224x224/00001"
    shutil.rmtree(folder)
    rawkit.fill(folder, ["1.jpg", "2.bmp", "3.webp", "10.bmp"], seed=1)
    manifest = build_small(root, tmp_path / "out")
    assert load_index(tmp_path / "out", manifest.shards[0]).entry(0).num_frames == 4
    assert manifest.frames.encoded == 3


def test_frames_named_by_seconds_are_packed_in_their_order(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "raw", clips=5)
    folder = root / "Clip/clip_224x224/00001"
    shutil.rmtree(folder)
    names = [f"{second}.jpg" for second in ("0.0", "0.04", "0.08", "0.12", "0.2", "1.0010")]
    rawkit.fill(folder, names, seed=1)
    shard = build_small(root, tmp_path / "out").shards[0]
    tar = (tmp_path / "out" / shard.path).read_bytes()
    spans = load_index(tmp_path / "out", shard).entry(0).frame_spans()
    assert [tar[at : at + size] for at, size in spans] == [(folder / name).read_bytes() for name in names]


def test_clips_whose_frames_are_not_certain_are_reasons(tmp_path: Path) -> None:
    root = rawkit.dfew(tmp_path / "raw", clips=5)
    for clip, name, changed in ((1, "00001_00001.jpg", "00001_00001.gif"), (2, "00002_00001.jpg", "9_00001.jpg")):
        folder = root / f"Clip/clip_224x224/{clip:05d}"
        (folder / name).rename(folder / changed)
    manifest = build_small(root, tmp_path / "out", allow_missing=2)
    assert [(item.key, item.reason) for item in manifest.excluded] == [
        ("00001", "pictures of a kind that is not read (1 .gif) beside 3 that can be read"),
        ("00002", "frames 00002_00002.jpg and 9_00001.jpg can be put in order in two ways"),
    ]


def test_frames_that_look_different_are_told_once_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = rawkit.dfew(tmp_path / "raw", clips=5)
    for number in (1, 2):
        folder = root / f"Clip/clip_224x224/{number:05d}"
        Image.new("RGBA", (20, 20), (200, 9, 9, 0)).save(folder / f"{number:05d}_00090.png")
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(folder / "00002_00091.png")
    for _ in range(2):  # also when nothing is made again
        assert main(["build", "dfew", str(root), str(tmp_path / "out"), "--jobs", "1", "--no-progress"]) == 0
        assert capsys.readouterr().err == (
            "warning: 2 frames with colours under pixels that are not opaque: the colours were stored, a viewer shows"
            " others\nwarning: 1 frame of 16 bits that use at most 14 of them: the upper 8 were stored, which is dark\n"
        )
