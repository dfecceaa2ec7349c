"""Configuration of engine, optimizer and learning-rate schedule. Imports no torch.

A recognizer names its parameter groups; the configuration sets a rate for exactly these names. A schedule moves the
rates of all groups between those of the configuration and one end, which is 0 in most schedules.
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
    clip_value: largest absolute value of a gradient's element, None = no clamp (CLIVP-FER's CNNs: 0.1);
    tf32: whether a GPU may round fp32 factors of convolutions and matrix products to 10 bits, which is faster."""

    name: Literal["deepspeed", "ddp"] = key("deepspeed", resume="free")
    zero: Literal[0, 1, 2, 3] = key(0, resume="free")
    precision: Precision = "fp32"
    clip_norm: float | None = None
    clip_value: float | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            do = "Usual: 1.0; null switches it off."
            raise ConfigProblem(message("clip_norm", expected="a norm above 0", got=str(self.clip_norm), do=do))
        if self.clip_value is not None and self.clip_value <= 0:
            do = "CLIVP-FER's CNNs: 0.1; null switches it off."
            raise ConfigProblem(message("clip_value", expected="a value above 0", got=str(self.clip_value), do=do))
        if self.clip_norm is not None and self.clip_value is not None:
            got, do = f"{self.clip_norm} and {self.clip_value}", "Set the other one to null."
            raise ConfigProblem(message("clip_norm, clip_value", expected="one of them", got=got, do=do))
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
        _check_adam(self.betas, self.eps)
        _check_decay(self.weight_decay)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of every torch parameter group besides lr and weight_decay."""
        return {"betas": (self.betas[0], self.betas[1]), "eps": self.eps}


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam (Kingma & Ba, 2015), whose weight decay is added to the gradient as in torch.optim.Adam. Keys as in
    AdamWConfig. CLIVP-FER: lr 3e-3, weight decay 1e-4."""

    name: Literal["adam"] = "adam"
    groups: dict[str, GroupConfig]
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: bool = False

    def __post_init__(self) -> None:
        _check_adam(self.betas, self.eps)
        _check_decay(self.weight_decay)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of every torch parameter group besides lr and weight_decay."""
        return {"betas": (self.betas[0], self.betas[1]), "eps": self.eps}


OptimConfig = SgdConfig | AdamWConfig | AdamConfig

WHOLE_LENGTH = "the rates of the cosine schedule depend on the number of epochs at every step"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of a step: end + factor x (lr - end), where lr is that of a group's configuration. factor: 1 gives
    the configured rates, 0 gives every group the rate `end`."""

    factor: float
    end: float = 0.0

    def of(self, lr: float) -> float:
        """Return the rate of a group."""
        return self.end + self.factor * (lr - self.end)


CONFIGURED = Rates(factor=1.0)
"""The rates of the configuration."""


@dataclass(frozen=True, kw_only=True)
class ConstantScheduleConfig:
    """Constant rates."""

    name: Literal["constant"] = "constant"

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return the configured rates at every step."""
        return CONFIGURED


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

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return the rates times gamma to the power of the number of milestones passed at `step`."""
        epoch = step // steps_per_epoch
        return Rates(factor=float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones)))


