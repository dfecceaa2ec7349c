"""How long a process takes to open the index of a data set of stills: generated rows, parsed, checked and joined."""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dfer.data.clips import ClipSet, emotions_for
from dfer.emotions import BASIC7
from dfer.errors import UsageError, message
from dfer.store.format import BLOCK, MANIFEST, FrameSettings, Manifest, ShardInfo, num_chunks, to_json
from dfer.store.index import ClipEntry, index_json
from dfer.store.shards import Store

CLASSES = (*BASIC7, "contempt")
BYTES = 12_000
"""Of a still: a JPEG of 224 px."""


def bench_index(rows: int, *, per_shard: int = 1000, facts: bool = False, rounds: int = 5) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each of several openings, which are printed with their medians.

    facts: every clip also has a subject, votes and a face box.

    Raises:
        UsageError: no rows or rounds.
    """
    if rows < 1 or per_shard < 1 or rounds < 1:
        raise UsageError(message("dfer bench index", expected="numbers above 0", got="others", do="Correct them."))
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        _write(Path(folder), rows, per_shard, facts=facts)
        found = [_open(folder, rows) for _ in range(rounds)]
    for wall, cpu in found:
        print(f"  wall {wall:.3f} s, CPU {cpu:.3f} s")
    wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
    what = "with subjects, votes and face boxes" if facts else "keys and labels"
    print(f"{rows:,} stills in shards of {per_shard:,} ({what}): median wall {wall:.3f} s, CPU {cpu:.3f} s")
    return found


def _open(folder: str, rows: int) -> tuple[float, float]:
    """As a rank of a training does: manifest, indexes, the table of all clips."""
    wall, cpu = time.perf_counter(), time.process_time()
    store = Store(folder)
    clips = ClipSet.open(store, store.manifest.partitions(), emotions=emotions_for(None, store.manifest))
    assert len(clips) == rows
    return time.perf_counter() - wall, time.process_time() - cpu


def _write(folder: Path, rows: int, per_shard: int, *, facts: bool) -> None:
    """Indexes and manifest without tars: opening reads none."""
    (folder / "train").mkdir()
    shards = []
    for number, begin in enumerate(range(0, rows, per_shard)):
        clips = list(_clips(range(begin, min(begin + per_shard, rows)), facts=facts))
        path, size = f"train/{number:05d}.tar", clips[-1].offset + BYTES + 4 * BLOCK
        chunks = [hashlib.sha256(f"{path} {chunk}".encode()).hexdigest() for chunk in range(num_chunks(size))]
        index = index_json(path, chunks, clips, num_classes=len(CLASSES))
        shards.append(
            ShardInfo(
                path=path,
                partition="train",
                clips=len(clips),
                frames=len(clips),
                bytes=size,
                sha256=hashlib.sha256(path.encode()).hexdigest(),
                index_sha256=hashlib.sha256(index).hexdigest(),
            )
        )
        (folder / shards[-1].index_path).write_bytes(index)
    manifest = Manifest(
        dataset="generated rows",
        classes=CLASSES,
        builder="dfer bench index",
        frames=FrameSettings(max_side=224, quality=95, kept=rows, encoded=0),
        counts={"train": tuple(len(range(label, rows, len(CLASSES))) for label in range(len(CLASSES)))},
        shards=tuple(shards),
    )
    (folder / MANIFEST).write_bytes(to_json(manifest))


def _clips(numbers: range, *, facts: bool) -> Iterator[ClipEntry]:
    stride = -(-BYTES // BLOCK) * BLOCK + 3 * BLOCK
    for place, number in enumerate(numbers):
        yield ClipEntry(
            key=f"{number:06d}",
            label=number % len(CLASSES),
            offset=BLOCK + place * stride,
            sizes=(BYTES - number % 5000,),
            subject=f"person {number % 5000}" if facts else None,
            votes=(0, 1, 0, 5, 0, 3, 0, 1) if facts else None,
            faces=((12.0, 8.5, 96.25, 101.0),) if facts else None,
        )
