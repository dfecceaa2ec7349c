"""Build the engine that a configuration selects."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dfer.choices import Precision
from dfer.config import ConfigProblem
from dfer.distributed import World
from dfer.errors import message
from dfer.inference import Task, set_tf32
from dfer.recognition import Learner
from dfer.training.config import EngineConfig, OptimConfig
from dfer.training.engine import Engine
from dfer.training.optim import build_optimizer, clamp_gradients, group_settings
from dfer.training.state import Layout


def build_engine(
    config: EngineConfig,
    learner: Learner,
    *,
    optim: OptimConfig,
    world: World,
    global_batch: int,
    micro_batch: int,
    seed: int,
    key_of: Callable[[int], str] = str,
    mixes: bool = False,
    ema: float | None = None,
) -> Engine:
    """Build the engine of `config` for `learner`, on this process's device, inside a process group. COLLECTIVE.

    global_batch: clips per step over all ranks; micro_batch: clips per forward pass of a rank, fewer in the last
    micro-batch of a step if it does not divide the rank's part of the step;
    seed: of random draws in the forward pass; key_of: maps `ClipBatch.index` to the clip's key, for messages;
    mixes: whether the clips of a micro-batch are mixed, which couples them whatever the learner says; ema: decay of the
    average of the weights, None = no average.

    Raises:
        UsageError: unusable precision, batch sizes or parameter groups, or DeepSpeed is missing.
    """
    check_precision(config.precision, world.device)
    set_tf32(config.tf32)
    share, rest = divmod(global_batch, world.size)
    if rest or not share:
        do = "Choose another batch or other numbers of processes."
        raise ConfigProblem(
            message("batch", expected=f"a multiple of {world.size} ranks", got=str(global_batch), do=do)
        )
    accumulation = -(-share // micro_batch)
    if learner.coupling == "step" and accumulation > 1:
        do = "Leave it out: this method contrasts every clip of a step with all others."
        expected = f"none or {share}, a rank's whole part of a step"
        raise ConfigProblem(message("micro_batch", expected=expected, got=str(micro_batch), do=do))
    learner.to(world.device)
    for buffer in learner.buffers():
        # The engines broadcast the first rank's parameters themselves, but not its buffers.
        dist.broadcast(buffer, src=0)
    task = Task(learner, precision=config.precision, cache=config.zero < 3)
    settings, optimizer = group_settings(optim, learner), build_optimizer(optim, learner)
    if config.clip_value is not None:
        clamp_gradients(optimizer, config.clip_value)
    shared = {
        "config": config,
        "settings": settings,
        "world": world,
        "layout": Layout(ranks=world.size, micro_batch=micro_batch),
        "accumulation": accumulation,
        "key_of": key_of,
        "seed": seed,
        "coupling": "micro_batch" if mixes else learner.coupling,
    }
    engine = _made(config, task, optimizer, shared)
    if ema is not None:
        engine.start_average(ema)
    return engine


def _made(config: EngineConfig, task: Task, optimizer: torch.optim.Optimizer, shared: dict[str, Any]) -> Engine:
    if config.name == "ddp":
        from dfer.training.ddp import DdpEngine

        return DdpEngine(task, optimizer, **shared)
    # Imported here: it takes seconds and is not needed with ddp.
    from dfer.training.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(task, optimizer, **shared)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise ConfigProblem for fp16 on a CPU, which neither DeepSpeed nor most CPUs support."""
    if precision == "fp16" and device.type == "cpu":
        do = "Set engine.precision=bf16 (or fp32), or start on a machine with a GPU."
        raise ConfigProblem(message("engine.precision", expected="fp32 or bf16 on a CPU", got="fp16", do=do))
