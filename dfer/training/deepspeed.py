"""Engine on DeepSpeed: ZeRO 0-3 with torch optimizers; checkpoints do not use DeepSpeed's format.

DeepSpeed keeps ZeRO's optimizer state in flat fp32 tensors that are partitioned over the ranks. On saving they are
gathered into full tensors by parameter name, and on loading partitioned again, so that a checkpoint depends neither on
the stage nor on the number of ranks. DeepSpeed's universal checkpoints are not used: at ZeRO 3 they give every group
the first group's rate (0.19.8).
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dfer.distributed import World
from dfer.errors import UsageError, message
from dfer.inference import Task
from dfer.recognition import Batch, Progress
from dfer.run.checkpoints import AVERAGE
from dfer.training import replicated as plain
from dfer.training.engine import Engine
from dfer.training.state import state_slots

# Elements per bucket; DeepSpeed's default of 5e8 would allocate 2 GB of fp32 at the start.
BUCKET = 50_000_000

# Warnings that every run causes and that need no action: tests compare torch's SGD and AdamW under ZeRO with plain
# torch, and `_keep_during_backward` registers the parameters that ZeRO 3 cannot see in a Recognition. The engine
# reports skipped steps itself.
_HARMLESS = ("ZeRO with an untested optimizer", "unknown inputs or outputs type", "OVERFLOW! Skipping step")


class DeepSpeedEngine(Engine):
    """Steps with the engine of `deepspeed.initialize`; sets the accumulation boundary itself before each backward."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, **shared: Any) -> None:
        super().__init__(task, **shared)
        self._ds = _initialize(task, optimizer, self._plain_config(), self.world)
        if self.config.zero == 3:
            _keep_during_backward(task)
        # ZeRO's wrapper; at stage 0 the torch optimizer itself.
        self._zero: Any = self._ds.optimizer
        self._stage = self.config.zero
        self._torch_optimizer: torch.optim.Optimizer = self._zero.optimizer if self._stage else self._zero

    def close(self) -> None:
        """Release the model, which ZeRO's hooks would keep alive until the process ends (ZeRO 3: an empty shell)."""
        self._ds.destroy()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._torch_optimizer

    def _plain_config(self) -> dict[str, Any]:
        zero = {
            "stage": self.config.zero,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            # Replaces torch.nn.functional.linear for the whole process.
            "memory_efficient_linear": False,
        }
        return {
            # Nominal: the last micro-batch may be smaller. Each is weighted by its clips, so DeepSpeed must not scale.
            "train_batch_size": self.layout.micro_batch * self.accumulation * self.world.size,
            "train_micro_batch_size_per_gpu": self.layout.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            # At stage 0 `plain.clipped_update` clips: DeepSpeed's clipping does not return the norm.
            "gradient_clipping": (self.config.clip_norm or 0.0) if self.config.zero else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
        }

    def _accumulate(self, batch: Batch, weight: Tensor, progress: Progress, *, last: bool) -> dict[str, Tensor]:
        self._ds.set_gradient_accumulation_boundary(last)
        if self._stage and self._scale.enabled:
            self._zero.override_loss_scale(self._scale.value)
        terms: dict[str, Tensor] = self._ds(batch, progress)
        loss = torch.stack(list(terms.values())).sum() * weight
        self._ds.backward(loss if self._stage else loss * self._scale.value, scale_wrt_gas=False)
        return {name: term.detach() for name, term in terms.items()}

    def _update(self) -> float:
        if self._stage:
            self._ds.step()
            return float(self._ds.get_global_grad_norm()) if self._ds.was_step_applied() else float("inf")
        norm = plain.clipped_update(
            plain.params_of(self._optimizer),
            clip_norm=self.config.clip_norm,
            scale=self._scale.value,
            apply=self._ds.step,
        )
        self._ds.zero_grad()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Gather all fp32 parameters and buffers by name, on the CPU; empty except on the first rank. COLLECTIVE."""
        out = super().weights()
        if self._stage == 3:
            # Gather one parameter at a time: the whole model may not fit on the device.
            for name, param in self.task.learner.named_parameters(remove_duplicate=False):
                with _gathered(param, write=False):
                    if self.world.is_first:
                        out[name] = param.detach().to("cpu", copy=True).contiguous()
        return out

    def _write_weights(self, weights: Mapping[str, Tensor]) -> None:
        if self._stage < 3:
            self.task.learner.load_state_dict(dict(weights))
        else:
            for name, param in self.task.learner.named_parameters():
                with _gathered(param, write=True), torch.no_grad():
                    param.copy_(weights[name])
            for name, buffer in self.task.learner.named_buffers():
                if name in weights:
                    buffer.copy_(weights[name])
        if self._stage:
            self._zero.refresh_fp32_params()

    def _read_state(self) -> dict[str, Tensor]:
        if not self._stage:
            return plain.read_state(self._optimizer, self._names, keep=self.world.is_first)
        out = {}
        for name, param, part in self._parts():
            for slot, value in self._optimizer.state.get(part.flat, {}).items():
                if value is None:
                    continue
                full = value if value.ndim == 0 else part.joined(value, param)
                if self.world.is_first:
                    out[f"{name}/{slot}"] = full.detach().to("cpu", torch.float32, copy=True).contiguous()
        return out

    def _write_state(self, state: Mapping[str, Tensor]) -> None:
        if not self._stage:
            return plain.write_state(self._optimizer, self._names, state)
        slots = [slot for slot in state_slots(self._optimizer) if slot != "step"]
        for name, _, part in self._parts():
            kept = self._optimizer.state[part.flat]
            for slot in slots:
                part.cut(state[f"{name}/{slot}"], kept.setdefault(slot, torch.zeros_like(part.flat)))
            if f"{name}/step" in state:
                kept["step"] = state[f"{name}/step"].clone()
        return None

    def _masters(self) -> list[Tensor]:
        if not self._stage:
            return [*plain.params_of(self._optimizer)]
        flat = (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return list(flat)

    def _read_average(self) -> dict[str, Tensor]:
        if self._average is None or not self._stage:
            return plain.read_average(self._average, self._optimizer, self._names, keep=self.world.is_first)
        out = {}
        for name, param, part in self._parts():
            full = part.joined(self._average.of(part.flat), param)
            if self.world.is_first:
                out[f"{name}/{AVERAGE}"] = full.to("cpu", copy=True).contiguous()
        return out

    def _write_average(self, averages: Mapping[str, Tensor]) -> None:
        assert self._average is not None, "callers check that there is one"
        if not self._stage:
            return plain.write_average(self._average, self._optimizer, self._names, averages)
        for name, _, part in self._parts():
            part.cut(averages[f"{name}/{AVERAGE}"], self._average.of(part.flat))
        return None

    def _group_params(self) -> list[set[str]]:
        if not self._stage:
            return [{self._names[id(p)] for p in group["params"]} for group in self._optimizer.param_groups]
        if self._stage < 3:
            return [{self._names[id(p)] for p in group} for group in self._zero.bit16_groups]
        out: list[set[str]] = [set() for _ in self.settings]
        for i, sub_group in enumerate(self._zero.fp16_groups):
            out[self._zero.sub_group_to_group_id[i]] |= {self._names[id(p)] for p in sub_group}
        return out

    def _parts(self) -> Iterator[tuple[str, nn.Parameter, "_Part"]]:
        """Yield every trained parameter with this rank's part of it in ZeRO's flat tensors; same order on all ranks."""
        groups = self._zero.fp16_groups if self._stage == 3 else self._zero.bit16_groups
        for i, group in enumerate(groups):
            for param in group:
                yield self._names[id(param)], param, self._part(i, param)

    def _part(self, group: int, param: nn.Parameter) -> "_Part":
        if self._stage == 3:
            index, at, size = self._zero.grad_position[self._zero.get_param_id(param)]
            flat, start = self._zero.fp32_partitioned_groups_flat[index], size * self.world.rank
            total, shape = param.ds_numel, param.ds_shape  # type: ignore[attr-defined]
            return _Part(flat, at=at, start=start, size=max(0, min(size, total - start)), shape=shape)
        flat, mapping = self._zero.single_partition_of_fp32_groups[group], param._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return _Part(flat, at=0, start=0, size=0, shape=param.shape)
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        return _Part(flat, at=here.start, start=there.start, size=there.numel, shape=param.shape)


class _Part:
    """Elements start : start + size of a parameter of `shape`, stored from `at` on in this rank's flat tensor."""

    def __init__(self, flat: Tensor, *, at: int, start: int, size: int, shape: torch.Size) -> None:
        self.flat, self._shape = flat, shape
        self._here, self._there = slice(at, at + size), slice(start, start + size)

    def joined(self, flat: Tensor, param: nn.Parameter) -> Tensor:
        """Assemble the full tensor from all ranks' parts, which do not overlap, by a sum. COLLECTIVE."""
        full = torch.zeros(self._shape.numel(), dtype=torch.float32, device=flat.device)
        full[self._there] = flat[self._here]
        dist.all_reduce(full)
        return full.view(self._shape)

    def cut(self, full: Tensor, flat: Tensor) -> None:
        """Copy this rank's part of `full` into `flat`."""
        flat[self._here] = full.reshape(-1)[self._there].to(flat)


