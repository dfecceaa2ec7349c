"""Seconds and memory of a fit of Exp-CLIP's size: 48,640 pairs, 512 -> 4096, batches of 512."""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dfer.config import ConfigProblem
from dfer.data.features import FeatureShard, write_manifest, write_shard
from dfer.distributed import World, process_group
from dfer.interruption import Stop
from dfer.jobs.fit import FitConfig
from dfer.jobs.fitting import fit
from dfer.jobs.pair_data import home_of, key_of, open_source
from dfer.jobs.pairs import PairsConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.projection import STUDENT, TEACHER
from dfer.storage import Folder
from dfer.teacher.config import WordsTeacherConfig

ROWS = 1024


def bench_fit(
    *, pairs: int = 48_640, student: int = 512, teacher: int = 4096, batch: int = 512, epochs: int = 5
) -> dict[str, Any]:
    """Fit a head to random pairs, stored in fp32, as `dfer fit` does; print and return seconds and peak memory.

    Returns:
        `read` and `fit`, seconds until the pairs are read and of the whole fit; `mib`, peak resident memory.
    """
    if min(pairs, student, teacher, batch, epochs) < 1:
        raise ConfigProblem("bench fit: pairs, student, teacher, batch and epochs are at least 1.")
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as folder:
        config = _config(Path(folder), batch=batch, epochs=epochs)
        _store(config.pairs, pairs, {STUDENT: student, TEACHER: teacher})
        began = time.perf_counter()
        with process_group(World()):
            found = fit(config, World(), Stop())
        seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    threads = torch.get_num_threads()
    print(
        f"{pairs:,} pairs, {student} -> {teacher}, {found['steps']} steps of {batch}, {threads} threads: "
        f"{seconds:.1f} s in all, {found['seconds']:.1f} s fitting, {mib:,.0f} MiB at most"
    )
    return {"seconds": seconds, "fit": found["seconds"], "mib": mib, "steps": found["steps"]}


def _config(folder: Path, *, batch: int, epochs: int) -> FitConfig:
    picture = folder / "pictures" / "one.png"
    picture.parent.mkdir()
    picture.write_bytes(b"a picture that is not read")
    pairs = PairsConfig(
        pictures=str(picture.parent),
        features=str(folder / "features"),
        towers=TowersConfig(arch="tiny-vit-64"),
        teacher=WordsTeacherConfig(),
    )
    return FitConfig(run=str(folder / "run"), pairs=pairs, batch=batch, epochs=epochs, log_every=20)


def _store(config: PairsConfig, pairs: int, widths: dict[str, int]) -> None:
    """Store pairs of random features that are alike, as a teacher's and a student's are."""
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(widths[STUDENT], widths[TEACHER], generator=draw)
    key = key_of(config, open_source(config))
    home, shards = home_of(config, key), list[FeatureShard]()
    for number, at in enumerate(range(0, pairs, ROWS)):
        rows = min(ROWS, pairs - at)
        seen = torch.randn(rows, widths[STUDENT], generator=draw)
        features = {STUDENT: seen, TEACHER: seen @ mix + 20 * torch.randn(rows, widths[TEACHER], generator=draw)}
        keys = [f"{at + row:06d}" for row in range(rows)]
        shards.append(write_shard(Folder(str(home)), number, features, keys=keys))
    write_manifest(home, key, shards)
