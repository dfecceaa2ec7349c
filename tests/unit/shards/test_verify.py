"""`verify` finds every kind of damage, also in shards whose manifest was made to fit."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfer.errors import DataError
from shards.build import build
from shards.shard import BuildOptions
from shards.sources import SOURCES
from shards.verify import load_manifest, verify
from tests.unit.shards import rawkit


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    raw = rawkit.dfew(root / "DFEW")
    build(SOURCES["dfew"](raw), str(root / "out"), BuildOptions(max_side=64, clips_per_shard=2), progress=False)
    return root / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def problems(out: Path, *, quick: bool = False) -> str:
    with pytest.raises(DataError, match="expected the shards as they were built, got") as caught:
        verify(str(out), quick=quick, progress=False)
    assert caught.value.exit_code == 3
    return str(caught.value)


def reseal(out: Path) -> None:
    """Make the manifest's sizes and hashes fit whatever the files hold now."""
    plain = json.loads((out / "manifest.json").read_text())
    for shard in plain["shards"]:
        tar = (out / shard["path"]).read_bytes()
        path = out / shard["path"].replace(".tar", ".index.json")
        chunks = [hashlib.sha256(tar[at : at + 262_144]).hexdigest() for at in range(0, len(tar), 262_144)]
        edit_json(path, lambda plain: plain.update(chunks=chunks))  # noqa: B023 - called at once
        index = path.read_bytes()
        shard |= {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
        shard |= {"index_sha256": hashlib.sha256(index).hexdigest()}
    (out / "manifest.json").write_text(json.dumps(plain))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize("quick", [False, True])
def test_a_good_build_passes(whole: Path, quick: bool) -> None:
    report = verify(str(whole), quick=quick, progress=False)
    assert (report.shards, report.clips) == (5, 10)
    assert report.frames == len(list((whole.parent / "DFEW").rglob("*.jpg")))
    assert report.bytes == sum(path.stat().st_size for path in whole.rglob("*.tar"))


@pytest.mark.parametrize("quick", [False, True])
def test_one_flipped_bit(out: Path, quick: bool) -> None:
    path = out / "fold_2/00000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    text = problems(out, quick=quick)
    assert "got 1 problem:\n  fold_2/00000.tar: sha256 is not the manifest's" in text
    assert text.endswith("run `dfer-shards build` again.")


@pytest.mark.parametrize("quick", [False, True])
def test_missing_and_cut_files(out: Path, quick: bool) -> None:
    (out / "fold_1/00000.tar").unlink()
    (out / "fold_2/00000.index.json").unlink()
    whole = (out / "fold_3/00000.tar").read_bytes()
    (out / "fold_3/00000.tar").write_bytes(whole[:-512])
    (out / "fold_4/00000.tar").write_bytes(b"")
    text = problems(out, quick=quick)
    assert "fold_1/00000.tar: missing" in text
    assert "fold_2/00000.index.json: missing" in text
    assert f"fold_3/00000.tar: {len(whole) - 512} bytes instead of {len(whole)}" in text
    assert "fold_4/00000.tar: 0 bytes instead" in text


def test_a_changed_index(out: Path) -> None:
    edit_json(out / "fold_5/00000.index.json", lambda index: index["label"].__setitem__(0, 3))
    assert "fold_5/00000.index.json: expected sha256" in problems(out)


def retitle(member: bytes, **fields: bytes) -> bytes:
    """A tar header with some fields overwritten and its checksum made right."""
    places = {"name": (0, 100), "size": (124, 12), "type": (156, 1)}
    block = bytearray(member)
    for field, value in fields.items():
        at, length = places[field]
        block[at : at + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": b"../../etc/passwd"}, "got '../../etc/passwd'"),
        ({"name": b"/root/x.jpg"}, "got '/root/x.jpg'"),
        ({"type": b"2"}, "of type b'2'"),
        ({"type": b"1"}, "of type b'1'"),
        ({"type": b"x"}, "of type b'x'"),
        ({"size": b"77777777777\0"}, "reaches beyond the end of the tar"),
        ({"size": b"\xff" * 12}, "the index does not say where"),
        ({"size": b"00000000001\0"}, "the index does not say where"),
    ],
)
def test_members_that_do_not_belong(out: Path, fields: dict[str, bytes], text: str) -> None:
    path = out / "fold_1/00000.tar"
    data = path.read_bytes()
    path.write_bytes(retitle(data[:512], **fields) + data[512:])
    reseal(out)
    assert text in problems(out, quick=True)