@dataclass(frozen=True, kw_only=True)
class ExponentialScheduleConfig:
    """Multiply the rates by `rate` after every `every` epochs from epoch `start` on, counted from 0.

    CLIVP-FER's CNNs: FER2013 start 80, every 5, rate 0.9; CK+ start 20, every 1, rate 0.8."""

    name: Literal["exponential"] = "exponential"
    start: int = 0
    every: int = 1
    rate: float

    def __post_init__(self) -> None:
        _check(self.start >= 0, "start", "an epoch, 0 or more", self.start, "0 begins with the first one.")
        _check(self.every >= 1, "every", "1 or more epochs", self.every, "Usual: 1.")
        _check(self.rate > 0, "rate", "a factor above 0", self.rate, "Usual: 0.9.")

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return the rates times rate^((epoch - start) // every), without change up to epoch `start`."""
        epoch = step // steps_per_epoch
        return Rates(factor=float(self.rate ** (max(0, epoch - self.start) // self.every)))


@dataclass(frozen=True, kw_only=True)
class CosineScheduleConfig:
    """Linear rise over `warmup_epochs`, then half a cosine from 1 down to `final` (Loshchilov & Hutter, 2017)."""

    name: Literal["cosine"] = key("cosine", fixes={"epochs": WHOLE_LENGTH})
    warmup_epochs: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_epochs >= 0, "warmup_epochs", "0 or more epochs", self.warmup_epochs, "0 means none.")
        _check(0 <= self.final <= 1, "final", "a factor between 0 and 1", self.final, "0 ends at a rate of 0.")

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return (step + 1) / warm-up steps during warm-up, then the cosine at the fraction done of the other steps."""
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total_steps)
        if step < warmup:
            return Rates(factor=(step + 1) / warmup)
        done = (step - warmup) / max(total_steps - warmup, 1)
        return Rates(factor=self.final + (1 - self.final) * _half_cosine(done))


@dataclass(frozen=True, kw_only=True)
class TimmCosineScheduleConfig:
    """timm's CosineLRScheduler (1.0) as DK-CLIP's release (commit 1c437cc, utils/optimizer.py) uses it.

    The rates rise from 0 over `warmup_epochs`, then follow half a cosine down to the rate `end`, which is the same for
    all groups (2e-8: a group of 2e-6 falls to 1/100, one of 2e-5 to 1/1000). The cosine counts from the first step, so
    that it has begun to fall when warm-up ends.

    micro_batches: how many of its counts a step has. The release counts micro-batches, two a step, and sets a rate
    after an update: update u has the rate of count 2 u - 1, and the first one rate 0.
    """

    name: Literal["timm_cosine"] = key("timm_cosine", fixes={"epochs": WHOLE_LENGTH})
    warmup_epochs: float = 5.0
    end: float = 0.0
    micro_batches: int = 1

    def __post_init__(self) -> None:
        _check(self.warmup_epochs >= 0, "warmup_epochs", "0 or more epochs", self.warmup_epochs, "0 means none.")
        _check(self.end >= 0, "end", "a rate, 0 or more", self.end, "DK-CLIP: 2.0e-8.")
        _check(self.micro_batches >= 1, "micro_batches", "1 or more a step", self.micro_batches, "DK-CLIP: 2.")

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return the rates that were set after the update before this one."""
        count = max(0, self.micro_batches * step - 1)
        warmup = int(self.warmup_epochs * self.micro_batches * steps_per_epoch)
        if count < warmup:
            return Rates(factor=count / warmup)
        return Rates(factor=_half_cosine(count / (self.micro_batches * total_steps)), end=self.end)


@dataclass(frozen=True, kw_only=True)
class EpochCosineScheduleConfig:
    """Half a cosine from 1 to 0 that changes after every epoch; the first epoch has the rate `first` for all groups.

    CoOp (its toolbox, github KaiyangZhou/Dassl.pytorch, commit c61a1b5, dassl/optim/lr_scheduler.py): first 1e-5. The
    cosine begins in the second epoch, so that the last epoch still has a part of the rate.
    """

    name: Literal["epoch_cosine"] = key("epoch_cosine", fixes={"epochs": WHOLE_LENGTH})
    first: float | None = None

    def __post_init__(self) -> None:
        _check(self.first is None or self.first >= 0, "first", "a rate, 0 or more", self.first, "CoOp: 1.0e-5.")

    def rates(self, step: int, *, steps_per_epoch: int, total_steps: int) -> Rates:
        """Return the rates of the epoch of `step`."""
        epoch, epochs = step // steps_per_epoch, total_steps // steps_per_epoch
        if self.first is None:
            return Rates(factor=_half_cosine(epoch / epochs))
        return Rates(factor=_half_cosine((epoch - 1) / epochs)) if epoch else Rates(factor=0.0, end=self.first)


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """End training after `patience` evaluations in a row without improvement.

    An evaluation improves if its score in percent is at least the best so far + `min_delta`; the first one always does.
    With `min_delta` above 0 an equal score is no improvement (CLIVP-FER: patience 10, min_delta 0.001).
    """

    patience: int
    min_delta: float = 0.001

    def __post_init__(self) -> None:
        _check(self.patience >= 1, "patience", "1 or more evaluations", self.patience, "CLIVP-FER: 10.")
        _check(self.min_delta >= 0, "min_delta", "percent, 0 or more", self.min_delta, "CLIVP-FER: 0.001.")


def _half_cosine(done: float) -> float:
    """Return 1 at 0, 0 at 1 and above."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


ScheduleConfig = (
    ConstantScheduleConfig
    | StepScheduleConfig
    | ExponentialScheduleConfig
    | CosineScheduleConfig
    | TimmCosineScheduleConfig
    | EpochCosineScheduleConfig
)


def _check(ok: bool, where: str, expected: str, got: object, do: str) -> None:
    if not ok:
        raise ConfigProblem(message(where, expected=expected, got=str(got), do=do))


def _check_adam(betas: tuple[float, ...], eps: float) -> None:
    ok = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _check(ok, "betas", "two numbers with 0 <= beta < 1", list(betas), "Usual: [0.9, 0.999].")
    _check(eps > 0, "eps", "a number above 0", eps, "Usual: 1.0e-8.")


def _check_decay(value: float) -> None:
    _check(value >= 0, "weight_decay", "0 or more", value, "Usual: 1.0e-4.")
