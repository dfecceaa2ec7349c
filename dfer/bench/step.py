"""Measure clips per second of a whole DFER-CLIP training step: forward, backward and SGD update, without data."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.towers import END_TOKEN, START_TOKEN
from dfer.recognition import ClipBatch, Progress, Recognizer

# Rates of the published recipe (Zhao & Patras, BMVC 2023, section 4.2); they do not change the time.
RATES = {"temporal": 1e-2, "image": 1e-5, "prompts": 1e-3}


def bench_step(
    *,
    arch: str = "ViT-B-32-quickgelu",
    clips: int = 2,
    frames: int = 16,
    size: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    steps: int = 5,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time `steps` steps after a warm-up step, on a GPU if there is one.

    clips: per step. frames: per clip. size: pixels, None for the architecture's own. precision: bf16 means autocast.
    threads: of the CPU, None for torch's default.

    Returns:
        The settings, `seconds` of each step, `clips_per_second` from their median, and `device`.
    """
    if min(clips, frames, steps) < 1 or (threads is not None and threads < 1):
        raise ConfigProblem("bench step: clips, frames, steps and threads are at least 1.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = DferClipConfig(towers=TowersConfig(arch=arch, image_size=size))
        model = build(config, label_set("basic7"), num_frames=frames, seed=0).to(device)
        assert isinstance(model, DferClip)
        step = _step(model, clips_of_noise(clips, frames, model.image_size, device), precision)
        seconds = [timed(step, device) for _ in range(steps + 1)][1:]
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    rate = clips / statistics.median(seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {used} threads"
    print(f"{arch}, {precision}, {clips} clips x {frames} frames on {name}: {rate:.2f} clips/s")
    return {
        "arch": arch,
        "precision": precision,
        "clips": clips,
        "frames": frames,
        "device": name,
        "seconds": seconds,
        "clips_per_second": rate,
    }


def clips_of_noise(clips: int, frames: int, size: int, device: torch.device, *, classes: int = 7) -> ClipBatch:
    """Make a batch of random pixels, size x size, with labels in turn and captions of one word."""
    pictures = torch.randint(0, 256, (clips, frames, 3, size, size), dtype=torch.uint8)
    words = torch.arange(clips) + 1
    batch = ClipBatch(
        frames=pictures,
        labels=torch.arange(clips) % classes,
        index=torch.arange(clips),
        text=torch.stack([torch.full_like(words, START_TOKEN), words, torch.full_like(words, END_TOKEN)], dim=1),
    )
    return batch.to(device)


def _step(model: Recognizer, batch: ClipBatch, precision: str) -> Callable[[], None]:
    groups = [{"params": group.params, "lr": RATES[name]} for name, group in model.param_groups().items()]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=1e-4)
    device = batch.frames.device.type

    def step() -> None:
        cast = torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()
        with cast:
            out = model(batch)
        terms = model.loss(out, batch, Progress(epoch=0, step=0, fraction=0.0))
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of a call, with what it left to the device."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
