"""Measure forward and backward of any method, without data and update, beside named parts of it, interleaved."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfer.bench.step import clips_of_noise, timed
from dfer.choices import Precision
from dfer.config import ConfigProblem, changed
from dfer.emotions import Emotions, emotions_of, label_set
from dfer.inference import autocast
from dfer.jobs.config import RunConfig, load_run
from dfer.models.build import build, image_tower
from dfer.models.dk_clip import DkClip
from dfer.recognition import ClipBatch, Progress, Recognizer

Work = Callable[[], None]
TOWER = "image tower forward and backward"
SECOND = "second encoder forward and backward"


def bench_method(
    configs: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    clips: int = 2,
    precision: Precision = "fp32",
    rounds: int = 5,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time a method's forward and backward pass and its references in turn, `rounds` times after a first one.

    configs, overrides: of a run; its weights are not read, but drawn. clips: of a micro-batch. threads: of the CPU.

    Returns:
        `seconds`: median by name, `method` first. `ratios`: method / reference by the reference's name.
    """
    if min(clips, rounds) < 1 or (threads is not None and threads < 1):
        raise ConfigProblem("bench step: clips, rounds and threads are at least 1.")
    run = _without_weights(load_run(configs, overrides))
    before, towers = torch.get_num_threads(), run.model.towers
    torch.set_num_threads(threads or before)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        emotions = _emotions(run)
        model = build(run.model, emotions, num_frames=run.data.frames, seed=0).to(device).train()
        batch = clips_of_noise(clips, run.data.frames, run.data.size, device, classes=len(emotions))
        works = {"method": _pass(model, batch, precision)}
        if towers is not None:
            works |= _references(model, image_tower(towers, seed=0).visual.to(device), batch, precision)
        seconds = _medians(works, rounds, device)
    finally:
        torch.set_num_threads(before)
    if SECOND in seconds:
        seconds[f"{TOWER} and {SECOND}"] = seconds[TOWER] + seconds[SECOND]
    ratios = {name: seconds["method"] / value for name, value in seconds.items() if name != "method"}
    arch = towers.arch if towers is not None else "no CLIP"
    print(f"{run.model.name}, {arch}, {precision}, {clips} clips x {run.data.frames} frames")
    for name, value in seconds.items():
        print(
            f"{value:8.2f} s  {name}" + (f"; the method takes {ratios[name]:.2f} times this" if name in ratios else "")
        )
    return {"method": run.model.name, "seconds": seconds, "ratios": ratios}


def _without_weights(run: RunConfig) -> RunConfig:
    """Return the configuration with weights drawn instead of read, of methods with CLIP's towers or without."""
    if run.model.towers is None:
        return run
    return changed(run, {"model.towers.pretrained": None})


def _emotions(run: RunConfig) -> Emotions:
    """Return the classes that the configuration names; those of the shards are not read, seven stand for them."""
    names = run.data.classes
    return label_set(names or "basic7") if isinstance(names, str | None) else emotions_of(names)


def _medians(works: dict[str, Work], rounds: int, device: torch.device) -> dict[str, float]:
    """Run all works in turn, so that what else the machine does reaches all of them."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(timed(work, device))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _pass(model: Recognizer, batch: ClipBatch, precision: Precision) -> Work:
    """Forward and backward of the method; a method that trains nothing has no backward."""

    def work() -> None:
        with autocast(precision, batch.index.device):
            out = model(batch)
            terms = model.loss(out, batch, Progress(epoch=0, step=0, fraction=0.0))
        total = torch.stack([*terms.values()]).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return work


def _references(model: Recognizer, plain: nn.Module, batch: ClipBatch, precision: Precision) -> dict[str, Work]:
    """What the method is measured beside: its image tower without the method on the same frames, forward alone and
    forward and backward; DK-CLIP's also with its second encoder on the same snippets."""
    pictures = batch.frames.flatten(0, 1).float() / 255
    works = {
        "image tower forward": _forward(plain, pictures, precision),
        TOWER: _both(plain, (pictures,), precision),
    }
    if isinstance(model, DkClip):
        snippets = batch.frames.shape[1] // model.config.snippet
        shape = (len(batch.frames) * snippets, model.image.positional_embedding.shape[0] - 1, model.image.proj.shape[0])
        patches = torch.randn(shape, device=pictures.device, requires_grad=True)
        works[SECOND] = _both(model.semantic, (patches, snippets), precision)
    return works


def _forward(module: nn.Module, pictures: Tensor, precision: Precision) -> Work:
    def work() -> None:
        with torch.no_grad(), autocast(precision, pictures.device):
            module(pictures)

    return work


def _both(module: nn.Module, inputs: tuple[Any, ...], precision: Precision) -> Work:
    """Forward and backward of a module, all of whose parameters get a gradient."""
    module.requires_grad_(True)

    def work() -> None:
        with autocast(precision, inputs[0].device):
            out = module(*inputs)
        out.float().sum().backward()
        module.zero_grad()

    return work
