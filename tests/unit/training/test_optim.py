import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler

from dfer.config import ConfigProblem, from_plain
from dfer.errors import UsageError
from dfer.recognition import Group
from dfer.training.config import (
    AdamConfig,
    AdamWConfig,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    EarlyStopConfig,
    EpochCosineScheduleConfig,
    ExponentialScheduleConfig,
    GroupConfig,
    OptimConfig,
    SgdConfig,
    StepScheduleConfig,
    TimmCosineScheduleConfig,
)
from dfer.training.optim import build_optimizer, clamp_gradients, group_settings
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
        (
            {"name": "adam", "groups": {}, "betas": [0.9, 1.0]},
            "betas: expected two numbers with 0 <= beta < 1, got [0.9",
        ),
        ({"name": "adma", "groups": {}}, "name: unknown 'adma'. Did you mean 'adam'"),
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
        (lambda: ExponentialScheduleConfig(start=-1, rate=0.9), "start: expected an epoch, 0 or more, got -1"),
        (lambda: ExponentialScheduleConfig(every=0, rate=0.9), "every: expected 1 or more epochs, got 0"),
        (lambda: ExponentialScheduleConfig(rate=0), "rate: expected a factor above 0, got 0"),
        (lambda: TimmCosineScheduleConfig(warmup_epochs=-1), "warmup_epochs: expected 0 or more epochs, got -1"),
        (lambda: TimmCosineScheduleConfig(end=-1), "end: expected a rate, 0 or more, got -1. DK-CLIP: 2.0e-8."),
        (lambda: TimmCosineScheduleConfig(micro_batches=0), "micro_batches: expected 1 or more a step, got 0"),
        (lambda: EpochCosineScheduleConfig(first=-1), "first: expected a rate, 0 or more, got -1. CoOp: 1.0e-5."),
        (lambda: EarlyStopConfig(patience=0), "patience: expected 1 or more evaluations, got 0. CLIVP-FER: 10."),
        (lambda: EarlyStopConfig(patience=1, min_delta=-1), "min_delta: expected percent, 0 or more, got -1"),
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
            assert ours.rates(step, steps_per_epoch=7, total_steps=350).of(1.0) == pytest.approx(expected)
        optimizer.step()
        reference.step()


def test_cosine_schedule_is_torchs_cosine_without_warmup() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)
    ours = CosineScheduleConfig(final=0.1)
    for step in range(40):
        rate = ours.rates(step, steps_per_epoch=10, total_steps=40).of(1.0)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


@given(warmup=st.floats(0, 5), final=st.floats(0, 1), per_epoch=st.integers(1, 50), epochs=st.integers(1, 20))
def test_cosine_rises_then_falls_within_bounds(warmup: float, final: float, per_epoch: int, epochs: int) -> None:
    schedule, total = CosineScheduleConfig(warmup_epochs=warmup, final=final), per_epoch * epochs
    factors = [schedule.rates(step, steps_per_epoch=per_epoch, total_steps=total).of(1.0) for step in range(total)]
    top = min(round(warmup * per_epoch), total)
    assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
    assert factors[:top] == sorted(factors[:top])
    assert all(a >= b - 1e-12 for a, b in zip(factors[top:], factors[top + 1 :]))
    assert all(f >= final - 1e-12 for f in factors[top:])


def test_constant_schedule() -> None:
    assert ConstantScheduleConfig().rates(17, steps_per_epoch=5, total_steps=50).of(0.3) == 0.3


def test_exponential_schedule_of_clivp_fers_cnns() -> None:
    """FER2013: 0.9 every 5 epochs from 80 on, first at epoch 85; CK+: 0.8 every epoch from 20 on, first at epoch 21."""

    def rate(schedule: ExponentialScheduleConfig, epoch: int) -> float:
        return schedule.rates(epoch * 7 + 6, steps_per_epoch=7, total_steps=7 * 250).of(0.01)

    fer, ck = ExponentialScheduleConfig(start=80, every=5, rate=0.9), ExponentialScheduleConfig(start=20, rate=0.8)
    assert [rate(fer, epoch) for epoch in (0, 80, 84, 85, 89, 90, 249)] == pytest.approx(
        [0.01, 0.01, 0.01, 0.009, 0.009, 0.0081, 0.01 * 0.9**33]
    )
    assert [rate(ck, epoch) for epoch in (0, 19, 20, 21, 22, 59)] == pytest.approx(
        [0.01, 0.01, 0.01, 0.008, 0.0064, 0.01 * 0.8**39]
    )


