"""Pictures/s of `dfer extract` beside a bare loop of both models over pictures in memory."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dfer.config import ConfigProblem
from dfer.interruption import Stop
from dfer.jobs import extract
from dfer.jobs.extract import ExtractConfig
from dfer.jobs.pair_data import Pairs
from dfer.jobs.pairs import PairsConfig
from dfer.models.config_towers import TowersConfig
from dfer.teacher.config import Blip2TeacherConfig

LEAST = 100_000_000
"""Parameters of the teacher, at least."""


def bench_extract(*, batch: int = 8, batches: int = 9, rounds: int = 3) -> dict[str, Any]:
    """Time one part of the job, to its last shard, and the bare loop, in turns; without the first batch of each.

    Returns:
        Medians in pictures/s, `job` and `bare`, their `ratio`, the teacher's `parameters`, and the `device`: the first
        GPU if there is one, else the CPU.
    """
    if min(batch, batches - 1, rounds) < 1:
        raise ConfigProblem("bench extract: batch and rounds are at least 1, batches 2.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="dfer-bench-") as name:
        folder = Path(name)
        write_pictures(folder / "pictures", batch * batches)
        teacher = write_teacher(folder / "teacher")
        pairs = PairsConfig(
            pictures=str(folder / "pictures"),
            features=str(folder / "features"),
            towers=TowersConfig(arch="ViT-B-32-quickgelu"),
            teacher=Blip2TeacherConfig(model=str(teacher), precision="fp32"),
            batch=batch,
        )
        models = Pairs(pairs, device)
        parameters = sum(each.numel() for each in models.teacher.parameters())
        assert parameters >= LEAST, "a small teacher would measure the loop alone"
        pictures = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
        models.features(pictures, [""] * batch)
        found: dict[str, list[float]] = {"bare": [], "job": []}
        for number in range(rounds):
            found["bare"].append(_after_first(models, device, partial(_bare, models, pictures, batches)))
            found["job"].append(_after_first(models, device, partial(_job, pairs, folder, number, models)))
    rates = {name: batch * (batches - 1) / statistics.median(seconds) for name, seconds in found.items()}
    ratio = rates["job"] / rates["bare"]
    used = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"ViT-B/32 and a teacher of {parameters / 1e6:.0f} M parameters, {batches} batches of {batch} on {used}: "
        f"{rates['job']:.2f} pictures/s, bare loop {rates['bare']:.2f}, ratio {ratio:.3f}"
    )
    return {**rates, "ratio": ratio, "parameters": parameters, "seconds": found, "device": used}


def _after_first(models: Pairs, device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds from the end of the first forward pass to the end of the work, on the device too: what a long job does
    all the time. The start of the data workers comes before."""
    ends: list[float] = []
    forward = models.features

    def noted(pictures: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        found = forward(pictures, texts)
        if not ends:
            _synchronise(device)
        ends.append(time.perf_counter())
        return found

    models.features = noted  # type: ignore[method-assign]
    try:
        work()
    finally:
        models.features = forward  # type: ignore[method-assign]
    _synchronise(device)
    return time.perf_counter() - ends[0]


def _synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bare(models: Pairs, pictures: Tensor, batches: int) -> None:
    for _ in range(batches):
        models.features(pictures, [""] * len(pictures))


def _job(pairs: PairsConfig, folder: Path, number: int, models: Pairs) -> None:
    """One part over all pictures, with models that are loaded already."""
    from dataclasses import replace

    own = replace(pairs, features=str(folder / f"features_{number}"))
    config = ExtractConfig(run=str(folder / f"run_{number}"), pairs=own)
    extract.run_with(config, extract.parts(config)[0], Stop(), lambda: models)


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of the size of face crops."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(count):
        small = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC))


def write_teacher(folder: Path) -> Path:
    """Write a random BLIP-2 of more than 100 M parameters, and a tokenizer of its own."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    from dfer.bench.tokenizer import word_tokenizer
    from dfer.teacher.config import DESCRIBE

    torch.manual_seed(1)
    config = Blip2Config(
        vision_config={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "image_size": 224,
            "patch_size": 16,
        },
        qformer_config={
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "encoder_hidden_size": 512,
            "vocab_size": 64,
        },
        text_config={
            "model_type": "t5",
            "d_model": 768,
            "d_ff": 2048,
            "num_layers": 8,
            "num_decoder_layers": 1,
            "num_heads": 12,
            "d_kv": 64,
            "vocab_size": 128,
            "feed_forward_proj": "gated-gelu",
        },
        num_query_tokens=32,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    word_tokenizer(DESCRIBE.split()).save_pretrained(folder)
    return folder
