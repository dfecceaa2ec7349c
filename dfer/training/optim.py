"""Torch optimizers with named parameter groups, built from the configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dfer.errors import UsageError, did_you_mean
from dfer.recognition import Recognizer
from dfer.training.config import AdamWConfig, OptimConfig, SgdConfig


@dataclass(frozen=True, kw_only=True)
class GroupSetting:
    """What one optimizer group must be set to. lr is the rate at schedule factor 1; others: momentum, or betas and
    eps."""

    name: str
    lr: float
    weight_decay: float
    others: Mapping[str, Any] = field(default_factory=dict)
    params: tuple[str, ...] = field(repr=False)


def group_settings(config: OptimConfig, recognizer: Recognizer) -> list[GroupSetting]:
    """The optimizer groups of a recognizer in a fixed order, with parameters by name.

    Raises:
        UsageError: `optim.groups` does not name exactly the recognizer's groups.
        ValueError: the recognizer's groups are not exactly its trainable parameters (a mistake in the model).
    """
    groups = recognizer.param_groups()
    _check_names(config.groups, groups)
    names = _names_of(recognizer, groups)
    out: list[GroupSetting] = []
    for group, params in groups.items():
        rate = config.groups[group]
        decay = config.weight_decay if rate.weight_decay is None else rate.weight_decay
        vectors = [p.ndim < 2 and isinstance(config, AdamWConfig) and config.no_decay for p in params]
        for part, part_decay, wanted in ((group, decay, False), (f"{group}/no_decay", 0.0, True)):
            chosen = tuple(names[id(p)] for p, is_vector in zip(params, vectors) if is_vector == wanted)
            if chosen:
                out.append(
                    GroupSetting(name=part, lr=rate.lr, weight_decay=part_decay, others=config.shared, params=chosen)
                )
    return out


def build_optimizer(config: OptimConfig, recognizer: Recognizer) -> torch.optim.Optimizer:
    """A torch optimizer over the trainable parameters only, one named group per setting of `group_settings`."""
    by_name = dict(recognizer.named_parameters())
    groups = [
        {"name": s.name, "lr": s.lr, "weight_decay": s.weight_decay, "params": [by_name[name] for name in s.params]}
        for s in group_settings(config, recognizer)
    ]
    match config:
        case SgdConfig():
            return torch.optim.SGD(groups, lr=0.0, **config.shared)
        case AdamWConfig():
            return torch.optim.AdamW(groups, lr=0.0, **config.shared)


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


def _names_of(recognizer: Recognizer, groups: dict[str, list[nn.Parameter]]) -> dict[int, str]:
    names = {id(p): name for name, p in recognizer.named_parameters() if p.requires_grad}
    grouped = [id(p) for params in groups.values() for p in params]
    outside = sorted(names[i] for i in names.keys() - set(grouped))
    frozen = len(set(grouped) - names.keys())
    if outside or frozen or len(grouped) != len(set(grouped)):
        raise ValueError(
            f"{type(recognizer).__name__}.param_groups: expected every trainable parameter once, got {outside} in no "
            f"group, {frozen} that are frozen, {len(grouped) - len(set(grouped))} twice"
        )
    return names
