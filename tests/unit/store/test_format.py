"""Manifest and index: what is read back, and what is refused."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dfer.errors import DataError
from dfer.store import format as fmt
from dfer.store.index import ClipEntry, ShardIndex, index_json, read_index

KEYS = "protocols/subjects.1.test.txt"


def manifest(**changes: Any) -> fmt.Manifest:
    shard = fmt.ShardInfo(
        path="train/00000.tar",
        partition="train",
        clips=1,
        frames=2,
        bytes=10_240,
        sha256="0" * 64,
        index_sha256="0" * 64,
    )
    fold = fmt.Fold(train=fmt.Subset(partitions=("train",)), test=fmt.Subset(keys=KEYS, sha256="0" * 64))
    fields: dict[str, Any] = {
        "dataset": "ferv39k",
        "classes": ("happiness", "sadness"),
        "builder": "dfer 0",
        "frames": fmt.FrameSettings(max_side=256, quality=95, kept=2, encoded=0),
        "faces": fmt.FaceSettings(finder="yunet 2023mar", margin=0.2, aligned=True),
        "counts": {"train": (1, 0)},
        "protocols": {"subjects": fmt.Protocol(source="here", folds={"1": fold})},
        "shards": (shard,),
        "licence": "research only",
    }
    return fmt.Manifest(**{**fields, **changes})


def test_a_manifest_is_read_back_as_it_was() -> None:
    assert fmt.read_manifest(fmt.to_json(manifest()), where="m") == manifest()
    bare = manifest(classes=(), faces=None, counts={"train": ()}, protocols={}, media="png", licence="")
    assert fmt.read_manifest(fmt.to_json(bare), where="m") == bare


GOOD = fmt.to_json(manifest())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (
            GOOD.replace(b'"version": 3', b'"version": 9'),
            "expected format version 3, got 9. Build the shards again with",
        ),
        (
            GOOD.replace(b'"version": 3', b'"version": 2'),
            "expected format version 3, got 2. An earlier dfer wrote these shards: run `dfer-shards build DATASET",
        ),
        (GOOD.replace(b"train/00000.tar", b"../00000.tar"), "relative shard paths"),
        (GOOD.replace(b"train/00000.tar", b"pipe:rm x"), "relative shard paths"),
        (GOOD.replace(b'"dataset"', b'"datasset"'), "Did you mean 'dataset'"),
        (
            GOOD.replace(b'"index_sha256": "0', b'"index_sha256": "../'),
            "a SHA-256 of every shard and index, got none for",
        ),
        (GOOD.replace(b'"media": "jpeg"', b'"media": "gif"'), "media: expected 'jpeg' or 'png', got 'gif'"),
        (
            GOOD.replace(KEYS.encode(), b"../../etc/passwd"),
            "a list of keys, as test of fold 1 of subjects, got ../../etc",
        ),
        (GOOD.replace(b'"train"\n', b'"dev"\n'), "as train of fold 1 of subjects, got dev"),
        (GOOD.replace(b'"1": {', b'"one": {'), "expected folds numbered from 1, got of fold one of subjects"),
        (GOOD.replace(b'"subjects": {', b'"../x": {'), "expected plain names of protocols, got ../x"),
        (b"[%s[]]" % (b"[]," * 1_000_000), "at most 1,000,000 lists and mappings, got 1,000,002"),
        (b" " * (16 * 2**20 + 1), "at most 16,777,216 bytes, got 16,777,217. This is no manifest or index of ours"),
        (fmt.to_json(manifest(counts={"train": (1,)})), "2 class counts"),
        (fmt.to_json(manifest(classes=("fear", "fear"))), "at most 1,000 classes, each once, got 2, 1 different"),
    ],
)
def test_a_manifest_that_cannot_be_used(data: bytes, says: str) -> None:
    assert data != GOOD
    with pytest.raises(DataError, match="m: ") as caught:
        fmt.read_manifest(data, where="m")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "subset", [fmt.Subset(), fmt.Subset(partitions=("train",), keys=KEYS, sha256="0" * 64), fmt.Subset(keys=KEYS)]
)
def test_a_subset_is_partitions_or_a_list_with_its_hash(subset: fmt.Subset) -> None:
    fold = fmt.Fold(train=fmt.Subset(partitions=("train",)), test=fmt.Subset(partitions=("train",)), validation=subset)
    data = fmt.to_json(manifest(protocols={"official": fmt.Protocol(source="x", folds={"1": fold})}))
    with pytest.raises(DataError, match="as validation of fold 1 of official"):
        fmt.read_manifest(data, where="m")


def test_an_unknown_partition_is_named() -> None:
    with pytest.raises(DataError, match="expected partitions out of train, got fold_1"):
        manifest().shards_of(["fold_1"])


def keys(data: bytes) -> list[str]:
    return fmt.read_keys(data, sha256=hashlib.sha256(data).hexdigest(), where="k")


def test_a_list_of_keys() -> None:
    assert keys(b"a/b\n00017\n") == ["a/b", "00017"]
    for data in (b"", b"a\nb", b"a\n\n", b"a\na\n", b"../x\n", b"\xff\n"):
        with pytest.raises(DataError, match="k: expected a plain key a line, each once"):
            keys(data)
    with pytest.raises(DataError, match="k: expected sha256 0000"):
        fmt.read_keys(b"a\n", sha256="0" * 64, where="k")


def test_frame_spans_follow_from_sizes() -> None:
    clip = ClipEntry(key="a", label=0, offset=512, sizes=(1, 512, 513))
    # Data blocks of 1, 1 and 2 times 512 bytes, each next one behind a header of 512.
    assert clip.frame_spans() == [(512, 1), (1536, 512), (2560, 513)]


BARE = ClipEntry(key="a", label=None, offset=512, sizes=(1, 2))
FULL = ClipEntry(
    key="b/1",
    label=1,
    offset=4096,
    sizes=(600,),
    subject="anna",
    source="film 7",
    text="She smiles.",
    votes=(0, 9),
    faces=((1.5, 2.0, 30.0, 40.0),),
)


def sealed(data: bytes, *, clips: int, size: int = 10_240) -> fmt.ShardInfo:
    info = manifest().shards[0]
    return replace(info, clips=clips, bytes=size, index_sha256=hashlib.sha256(data).hexdigest())


def opened(data: bytes, *, clips: int, num_classes: int = 2) -> ShardIndex:
    return read_index(data, where="i", shard=sealed(data, clips=clips), num_classes=num_classes)


@pytest.mark.parametrize("clips", [(), (BARE,), (FULL,), (BARE, FULL), (FULL, replace(BARE, offset=8192, key="c"))])
def test_an_index_is_read_back_as_it_was(clips: tuple[ClipEntry, ...]) -> None:
    index = opened(index_json("train/00000.tar", ("0" * 64,), clips, num_classes=2), clips=len(clips))
    assert tuple(map(index.entry, range(len(index)))) == clips
    assert index.column("subject") == [clip.subject for clip in clips]


def test_columns_that_no_clip_has_are_left_out() -> None:
    plain = json.loads(index_json("train/00000.tar", (), (BARE,), num_classes=2))
    assert sorted(plain) == ["chunks", "frames", "key", "offset", "shard", "sizes", "version"]
    assert sorted(json.loads(index_json("t", (), (BARE, FULL), num_classes=2))) == sorted(
        [*plain, "label", "subject", "source", "text", "votes", "faces"]
    )


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plain: plain.update({name: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("key", ["../../etc", "b"]), "a key '../../etc'"),
        (changed("key", ["a", "b\nc"]), r"a key 'b\nc'"),
        (changed("key", ["a", "b\n"]), r"a key 'b\n'"),
        (changed("key", ["a", ""]), "a key ''"),
        (changed("key", ["a", 7]), "a column key of something else than texts"),
        (changed("key", ["a"]), "columns of unequal lengths"),
        (lambda plain: plain.pop("key"), "no 'key'"),
        (changed("frames", [0, 3]), "frames: 0, not 1 to 10,000"),
        (changed("frames", [2, 2]), "columns of unequal lengths"),
        (changed("sizes", [1, 20_000, 600]), "i, clip a: expected frames inside the 10240 bytes of the shard, got"),
        (changed("sizes", [1, 2, -5]), "sizes: -5, not 1 to 16,777,216"),
        (changed("sizes", [1, 2, 2**32 + 600]), "sizes: 4294967896, not 1 to"),
        (changed("sizes", [1, 2, True]), "a column sizes of something else than whole numbers"),
        (changed("offset", [0, 4096]), "offset: 0, not 512 to"),
        (changed("offset", [512, 10_000]), "i, clip b/1: expected frames inside the 10240 bytes of the shard, got 600"),
        (changed("offset", [512, 2**63]), "got "),
        (changed("offset", [512, 2**62]), "i, clip b/1: expected frames inside"),
        (changed("label", [None, 7]), "label: 7, not 0 to 1"),
        (changed("label", [-1, 0]), "label: -1, not 0 to 1"),
        (changed("label", ["0", 0]), "a column label of something else"),
        (changed("subject", ["anna"]), "a column subject of something else than 2 texts or null"),
        (changed("source", [1, None]), "a column source of something else"),
        (changed("text", ["x" * 4097, None]), "a text of more than 4,096 letters"),
        (changed("votes", [None, None, 1]), "a column votes of something else than 2 x 2 numbers or null"),
        (changed("votes", [None, None, 1, 0.5]), "a column votes of something else"),
        (changed("votes", [None, None, 1, True]), "a column votes of something else"),
        (changed("votes", [None, 3, 1, 1]), "a row of votes that is not whole"),
        (changed("votes", [None, None, 1, -1]), "a number outside 0 to 2147483648"),
        (changed("votes", [None, None, 1, 2**40]), "a number outside 0"),
        (changed("votes", [None, None, 1, 10**400]), "got "),
        (changed("faces", [0, 0, 1, 1]), "a column faces of something else than 3 x 4 numbers or null"),
        (changed("faces", [None] * 11 + ["1"]), "a column faces of something else"),
        (changed("faces", [None] * 11 + [1]), "a row of faces that is not whole"),
        (changed("faces", [None] * 8 + [0, 0, 1, float("inf")]), "expected JSON"),
        (changed("faces", [None] * 8 + [0, 0, 1, 10**30]), "a number outside"),
        (changed("faces", [0.5] * 11 + [float("nan")]), "expected JSON"),
        (changed("label", [True, 0]), "a column label of something else"),
        (changed("pickle", []), "an unknown column 'pickle'"),
        (changed("version", 2), "expected format version 3, got 2. An earlier dfer"),
        (changed("chunks", []), "expected the SHA-256 of each of 1 chunks, got 0 entries"),
        (changed("chunks", ["0" * 64, "0" * 64]), "of each of 1 chunks, got 2 entries"),
        (changed("chunks", ["x" * 64]), "of each of 1 chunks, got 1 entries"),
    ],
)
def test_an_index_that_cannot_be_used(change: Callable[[dict[str, Any]], None], says: str) -> None:
    plain = json.loads(index_json("train/00000.tar", ("0" * 64,), (BARE, FULL), num_classes=2))
    change(plain)
    with pytest.raises(DataError, match=r"^i") as caught:
        opened(json.dumps(plain).encode(), clips=2)
    assert says in str(caught.value)


def test_an_index_of_other_clips_than_the_manifest_counts() -> None:
    data = index_json("train/00000.tar", ("0" * 64,), (BARE,), num_classes=2)
    with pytest.raises(DataError, match="i: expected 3 clips, got 1"):
        opened(data, clips=3)
    with pytest.raises(DataError, match="i: expected sha256 0000"):
        read_index(data, where="i", shard=manifest().shards[0], num_classes=2)
    with pytest.raises(DataError, match=r"label: 1, not 0 to -1"):
        opened(index_json("t", ("0" * 64,), (FULL,), num_classes=2), clips=1, num_classes=0)


def test_hundreds_of_thousands_of_stills_are_opened_as_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object a clip: what made an index of stills take ten seconds (docs/benchmarks/2026-11-26_index.md)."""
    many = 20_000
    clips = [ClipEntry(key=f"{i:06d}", label=i % 2, offset=512 + 2048 * i, sizes=(700,)) for i in range(many)]
    size = 2048 * many + 1024
    data = index_json("train/00000.tar", ["0" * 64] * fmt.num_chunks(size), clips, num_classes=2)
    monkeypatch.setattr("dfer.store.index.ClipEntry", None)
    events = Counter[str]()
    sys.setprofile(lambda frame, event, _: events.update([event]))
    try:
        index = read_index(data, where="i", shard=sealed(data, clips=many, size=size), num_classes=2)
    finally:
        sys.setprofile(None)
    assert 0 < events["call"] < 200  # of Python's functions, whatever the number of clips
    assert index.offsets.dtype == np.int64 and index.sizes.dtype == np.int32 and len(index) == many