def test_a_spoiled_header(out: Path) -> None:
    path = out / "fold_1/00000.tar"
    data = path.read_bytes()
    path.write_bytes(b"\0" * 512 + data[512:])
    reseal(out)
    assert "expected the tar header of " in problems(out, quick=True)


def test_something_behind_the_last_clip(out: Path) -> None:
    path = out / "fold_1/00000.tar"
    data = bytearray(path.read_bytes())
    data[-1] = 1
    path.write_bytes(data)
    reseal(out)
    assert "something follows the last clip" in problems(out, quick=True)


def test_a_frame_that_does_not_decode_is_found_by_decoding_only(out: Path) -> None:
    shard = load_manifest(str(out)).shards[0]
    index = json.loads((out / shard.index_path).read_text())
    path = out / shard.path
    data = bytearray(path.read_bytes())
    end = index["offset"][0] + index["sizes"][0]
    data[end - 2 : end] = b"\0\0"
    path.write_bytes(data)
    reseal(out)
    verify(str(out), quick=True, progress=False)
    key = index["key"][0]
    assert f"clip {key}: {key}.000.jpg cannot be decoded" in problems(out)


def test_a_frame_larger_than_the_manifest_says(out: Path) -> None:
    edit_json(out / "manifest.json", lambda plain: plain["frames"].update(max_side=20))
    assert "has 26x24 pixels, more than 20 a side" in problems(out)


def test_labels_of_tar_and_index_disagree(out: Path) -> None:
    def relabel(index: Any) -> None:
        index["label"] = [(label + 1) % 7 for label in index["label"]]

    edit_json(out / "fold_1/00000.index.json", relabel)
    reseal(out)
    assert ".json does not agree with the index and the manifest" in problems(out, quick=True)


def test_counts_of_the_manifest_disagree(out: Path) -> None:
    edit_json(out / "manifest.json", lambda plain: plain["counts"].update(fold_1=[2, 0, 0, 0, 0, 0, 0]))
    assert "fold_1: the manifest counts (2, 0, 0, 0, 0, 0, 0), its shards hold" in problems(out)


def test_frame_totals_disagree(out: Path) -> None:
    edit_json(out / "manifest.json", lambda plain: plain["frames"].update(encoded=5))
    assert "kept and 5 encoded frames, its shards hold" in problems(out)


def test_a_clip_in_two_shards(out: Path) -> None:
    def twice(plain: Any) -> None:
        copy = dict(plain["shards"][0])
        plain["shards"].append(copy)
        plain["counts"][copy["partition"]] = [2 * n for n in plain["counts"][copy["partition"]]]
        plain["frames"]["kept"] += copy["frames"]

    edit_json(out / "manifest.json", twice)
    assert "2 clips stand in two shards" in problems(out)


def test_an_index_of_another_shard(out: Path) -> None:
    edit_json(out / "fold_1/00000.index.json", lambda index: index.update(shard="fold_9/00000.tar"))
    reseal(out)
    assert "is the index of fold_9/00000.tar" in problems(out, quick=True)


def test_the_hash_of_a_chunk_disagrees(out: Path) -> None:
    path = out / "fold_1/00000.index.json"
    edit_json(path, lambda index: index.update(chunks=["0" * 64]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(out / "manifest.json", lambda plain: plain["shards"][0].update(index_sha256=digest))
    text = problems(out, quick=True)
    assert "fold_1/00000.index.json: the sha256 of chunk 0 is not that of the tar" in text


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder of shards with its manifest\.json, got none there"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda plain: plain.update(version=1), "expected format version 3, got 1"),
        (lambda plain: plain.pop("version"), "expected format version 3, got None"),
        (lambda plain: plain.pop("shards"), "shards: required, but missing"),
        (lambda plain: plain["shards"][0].update(path="/etc/passwd"), "expected relative shard paths below the folder"),
        (lambda plain: plain["shards"][0].update(path="../x.tar"), "expected relative shard paths below the folder"),
    ],
)
def test_a_manifest_that_cannot_be_used(out: Path, change: Callable[[Any], None], text: str) -> None:
    edit_json(out / "manifest.json", change)
    with pytest.raises(DataError, match=text):
        verify(str(out), progress=False)
