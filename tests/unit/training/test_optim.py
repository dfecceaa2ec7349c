import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem, from_plain
from dfer.errors import UsageError
from dfer.recognition import Group
from dfer.training.config import (
    AdamWConfig,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    GroupConfig,
    OptimConfig,
    SgdConfig,
    StepScheduleConfig,
)
from dfer.training.optim import build_optimizer, group_settings
from tests.unit.training.stubs import TinyRecognizer

RATES = {"trunk": GroupConfig(lr=0.1), "head": GroupConfig(lr=0.01, weight_decay=0.5)}


def test_groups_have_their_own_settings_and_nothing_frozen() -> None:
    model = TinyRecognizer(wide=8)
    optimizer = build_optimizer(SgdConfig(groups=RATES, weight_decay=0.2), model)
    settings = {g["name"]: (g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups}
    assert settings == {"trunk": (0.1, 0.2, 0.9), "head": (0.01, 0.5, 0.9)}
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_no_decay_leaves_vectors_out() -> None:
    settings = group_settings(AdamWConfig(groups=RATES, no_decay=True), TinyRecognizer(wide=8))
    decay = {name: s.weight_decay for s in settings for name in s.params}
    assert decay["trunk.0.weight"] == 0.01 and decay["head.weight"] == 0.5
    assert {name for name, value in decay.items() if value == 0} == {
        "trunk.0.bias",
        "trunk.2.bias",
        "trunk.3.weight",
        "trunk.3.bias",
        "head.bias",
        "temperature",
    }


def test_group_names_must_be_the_models() -> None:
    rates = {"trunc": GroupConfig(lr=0.1), "head": GroupConfig(lr=0.1)}
    with pytest.raises(UsageError) as caught:
        group_settings(SgdConfig(groups=rates), TinyRecognizer(wide=8))
    assert str(caught.value) == (
        "optim.groups: expected exactly head, trunk: unknown 'trunc'. Did you mean 'trunk'?; "
        "no rate for 'trunk'. Add optim.groups.trunk.lr"
    )
    assert caught.value.exit_code == 2


def test_a_model_that_trains_nothing_is_sent_to_evaluate() -> None:
    class Frozen(TinyRecognizer):
        def param_groups(self) -> dict[str, Group]:
            return {}

    with pytest.raises(UsageError, match=r"trains nothing .* Use `dfer evaluate`"):
        group_settings(SgdConfig(groups={}), Frozen(wide=8))


def test_groups_that_are_not_the_trainable_parameters_are_a_mistake_in_the_model() -> None:
    class Forgetful(TinyRecognizer):
        def param_groups(self) -> dict[str, Group]:
            return {**super().param_groups(), "head": Group(params=[self.head.weight, self.frozen.weight])}

    with pytest.raises(ValueError, match=r"got \['head.bias', 'temperature'\] in no group, 1 that are frozen, 0 twice"):
        group_settings(SgdConfig(groups=RATES), Forgetful(wide=8))


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({"name": "sgd", "groups": {"a": {"lr": 0}}}, "groups.a: lr: expected a rate above 0, got 0.0"),
        ({"name": "sgd", "groups": {}, "momentum": 1.0}, "momentum: expected 0 <= momentum < 1, got 1.0"),
        ({"name": "sgd", "groups": {}, "weight_decay": -0.1}, "weight_decay: expected 0 or more, got -0.1"),
        ({"name": "adamw", "groups": {}, "betas": [0.9]}, "betas: expected two numbers with 0 <= beta < 1, got [0.9]"),
        ({"name": "adamw", "groups": {}, "eps": 0}, "eps: expected a number above 0, got 0.0"),
        ({"name": "adam", "groups": {}}, "name: unknown 'adam'. Did you mean 'adamw'?"),
    ],
)
def test_optimizer_messages(plain: object, text: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        from_plain(OptimConfig, plain)  # type: ignore[arg-type]
    assert text in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: StepScheduleConfig(milestones=(40, 30)), "milestones: expected rising epoch numbers above 0"),
        (lambda: StepScheduleConfig(milestones=(0,)), "milestones: expected rising epoch numbers above 0"),
        (lambda: StepScheduleConfig(milestones=(3,), gamma=0), "gamma: expected a factor above 0"),
        (lambda: CosineScheduleConfig(warmup_epochs=-1), "warmup_epochs: expected 0 or more epochs"),
        (lambda: CosineScheduleConfig(final=2), "final: expected a factor between 0 and 1"),
    ],
)
def test_schedule_messages(build: object, text: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        build()  # type: ignore[operator]
    assert text in str(caught.value)


def test_step_schedule_is_torchs_multi_step() -> None:
    """DFER-CLIP's recipe: x0.1 after epochs 30 and 40 of 50."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 40], gamma=0.1)
    ours = StepScheduleConfig(milestones=(30, 40))
    for epoch in range(50):
        for step in (epoch * 7, epoch * 7 + 6):
            expected = optimizer.param_groups[0]["lr"]
            assert ours.factor(step, steps_per_epoch=7, total_steps=350) == pytest.approx(expected)
        optimizer.step()
        reference.step()


def test_cosine_schedule_is_torchs_cosine_without_warmup() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)
    ours = CosineScheduleConfig(final=0.1)
    for step in range(40):
        assert ours.factor(step, steps_per_epoch=10, total_steps=40) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


@given(warmup=st.floats(0, 5), final=st.floats(0, 1), per_epoch=st.integers(1, 50), epochs=st.integers(1, 20))
def test_cosine_rises_then_falls_within_bounds(warmup: float, final: float, per_epoch: int, epochs: int) -> None:
    schedule, total = CosineScheduleConfig(warmup_epochs=warmup, final=final), per_epoch * epochs
    factors = [schedule.factor(step, steps_per_epoch=per_epoch, total_steps=total) for step in range(total)]
    top = min(round(warmup * per_epoch), total)
    assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
    assert factors[:top] == sorted(factors[:top])
    assert all(a >= b - 1e-12 for a, b in zip(factors[top:], factors[top + 1 :]))
    assert all(f >= final - 1e-12 for f in factors[top:])


def test_constant_schedule() -> None:
    assert ConstantScheduleConfig().factor(17, steps_per_epoch=5, total_steps=50) == 1.0
