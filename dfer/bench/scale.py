"""Estimate step time, storage traffic and checkpoint times with 8, 64 and 512 GPUs: a calculation, with assumptions.

Nothing here is measured on GPUs. Letters: D width, L layers, N tokens of an image, T frames of a clip.
"""

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An image tower, with the parameters that DFER-CLIP trains and saves (counted on the built models, 7 classes).

    tokens: of a 224 px picture with the class token; trained, saved: parameters.
    """

    name: str
    layers: int
    width: int
    tokens: int
    trained: int
    saved: int

    @property
    def flops(self) -> float:
        """FLOPs of one picture's forward pass, a multiply-add counted as two: L N (24 D^2 + 4 N D)."""
        return self.layers * self.tokens * (24 * self.width**2 + 4 * self.tokens * self.width)


BACKBONES = (
    Backbone(name="ViT-B/32", layers=12, width=768, tokens=50, trained=89_988_352, saved=153_416_448),
    Backbone(name="ViT-B/16", layers=12, width=768, tokens=197, trained=88_331_776, saved=151_759_872),
    Backbone(name="ViT-L/14", layers=24, width=1024, tokens=257, trained=307_174_400, saved=430_824_704),
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Assumptions. Rates are of one GPU, node or store as named; bytes and FLOPs a second, seconds."""

    gpus_a_node: int = 8
    gpu_flops: float = 312e12 * 0.35
    """bf16 peak of an A100 times the fraction that ViT training reaches."""
    node_link: float = 300e9
    """All-reduce bandwidth inside a node (NVLink)."""
    wire: float = 25e9
    """Bandwidth of a node to the others (200 Gbit/s)."""
    latency: float = 10e-6
    """Latency of one hop of a small message."""
    overlap: float = 0.7
    """Fraction of the backward pass during which gradients are already sent."""
    store_node: float = 1.2e9
    """From the object store to one node."""
    store_all: float = 40e9
    """From the object store to all nodes."""
    frames_a_core: float = 2_795
    """Frames decoded and augmented per second on one CPU core (docs/benchmarks, 2026-11-22)."""
    pcie: float = 20e9
    """Bandwidth of copies out of device memory."""
    hash_rate: float = 1.5e9
    """SHA-256 on one core, which also bounds background saves."""
    clip_frames: float = 75
    """Stored frames of a clip, of which T are decoded; 9.7 kB each."""
    frame_bytes: float = 9_700
    frames: int = 16
    """T."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One row of the table: seconds, clips per second, bytes per second over all nodes; efficiency: relative to one
    GPU."""

    backbone: str
    gpus: int
    clips_a_gpu: int
    step: float
    compute: float
    exposed: float
    clips_a_second: float
    efficiency: float
    cold_traffic: float
    cold_limit: float
    cores_a_gpu: float
    copy_out: float
    written: float
    resume: float


def estimate(backbone: Backbone, gpus: int, *, clips_a_gpu: int, cluster: Cluster | None = None) -> Estimate:
    """Estimate step, traffic and checkpoint times of DFER-CLIP with SGD (one fp32 slot per trained parameter), with DDP
    or ZeRO 0.

    cold_traffic: bytes/s that the store must deliver in the first epoch, with an empty cache, so that GPUs do not wait;
    cold_limit: fraction of full speed that `store_node` and `store_all` then allow.
    """
    c = cluster or Cluster()
    compute = 3 * backbone.flops * c.frames * clips_a_gpu / c.gpu_flops
    sent = _all_reduce(4 * backbone.trained, gpus, c)
    # Three small all-reduces per step: counts, losses, and the agreement on the next action (dfer/training).
    votes = 3 * 2 * math.ceil(math.log2(gpus)) * c.latency if gpus > 1 else 0.0
    exposed = max(0.0, sent - c.overlap * compute * 2 / 3) + votes
    rate = gpus * clips_a_gpu / (compute + exposed)
    cold = rate * c.clip_frames * c.frame_bytes
    can = min(c.store_all, c.store_node * math.ceil(gpus / c.gpus_a_node))
    saved = 4 * (backbone.saved + backbone.trained)
    return Estimate(
        backbone=backbone.name,
        gpus=gpus,
        clips_a_gpu=clips_a_gpu,
        step=compute + exposed,
        compute=compute,
        exposed=exposed,
        clips_a_second=rate,
        efficiency=compute / (compute + exposed),
        cold_traffic=cold,
        cold_limit=min(1.0, can / cold),
        cores_a_gpu=rate / gpus * c.frames / c.frames_a_core,
        copy_out=saved / c.pcie,
        written=saved / min(c.hash_rate, c.store_node),
        resume=saved / c.store_node + saved / c.hash_rate + saved / (c.wire if gpus > c.gpus_a_node else c.node_link),
    )


def _all_reduce(size: float, gpus: int, c: Cluster) -> float:
    """Return the seconds of an all-reduce of `size` bytes over all GPUs: a ring in each node, then between nodes."""
    inside, nodes = min(gpus, c.gpus_a_node), math.ceil(gpus / c.gpus_a_node)
    seconds = 2 * (inside - 1) / inside * size / c.node_link
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * size / c.wire + 2 * nodes * c.latency
    return seconds


def markdown(gpus: tuple[int, ...] = (1, 8, 64, 512), *, batch: int | None = None, clips_a_gpu: int = 12) -> str:
    """Format the table. batch: a fixed global batch, divided over the GPUs; without it, clips_a_gpu per GPU."""
    columns = (
        "backbone",
        "GPUs",
        "clips a GPU",
        "step, ms",
        "sums not hidden, ms",
        "clips/s",
        "efficiency",
        "store, cold, GB/s",
        "cold speed",
        "cores a GPU",
        "copy out, s",
        "written, s",
        "read again, s",
    )
    head = f"| {' | '.join(columns)} |"
    lines = [head, "| --- |" + " ---: |" * 12]
    for backbone in BACKBONES:
        for count in gpus:
            share = clips_a_gpu if batch is None else batch // count
            if batch is not None and (not share or batch % count):
                lines.append(f"| {backbone.name} | {count} | {batch / count:.2f} |" + " – |" * 10)
                continue
            lines.append(_line(estimate(backbone, count, clips_a_gpu=share)))
    return "\n".join(lines)


def _line(e: Estimate) -> str:
    cells: list[Any] = [
        e.backbone,
        e.gpus,
        e.clips_a_gpu,
        f"{1e3 * e.step:.1f}",
        f"{1e3 * e.exposed:.1f}",
        f"{e.clips_a_second:,.0f}",
        f"{e.efficiency:.0%}",
        f"{e.cold_traffic / 1e9:.1f}",
        f"{e.cold_limit:.0%}",
        f"{e.cores_a_gpu:.1f}",
        f"{e.copy_out:.2f}",
        f"{e.written:.1f}",
        f"{e.resume:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def bench_scale() -> None:
    """Print both tables and the assumptions."""
    print("12 clips a GPU:\n\n" + markdown() + "\n\nA batch of 48 in all:\n\n" + markdown((1, 8, 16, 64), batch=48))
    print("\nassumptions: " + ", ".join(f"{f.name} {getattr(Cluster(), f.name):g}" for f in fields(Cluster)))
