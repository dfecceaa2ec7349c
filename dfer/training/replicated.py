"""Update and optimizer state of engines with a full torch optimizer on every rank: DDP, and DeepSpeed at ZeRO 0."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dfer.run.checkpoints import AVERAGE
from dfer.torch_internals import multiply
from dfer.training.average import Average
from dfer.training.state import state_slots


def clipped_update(
    params: list[nn.Parameter], *, clip_norm: float | None, scale: float, apply: Callable[[], None]
) -> float:
    """Unscale and clip the gradients, call `apply`, and return their norm before clipping.

    When the norm is not finite, `apply` is not called and inf is returned. Gradients, and so the result, are the same
    on every rank.
    """
    grads = [p.grad for p in params if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads)) / scale
    finite = norm < float("inf")  # also False for NaN
    if finite:
        clip = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
        if clip / scale != 1.0:
            multiply(grads, clip / scale)
        apply()
    return norm if finite else float("inf")


def read_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], *, keep: bool) -> dict[str, Tensor]:
    """Copy the optimizer's tensors to the CPU, as `parameter/slot`; empty unless `keep`."""
    out = {}
    for group in optimizer.param_groups if keep else ():
        for param in group["params"]:
            for slot in state_slots(optimizer):
                value = optimizer.state.get(param, {}).get(slot)
                if value is not None:
                    out[f"{names[id(param)]}/{slot}"] = value.detach().to("cpu", copy=True).contiguous()
    return out


def write_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, Tensor]) -> None:
    """Replace the optimizer's tensors by copies of those in `state`, on each parameter's device."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            name = names[id(param)]
            for slot in state_slots(optimizer):
                value = state[f"{name}/{slot}"]
                # torch keeps the step count on the CPU.
                device = "cpu" if slot == "step" else param.device
                optimizer.state[param][slot] = value.to(device, torch.float32, copy=True)


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def read_average(
    average: Average | None, optimizer: torch.optim.Optimizer, names: Mapping[int, str], *, keep: bool
) -> dict[str, Tensor]:
    """Copy the averages to the CPU, as `parameter/average`; empty unless `keep`."""
    if average is None or not keep:
        return {}
    found = {f"{names[id(param)]}/{AVERAGE}": average.of(param) for param in params_of(optimizer)}
    return {key: value.to("cpu", copy=True).contiguous() for key, value in found.items()}


def write_average(
    average: Average, optimizer: torch.optim.Optimizer, names: Mapping[int, str], averages: Mapping[str, Tensor]
) -> None:
    """Overwrite the averages by those in `averages`."""
    for param in params_of(optimizer):
        average.of(param).copy_(averages[f"{names[id(param)]}/{AVERAGE}"])
