"""Writes small valid shard folders for tests, from the description of the format alone (no code of the builder)."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")


def jpeg(value: int, *, height: int = 32, width: int = 32) -> bytes:
    """A grey picture of one level."""
    return simplejpeg.encode_jpeg(np.full((height, width, 3), value, np.uint8), quality=95, colorsubsampling="444")


@dataclass(frozen=True, kw_only=True)
class Clip:
    key: str
    label: int | None = 0
    frames: Sequence[bytes] = field(default_factory=lambda: [jpeg(9)])
    subject: str | None = None
    votes: Sequence[int] | None = None
    text: str | None = None


def write_shards(
    folder: Path,
    partitions: Mapping[str, Sequence[Sequence[Clip]]],
    *,
    classes: Sequence[str] = CLASSES,
    media: str = "jpeg",
    protocols: Mapping[str, object] | None = None,
    dataset: str = "test",
) -> Path:
    """One tar for every inner sequence of clips, then the manifest. protocols: beside `published`."""
    shards, counts = [], {}
    for partition, contents in partitions.items():
        counts[partition] = [sum(c.label == k for clips in contents for c in clips) for k in range(len(classes))]
        for number, clips in enumerate(contents):
            shards.append(_write_shard(folder, partition, number, clips, "png" if media == "png" else "jpg"))
    manifest = {
        "version": 3,
        "dataset": dataset,
        "protocols": {"published": {"source": "shardkit", "folds": _folds(sorted(partitions))}, **(protocols or {})},
        "media": media,
        "classes": list(classes),
        "builder": "shardkit",
        "frames": {"max_side": 512, "quality": 90, "kept": 1, "encoded": 0},
        "counts": counts,
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def key_list(folder: Path, name: str, keys: Sequence[str]) -> dict[str, str]:
    """A list of keys beside the manifest, as a protocol names it."""
    data = "".join(f"{key}\n" for key in keys).encode()
    (folder / "protocols").mkdir(parents=True, exist_ok=True)
    (folder / "protocols" / name).write_bytes(data)
    return {"keys": f"protocols/{name}", "sha256": hashlib.sha256(data).hexdigest()}


def _write_shard(folder: Path, partition: str, number: int, clips: Sequence[Clip], suffix: str) -> dict[str, object]:
    path = folder / partition / f"{number:05d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            members = [(f"{i:03d}.{suffix}", data) for i, data in enumerate(clip.frames)]
            for name, data in [*members, ("json", b"{}")]:
                info = tarfile.TarInfo(f"{clip.key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    chunks = [hashlib.sha256(data[at : at + 262_144]).hexdigest() for at in range(0, len(data), 262_144)]
    plain = {"version": 3, "shard": f"{partition}/{number:05d}.tar", "chunks": chunks, **_columns(path, clips, suffix)}
    index = json.dumps(plain)
    path.with_suffix(".index.json").write_text(index)
    return {
        "path": f"{partition}/{number:05d}.tar",
        "partition": partition,
        "clips": len(clips),
        "frames": sum(len(c.frames) for c in clips),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "index_sha256": hashlib.sha256(index.encode()).hexdigest(),
    }


def _folds(partitions: Sequence[str]) -> dict[str, object]:
    """Each partition tests once; `train` and `test` as named."""
    tests = ["test"] if partitions == ["test", "train"] else partitions
    if len(partitions) < 2:
        return {}
    return {
        str(number): {
            "train": {"partitions": [other for other in partitions if other != test]},
            "test": {"partitions": [test]},
        }
        for number, test in enumerate(tests, start=1)
    }


def _columns(path: Path, clips: Sequence[Clip], suffix: str) -> dict[str, object]:
    """Offsets as tarfile reports them, not as the format module computes them."""
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    columns: dict[str, object] = {
        "key": [clip.key for clip in clips],
        "label": [clip.label for clip in clips],
        "offset": [offsets[f"{clip.key}.000.{suffix}"] for clip in clips],
        "frames": [len(clip.frames) for clip in clips],
        "sizes": [len(frame) for clip in clips for frame in clip.frames],
    }
    if any(clip.subject for clip in clips):
        columns["subject"] = [clip.subject for clip in clips]
    width = next((len(clip.votes) for clip in clips if clip.votes), 0)
    if width:
        columns["votes"] = [count for clip in clips for count in clip.votes or [None] * width]
    if any(clip.text for clip in clips):
        columns["text"] = [clip.text for clip in clips]
    return columns
