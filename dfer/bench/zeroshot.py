"""Measure what the second prompt kind of a zero-shot suite costs on a data set beside the first."""

import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from safetensors.torch import save_file

from dfer.config import from_plain
from dfer.distributed import World, process_group
from dfer.emotions import BASIC7
from dfer.interruption import Stop
from dfer.jobs.zeroshot_config import ZeroshotConfig
from dfer.jobs.zeroshot_scores import evaluate_set
from dfer.models.config_towers import TowersConfig
from dfer.models.towers import clip_settings

KINDS = ("class_names", "ensemble_10")
"""The first kind, and the longest one as the second."""
LATER = ("ensemble_5",)
"""The kind of a later run."""


def bench_zeroshot(*, arch: str, pictures: int, workers: int) -> dict[str, float]:
    """Evaluate noise with two prompt kinds, then with another one, and print what these cost in per cent of the first:
    the second kind in the same run, and the third in a run of its own that finds the features of the pictures.

    pictures: stills, in seven classes.
    """
    with tempfile.TemporaryDirectory() as folder, process_group(World()):
        home = Path(folder)
        _write(home, arch=arch, pictures=pictures)
        one, later = _seconds(home, arch, KINDS, workers), _seconds(home, arch, LATER, workers)
    first = one["features"] + one[f"exp_clip, {KINDS[0]}"]
    found = {"first": first, "second": one[f"exp_clip, {KINDS[1]}"], "later": later["all"]}
    print(f"first kind, with the features of {pictures:,} pictures, {arch}: {first:.1f} s")
    print(f"second kind ({KINDS[1]}) in the same run: {found['second']:.2f} s, {100 * found['second'] / first:.2f} %")
    print(f"another ({LATER[0]}) in a run of its own: {found['later']:.2f} s, {100 * found['later'] / first:.2f} %")
    return found


def _write(home: Path, *, arch: str, pictures: int) -> None:
    draw = np.random.default_rng(1)
    for number in range(pictures):
        folder = home / "pictures" / BASIC7[number % len(BASIC7)]
        folder.mkdir(parents=True, exist_ok=True)
        noise = draw.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        (folder / f"{number:06d}.jpg").write_bytes(simplejpeg.encode_jpeg(noise, quality=90))
    dim = clip_settings(TowersConfig(arch=arch))["embed_dim"]
    save_file({"mlp.weight": torch.randn(4096, dim) / dim**0.5}, home / "head.safetensors")


def _seconds(home: Path, arch: str, kinds: tuple[str, ...], workers: int) -> dict[str, float]:
    """Evaluate; returns the seconds of each step and of all."""
    plain = {
        "run": str(home),
        "features": str(home / "features"),
        "models": {"exp_clip": {"towers": {"arch": arch}, "head": str(home / "head.safetensors")}},
        "texts": list(kinds),
        "sets": {"noise": {"pictures": str(home / "pictures")}},
        "workers": workers,
        "batch": 64,
    }
    began = time.perf_counter()
    run = str(home / f"run_{'_'.join(kinds)}")
    result = evaluate_set(from_plain(ZeroshotConfig, plain), "noise", run, World(), Stop())
    return {**result.seconds, "all": time.perf_counter() - began}
