"""Optimizers with named parameter groups, and learning-rate schedules as pure functions of the global step.

A recognizer names its groups (`param_groups`); the configuration gives a rate for exactly these names. A schedule is a
factor every group's rate is multiplied by, so that the ratios between the groups stay what the configuration says.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from dfer.config import ConfigProblem
from dfer.errors import UsageError, did_you_mean, message
from dfer.recognition import Recognizer


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """One parameter group. lr: rate at schedule factor 1; weight_decay: in place of the optimizer's own."""

    lr: float
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        _check(self.lr > 0, "lr", "a rate above 0", self.lr, "Freeze a part in the model's configuration instead.")
        _check_decay(self.weight_decay or 0.0)


@dataclass(frozen=True, kw_only=True)
class SgdConfig:
    """SGD with momentum. Defaults: DFER-CLIP (Zhao & Patras, BMVC 2023, section 4.1)."""

    name: Literal["sgd"] = "sgd"
    groups: dict[str, GroupConfig]
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _check(0 <= self.momentum < 1, "momentum", "0 <= momentum < 1", self.momentum, "Usual: 0.9.")
        _check_decay(self.weight_decay)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over torch's form of the groups, each with lr and weight_decay."""
        return torch.optim.SGD(groups, lr=0.0, **self.shared)

    @property
    def shared(self) -> dict[str, Any]:
        """What torch keeps in every group besides lr and weight_decay."""
        return {"momentum": self.momentum}


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter, 2019). no_decay: leave biases, norms and other vectors out of the weight decay."""

    name: Literal["adamw"] = "adamw"
    groups: dict[str, GroupConfig]
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    no_decay: bool = False

    def __post_init__(self) -> None:
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check(ok, "betas", "two numbers with 0 <= beta < 1", list(self.betas), "Usual: [0.9, 0.999].")
        _check(self.eps > 0, "eps", "a number above 0", self.eps, "Usual: 1.0e-8.")
        _check_decay(self.weight_decay)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over torch's form of the groups, each with lr and weight_decay."""
        return torch.optim.AdamW(groups, lr=0.0, **self.shared)

    @property
    def shared(self) -> dict[str, Any]:
        """What torch keeps in every group besides lr and weight_decay."""
        return {"betas": (self.betas[0], self.betas[1]), "eps": self.eps}


OptimConfig = SgdConfig | AdamWConfig


@dataclass(frozen=True, kw_only=True)
class ConstantScheduleConfig:
    """The rates stay as they are."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """1 at every step."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class StepScheduleConfig:
    """Multiply by `gamma` once each of `milestones` epochs is done (DFER-CLIP: 30 and 40 of 50, gamma 0.1)."""

    name: Literal["step"] = "step"
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.milestones), self.milestones))
        _check(rising, "milestones", "rising epoch numbers above 0", list(self.milestones), "Write them as [30, 40].")
        _check(self.gamma > 0, "gamma", "a factor above 0", self.gamma, "Usual: 0.1.")

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """gamma to the number of milestones that lie behind `step`."""
        epoch = step // steps_per_epoch
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True, kw_only=True)
class CosineScheduleConfig:
    """Linear rise over `warmup_epochs`, then half a cosine from 1 down to `final` (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_epochs >= 0, "warmup_epochs", "0 or more epochs", self.warmup_epochs, "0 means none.")
        _check(0 <= self.final <= 1, "final", "a factor between 0 and 1", self.final, "0 ends at a rate of 0.")

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """(step + 1) / warm-up steps while rising; the cosine's value at the share of the rest that is done after."""
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total_steps)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(total_steps - warmup, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


ScheduleConfig = ConstantScheduleConfig | StepScheduleConfig | CosineScheduleConfig


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
    return config.build(groups)


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


def _check(ok: bool, key: str, expected: str, got: object, do: str) -> None:
    if not ok:
        raise ConfigProblem(message(key, expected=expected, got=str(got), do=do))


def _check_decay(value: float) -> None:
    _check(value >= 0, "weight_decay", "0 or more", value, "Usual: 1.0e-4.")