def test_timm_cosine_is_timms_stepped_as_dk_clips_release_steps_it() -> None:
    """Two micro-batches a step, a group of 2e-6 and one of 2e-5, all down to 2e-8; the first update has rate 0."""
    epochs, micro_batches = 12, 30
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, (2e-6, 2e-5))])
    reference = CosineLRScheduler(
        optimizer, t_initial=epochs * micro_batches, lr_min=2e-8, warmup_t=5 * micro_batches, t_in_epochs=False
    )
    ours = TimmCosineScheduleConfig(warmup_epochs=5, end=2e-8, micro_batches=2)
    used: list[list[float]] = []
    for number in range(epochs * micro_batches):
        if number % 2:  # the update comes first, then the rate of the next one
            used.append([group["lr"] for group in optimizer.param_groups])
            reference.step_update(number)
    per_epoch, total = micro_batches // 2, epochs * micro_batches // 2
    for step, rates in enumerate(used):
        found = ours.rates(step, steps_per_epoch=per_epoch, total_steps=total)
        assert [found.of(2e-6), found.of(2e-5)] == pytest.approx(rates, rel=1e-9, abs=1e-16), step
    assert used[0] == [0.0, 0.0] and max(rates[0] for rates in used) < 2e-6
    end = ours.rates(total, steps_per_epoch=per_epoch, total_steps=total)
    assert [end.of(2e-6), end.of(2e-5)] == pytest.approx([2e-8, 2e-8], rel=0.02)


def test_timm_cosine_without_warmup_begins_at_the_configured_rates() -> None:
    schedule = TimmCosineScheduleConfig(warmup_epochs=0, end=1e-3)
    assert schedule.rates(0, steps_per_epoch=5, total_steps=10).of(0.1) == pytest.approx(0.1)


def test_epoch_cosine_is_coops_constant_first_epoch_before_torchs_cosine() -> None:
    """CoOp's toolbox holds its cosine back by the first epoch, which it trains at a constant rate."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    ours, plain = EpochCosineScheduleConfig(first=1e-5), EpochCosineScheduleConfig()
    for lr in (2e-3, 1.0):
        assert ours.rates(6, steps_per_epoch=7, total_steps=70).of(lr) == 1e-5
    for epoch in range(10):
        expected = pytest.approx(optimizer.param_groups[0]["lr"])
        assert plain.rates(epoch * 7 + 3, steps_per_epoch=7, total_steps=70).of(2e-3) == expected
        if epoch < 9:
            for step in (epoch * 7 + 7, epoch * 7 + 13):
                assert ours.rates(step, steps_per_epoch=7, total_steps=70).of(2e-3) == expected
        optimizer.step()
        cosine.step()


def test_adam_adds_its_decay_to_the_gradient() -> None:
    """torch.optim.Adam itself; AdamW's would leave the first step of a zero gradient at the decay alone."""
    model = TinyRecognizer(wide=8)
    optimizer = build_optimizer(AdamConfig(groups=RATES, weight_decay=0.2, betas=(0.8, 0.9)), model)
    assert type(optimizer) is torch.optim.Adam
    settings = {g["name"]: (g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups}
    assert settings == {"trunk": (0.1, 0.2, (0.8, 0.9)), "head": (0.01, 0.5, (0.8, 0.9))}
    spared = group_settings(AdamConfig(groups=RATES, weight_decay=0.2, no_decay=True), model)
    assert {name: s.weight_decay for s in spared for name in s.params}["head.bias"] == 0


def test_a_clamp_comes_before_the_update_and_holds_each_element() -> None:
    param = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([param, torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    clamp_gradients(optimizer, 0.1)
    param.grad = torch.tensor([5.0, -0.05, -7.0, 0.1])
    optimizer.step()
    assert torch.allclose(param.detach(), torch.tensor([-0.1, 0.05, 0.1, -0.1]))
