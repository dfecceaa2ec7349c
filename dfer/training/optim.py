"""Torch optimizers with named parameter groups, built from the configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dfer.errors import UsageError, did_you_mean
from dfer.recognition import Group, Learner
from dfer.training.config import AdamConfig, AdamWConfig, OptimConfig, SgdConfig


@dataclass(frozen=True, kw_only=True)
class GroupSetting:
    """Required settings of one optimizer group. lr: rate at schedule factor 1; others: momentum, or betas and eps."""

    name: str
    lr: float
    weight_decay: float
    others: Mapping[str, Any] = field(default_factory=dict)
    params: tuple[str, ...] = field(repr=False)


def group_settings(config: OptimConfig, learner: Learner) -> list[GroupSetting]:
    """Return the optimizer groups of a learner in a fixed order, with the names of their parameters.

    Raises:
        UsageError: `optim.groups` does not name exactly the learner's groups.
        ValueError: the learner's groups are not exactly its trainable parameters (a bug in the model).
    """
    groups = learner.param_groups()
    _check_names(config.groups, groups)
    names = _names_of(learner, groups)
    out: list[GroupSetting] = []
    for group, found in groups.items():
        params = found.params
        rate = config.groups[group]
        decay = config.weight_decay if rate.weight_decay is None else rate.weight_decay
        spared = isinstance(config, AdamWConfig | AdamConfig) and config.no_decay
        vectors = [not found.decay or (spared and p.ndim < 2) for p in params]
        for part, part_decay, wanted in ((group, decay, False), (f"{group}/no_decay", 0.0, True)):
            chosen = tuple(names[id(p)] for p, is_vector in zip(params, vectors) if is_vector == wanted)
            if chosen:
                out.append(
                    GroupSetting(name=part, lr=rate.lr, weight_decay=part_decay, others=config.shared, params=chosen)
                )
    return out


def build_optimizer(config: OptimConfig, learner: Learner) -> torch.optim.Optimizer:
    """Build a torch optimizer over the trainable parameters, with one named group per entry of `group_settings`."""
    by_name = dict(learner.named_parameters())
    groups = [
        {"name": s.name, "lr": s.lr, "weight_decay": s.weight_decay, "params": [by_name[name] for name in s.params]}
        for s in group_settings(config, learner)
    ]
    match config:
        case SgdConfig():
            return torch.optim.SGD(groups, lr=0.0, **config.shared)
        case AdamWConfig():
            return torch.optim.AdamW(groups, lr=0.0, **config.shared)
        case AdamConfig():
            return torch.optim.Adam(groups, lr=0.0, **config.shared)


def clamp_gradients(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Clamp every element of a gradient to -limit..limit before each update.

    All engines unscale the gradients before they call the optimizer's `step`, also ZeRO, whose flat gradients of a part
    of the parameters the optimizer then holds.
    """

    def clamp(called: torch.optim.Optimizer, _args: object, _options: object) -> None:
        params = [param for group in called.param_groups for param in group["params"]]
        torch.nn.utils.clip_grad_value_(params, limit)

    optimizer.register_step_pre_hook(clamp)


def _check_names(given: Iterable[str], wanted: Iterable[str]) -> None:
    given, wanted = set(given), set(wanted)
    if not wanted:
        raise UsageError(
            "optim: this model trains nothing (all of its parts are frozen). Use `dfer evaluate` for it, not `train`."
        )
    problems = [f"unknown {name!r}. {did_you_mean(name, wanted)}" for name in sorted(given - wanted)]
    problems += [f"no rate for {name!r}. Add optim.groups.{name}.lr" for name in sorted(wanted - given)]
    if problems:
        raise UsageError(f"optim.groups: expected exactly {', '.join(sorted(wanted))}: {'; '.join(problems)}")


def _names_of(learner: Learner, groups: dict[str, Group]) -> dict[int, str]:
    names = {id(p): name for name, p in learner.named_parameters() if p.requires_grad}
    grouped = [id(p) for group in groups.values() for p in group.params]
    outside = sorted(names[i] for i in names.keys() - set(grouped))
    frozen = len(set(grouped) - names.keys())
    if outside or frozen or len(grouped) != len(set(grouped)):
        raise ValueError(
            f"{type(learner).__name__}.param_groups: expected every trainable parameter once, got {outside} in no "
            f"group, {frozen} that are frozen, {len(grouped) - len(set(grouped))} twice"
        )
    return names
