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


def bench_zeroshot(*, arch: str, pictures: int, workers: int) -> dict[str, float]:
    """Evaluate noise with one prompt kind, then again with two, and print the cost of the second kind in per cent of
    the first: in the same run, and in a run of its own that finds the features.

    pictures: stills, in seven classes.
    """
    with tempfile.TemporaryDirectory() as folder, process_group(World()):
        home = Path(folder)
        _write(home, arch=arch, pictures=pictures)
        first = _seconds(home, arch, KINDS[:1], workers)
        own = _seconds(home, arch, KINDS, workers)
        again = _seconds(home, arch, KINDS, workers, features="both")
    found = {"first": first["all"], "in_one_run": again["exp_clip, ensemble_10"], "in_a_run_of_its_own": own["all"]}
    for name in ("in_one_run", "in_a_run_of_its_own"):
        print(f"second kind {name.replace('_', ' ')}: {found[name]:.2f} s, {100 * found[name] / first['all']:.2f} %")
    print(f"first kind: {first['all']:.1f} s for {pictures:,} pictures, {arch}")
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


def _seconds(
    home: Path, arch: str, kinds: tuple[str, ...], workers: int, *, features: str = "features"
) -> dict[str, float]:
    """Evaluate; returns the seconds of each step and of all."""
    plain = {
        "run": str(home),
        "features": str(home / features),
        "models": {"exp_clip": {"towers": {"arch": arch}, "head": str(home / "head.safetensors")}},
        "texts": list(kinds),
        "sets": {"noise": {"pictures": str(home / "pictures")}},
        "workers": workers,
        "batch": 64,
    }
    began = time.perf_counter()
    run = str(home / f"run_{len(kinds)}_{features}")
    result = evaluate_set(from_plain(ZeroshotConfig, plain), "noise", run, World(), Stop())
    return {**result.seconds, "all": time.perf_counter() - began}
