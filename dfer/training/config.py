"""Configuration of engine, optimizer and learning-rate schedule. Imports no torch.

A recognizer names its parameter groups; the configuration sets a rate for exactly these names. A schedule multiplies
the rates of all groups by one factor, so that the ratios between groups stay as configured.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from dfer.choices import Precision
from dfer.config import ConfigProblem, key
from dfer.errors import message


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is computed. zero: ZeRO stage, what DeepSpeed shards over the ranks (1 optimizer state, 2 + gradients,
    3 + parameters; Rajbhandari et al., 2020); clip_norm: largest gradient norm over all groups, None = no clipping;
    tf32: whether a GPU may round fp32 factors of convolutions and matrix products to 10 bits, which is faster."""

    name: Literal["deepspeed", "ddp"] = key("deepspeed", resume="free")
    zero: Literal[0, 1, 2, 3] = key(0, resume="free")
    precision: Precision = "fp32"
    clip_norm: float | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            do = "Usual: 1.0; null switches it off."
            raise ConfigProblem(message("clip_norm", expected="a norm above 0", got=str(self.clip_norm), do=do))
        if self.name == "ddp" and self.zero:
            do = "Set engine.zero=0 or engine.name=deepspeed."
            raise ConfigProblem(message("zero", expected="0 with engine ddp", got=str(self.zero), do=do))


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """One parameter group. lr: rate at schedule factor 1; weight_decay: overrides the optimizer's."""

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

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of every torch parameter group besides lr and weight_decay."""
        return {"momentum": self.momentum}


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter, 2019). no_decay: exclude biases, norms and other vectors from weight decay."""

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

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of every torch parameter group besides lr and weight_decay."""
        return {"betas": (self.betas[0], self.betas[1]), "eps": self.eps}


OptimConfig = SgdConfig | AdamWConfig

WHOLE_LENGTH = "the rates of the cosine schedule depend on the number of epochs at every step"


@dataclass(frozen=True, kw_only=True)
class ConstantScheduleConfig:
    """Constant rates."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """Return 1 at every step."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class StepScheduleConfig:
    """Multiply the rates by `gamma` after each of the `milestones` epochs (DFER-CLIP: 30 and 40 of 50, gamma 0.1)."""

    name: Literal["step"] = "step"
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.milestones), self.milestones))
        _check(rising, "milestones", "rising epoch numbers above 0", list(self.milestones), "Write them as [30, 40].")
        _check(self.gamma > 0, "gamma", "a factor above 0", self.gamma, "Usual: 0.1.")

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """Return gamma to the power of the number of milestones passed at `step`."""
        epoch = step // steps_per_epoch
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True, kw_only=True)
class CosineScheduleConfig:
    """Linear rise over `warmup_epochs`, then half a cosine from 1 down to `final` (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = key("cosine", fixes={"epochs": WHOLE_LENGTH})
    warmup_epochs: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_epochs >= 0, "warmup_epochs", "0 or more epochs", self.warmup_epochs, "0 means none.")
        _check(0 <= self.final <= 1, "final", "a factor between 0 and 1", self.final, "0 ends at a rate of 0.")

    def factor(self, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
        """Return (step + 1) / warm-up steps during warm-up, then the cosine at the fraction done of the other steps."""
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total_steps)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(total_steps - warmup, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


ScheduleConfig = ConstantScheduleConfig | StepScheduleConfig | CosineScheduleConfig


def _check(ok: bool, where: str, expected: str, got: object, do: str) -> None:
    if not ok:
        raise ConfigProblem(message(where, expected=expected, got=str(got), do=do))


def _check_decay(value: float) -> None:
    _check(value >= 0, "weight_decay", "0 or more", value, "Usual: 1.0e-4.")
