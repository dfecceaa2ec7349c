"""Engine on torch's DistributedDataParallel: full weights and optimizer state on every rank."""

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dfer.inference import Task
from dfer.recognition import Batch, Progress
from dfer.training import replicated as plain
from dfer.training.engine import Engine


class DdpEngine(Engine):
    """Averages gradients over the ranks during the backward pass of the last micro-batch."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, **shared: Any) -> None:
        super().__init__(task, **shared)
        self._torch_optimizer = optimizer
        # No broadcast of buffers: the engine averages those that training changes. torch 2.15 renamed the option.
        known = inspect.signature(DistributedDataParallel).parameters
        renamed = "forward_sync_buffers" in known
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        self._ddp = DistributedDataParallel(task, gradient_as_bucket_view=True, **options)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._torch_optimizer

    def _accumulate(self, batch: Batch, weight: Tensor, progress: Progress, *, last: bool) -> dict[str, Tensor]:
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            terms: dict[str, Tensor] = self._ddp(batch, progress)
            loss = torch.stack(list(terms.values())).sum() * weight * self._scale.value
            torch.autograd.backward(loss)
        return {name: term.detach() for name, term in terms.items()}

    def _update(self) -> float:
        norm = plain.clipped_update(
            plain.params_of(self._optimizer),
            clip_norm=self.config.clip_norm,
            scale=self._scale.value,
            apply=self._torch_optimizer.step,
        )
        self._torch_optimizer.zero_grad()
        return norm

    def _read_state(self) -> dict[str, Tensor]:
        return plain.read_state(self._optimizer, self._names, keep=self.world.is_first)

    def _write_state(self, state: Mapping[str, Tensor]) -> None:
        plain.write_state(self._optimizer, self._names, state)

    def _masters(self) -> list[Tensor]:
        return [*plain.params_of(self._optimizer)]

    def _read_average(self) -> dict[str, Tensor]:
        return plain.read_average(self._average, self._optimizer, self._names, keep=self.world.is_first)

    def _write_average(self, averages: Mapping[str, Tensor]) -> None:
        assert self._average is not None, "callers check that there is one"
        plain.write_average(self._average, self._optimizer, self._names, averages)

    def _write_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.task.learner.load_state_dict(dict(weights))

    def _group_params(self) -> list[set[str]]:
        return [{self._names[id(p)] for p in group["params"]} for group in self._optimizer.param_groups]
