"""Configuration: what is read, what is refused, and that each message names the key and the remedy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer import config
from dfer.config import ConfigProblem


@dataclass(frozen=True, kw_only=True)
class Sgd:
    name: Literal["sgd"]
    lr: float
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Adam:
    name: Literal["adam"]
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Run:
    optim: Sgd | Adam
    epochs: int = 5
    note: str | None = None
    rates: dict[str, float] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigProblem(f"epochs: expected at least 1, got {self.epochs}. Train for one epoch or more")


def load(tmp_path: Path, text: str, *overrides: str) -> Run:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return config.load(path, Run, overrides)


def test_reads_values_defaults_and_overrides(tmp_path: Path) -> None:
    run = load(tmp_path, "optim: {name: sgd, lr: 1}\nrates: {a: 0.5}", "epochs=7", "optim.nesterov=true", "rates.b=2")
    assert run == Run(optim=Sgd(name="sgd", lr=1.0, nesterov=True), epochs=7, rates={"a": 0.5, "b": 2.0})
    assert isinstance(run.optim.lr, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {name: sgd, lrr: 1}", "optim.lrr: unknown key. Did you mean 'lr'?"),
        ("optim: {name: sgd}", "optim.lr: required, but missing. Add it to the file or as optim.lr=VALUE"),
        ("optim: {name: sgd, lr: fast}", "optim.lr: expected a number, got 'fast' (str)"),
        ("optim: {name: sgd, lr: true}", "optim.lr: expected a number, got True (bool)"),
        ("optim: {name: sgd, lr: 1e-5}", "optim.lr: expected a number, got '1e-5' (str). YAML reads 1e-5 as text: "
         "write it with a point, 1.0e-5, and no quotes"),
        ("optim: {name: sgd, lr: .inf}", "optim.lr: expected a number, got inf"),
        ("optim: {name: sgdd, lr: 1}", "optim.name: unknown 'sgdd'. Did you mean 'sgd'?"),
        ("optim: {name: adam, nesterov: true}", "optim.nesterov: unknown key"),
        ("optim: [1]", "optim.name: unknown None"),
        ("optim: {name: [1]}", "optim.name: unknown [1]"),
        ("optim: {name: adam, lr: 9223372036854775808}", "a whole number of more than 64 bits"),
        ("optim: {name: adam}\nnote: [[[[1]]]]", "note: expected text, got [[[[...]]]] (list)"),
        ("optim: {name: adam, betas: 3}", "optim.betas: expected a list, got 3"),
        ("optim: {name: adam}\nepochs: 2.5", "epochs: expected a whole number, got 2.5 (float)"),
        ("optim: {name: adam}\nepochs: 0", "epochs: expected at least 1, got 0. Train for"),
        ("optim: {name: adam}\nmode: c", "mode: expected 'a' or 'b', got 'c'"),
        ("optim: {name: adam}\nrates: [1]", "rates: expected a mapping, got [1]"),
        ("- 1", "expected a mapping of keys, got list"),
        ("a: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_messages(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert str(tmp_path / "c.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load(tmp_path, "optim: {name: sgd, lr: x, nesterov: 3}\nepoch: 1")
    assert all(key in str(caught.value) for key in ("optim.lr", "optim.nesterov", "epoch: unknown"))


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs=[1"])
def test_bad_overrides_are_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigProblem, match=r"expected (key.sub=value|a YAML value)"):
        load(tmp_path, "optim: {name: adam}", override)


def test_base_files_merge_and_another_name_replaces(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {name: sgd, lr: 1.0}\nepochs: 3\nrates: {a: 1, b: 2}")
    assert load(tmp_path, "base: base.yaml\noptim: {lr: 2}\nrates: {b: 5}") == Run(
        optim=Sgd(name="sgd", lr=2.0), epochs=3, rates={"a": 1.0, "b": 5.0}
    )
    assert load(tmp_path, "base: base.yaml\noptim: {name: adam}").optim == Adam(name="adam")


def test_null_takes_an_entry_of_the_base_away(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {name: adam}\nrates: {a: 1, b: 2}")
    assert load(tmp_path, "base: base.yaml\nrates: {a: null}").rates == {"b": 2.0}


def test_circular_bases_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match="Break the circle"):
        load(tmp_path, "base: c.yaml")
    with pytest.raises(ConfigProblem, match="cannot be read"):
        config.load(tmp_path / "none.yaml", Run)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 2**63 - 1), st.none() | st.text())
def test_resolved_yaml_reads_back_to_the_same_value(lr: float, epochs: int, note: str | None) -> None:
    run = Run(optim=Adam(name="adam", lr=lr), epochs=epochs, note=note)
    assert config.load_text(config.to_yaml(run).encode(), Run, where="c.yaml") == run