@contextlib.contextmanager
def _gathered(param: nn.Parameter, *, write: bool) -> Iterator[None]:
    """Gather a parameter on every rank within the block. write: broadcast rank 0's change at the end. COLLECTIVE."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([param], modifier_rank=0 if write else None):
        yield


def _initialize(task: Task, optimizer: torch.optim.Optimizer, config: dict[str, Any], world: World) -> Any:
    # DeepSpeed reads LOCAL_RANK throughout training as the device number. Not restored: nothing else reads it later.
    os.environ["LOCAL_RANK"] = str(world.local_rank if world.device.index is None else world.device.index)
    with _quiet():
        deepspeed = _import()
        engine, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def _import() -> Any:
    """Import DeepSpeed with its device set and its operators that need a compiler disabled.

    Raises:
        UsageError: it is not installed or does not start.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.utils import groups
    except Exception as error:
        expected, do = "an importable deepspeed", "Install it (pip install deepspeed), or set engine.name=ddp."
        raise UsageError(message("engine.name=deepspeed", expected=expected, got=repr(error), do=do)) from error
    # The only operator that a CPU run would compile (25 s, with g++ and ninja) is for inference and never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    import_muon()
    _forget_old_groups(groups)
    return deepspeed


def import_muon() -> None:
    """Import DeepSpeed's Muon without torch's compiler.

    ZeRO 1 to 3 import this optimizer, which is not offered here, to ask whether it is in use. Its decorators would
    import TorchInductor: 1.5 s of CPU time in every process.
    """
    from deepspeed.runtime import compiler

    decorator = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = decorator


def _keep_during_backward(task: Task) -> None:
    """Keep the recognizer's own parameters gathered during the backward pass. ZeRO 3 finds modules by the tensors they
    return and does not look into a Recognition, so these parameters are registered with the task, which returns plain
    tensors."""
    import deepspeed

    for param in task.learner.parameters(recurse=False):
        deepspeed.zero.register_external_parameter(task, param)


_last_group: list[object] = []


def _forget_old_groups(groups: Any) -> None:
    """Release DeepSpeed's cached process groups when they belong to a default group that no longer exists."""
    if _last_group and _last_group[0] is not dist.group.WORLD:
        groups._release_process_group_references()
    _last_group[:] = [dist.group.WORLD]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress DeepSpeed's warnings that need no action, and redirect its output to stderr; stdout is for results."""
    logger = logging.getLogger("DeepSpeed")
    if _concerns_user not in logger.filters:
        logger.addFilter(_concerns_user)
    # A CUDA build of torch warns of missing CUDA on every CPU machine.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _concerns_user(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _HARMLESS)
