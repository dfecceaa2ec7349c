"""What of a configuration may change when a run goes on: the facts that stand at its keys, and what they allow."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dfer.config import key, to_plain
from dfer.jobs.config import RunConfig, load_run
from dfer.run.changes import computed, keys, noted, objections


@dataclass(frozen=True, kw_only=True)
class Saving:
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Steady:
    name: Literal["steady"] = "steady"
    speed: int = key(1, resume="free")


@dataclass(frozen=True, kw_only=True)
class Falling:
    name: Literal["falling"] = key("falling", fixes={"epochs": "its rates depend on them"})
    speed: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = key(3, resume="raised")
    seed: int = 1
    every: int | None = key(None, resume="noted")
    weights: str | None = key(None, file=True)
    start: str | None = key(None, path=True)
    saving: Saving = key(factory=Saving, resume="free")
    schedule: Steady | Falling = field(default_factory=Steady)


def test_facts_hold_for_the_keys_below_and_are_those_of_the_chosen_dataclass() -> None:
    steady, falling = (keys(Config, to_plain(Config(schedule=each))) for each in (Steady(), Falling()))
    assert steady["saving.every"].resume == "free"
    assert (steady["schedule.speed"].resume, falling["schedule.speed"].resume) == ("free", "same")
    assert (steady["weights"].file, steady["start"].file, steady["start"].path) == (True, False, True)


def test_keys_of_anybody_have_no_facts() -> None:
    odd = {"older": 1, "schedule": {"name": ["x"], "speed": 2}, "saving": 3, "every": {"a": {"b": 1}}, 5: {6: 7}}
    found = keys(Config, odd)
    assert found["older"].resume == "same" and found["saving"].resume == "free"
    assert {"every.a.b", "5.6"} <= found.keys()


def test_what_is_compared() -> None:
    """Names of files, whole places of runs, nothing of what is free."""
    one = Config(weights="/a/w.pt", start="s3://b/x/", saving=Saving(every=9))
    found = computed(Config, to_plain(one))
    assert (found["weights"], found["start"]) == ("w.pt", "s3://b/x")
    assert {"saving.every", "schedule.speed"}.isdisjoint(found) and found["schedule.name"] == "steady"
    assert computed(Config, {"start": "x"})["start"] == str(Path("x").absolute())


@pytest.mark.parametrize(
    ("name", "before", "now", "why"),
    [
        ("seed", Config(), Config(seed=2), ""),
        ("every", Config(), Config(every=2), None),
        ("epochs", Config(), Config(epochs=4), None),
        ("epochs", Config(), Config(epochs=2), "it may only be raised"),
        ("epochs", Config(schedule=Falling()), Config(epochs=4, schedule=Falling()), "its rates depend on them"),
    ],
)
def test_objections(name: str, before: Config, now: Config, why: str | None) -> None:
    assert objections(Config, [name], to_plain(before), to_plain(now)).get(name) == why


@pytest.mark.parametrize(
    ("before", "now"), [({}, {"epochs": 4}), ({"epochs": 3}, {}), ({"epochs": "3"}, {"epochs": 4})]
)
def test_a_number_that_is_not_there_cannot_be_raised(before: dict[str, object], now: dict[str, object]) -> None:
    assert objections(Config, ["epochs"], before, now) == {"epochs": ""}


def test_what_results_note() -> None:
    assert noted(Config, to_plain(Config())) == {"epochs": 3, "every": None}


def test_every_method_s_files_and_every_place_are_told_at_their_keys() -> None:
    """Free is what says where and how fast; what is learned from which clips never is."""
    found = keys(RunConfig, to_plain(load_run(["methods/dfer_clip", "sets/dfew"])))
    files = {f"model.{name}" for name in ("towers.arch", "towers.pretrained", "text")}
    assert {name for name, each in found.items() if each.file} == files
    places = {"run", "data.shards", "data.join", "data.cache", "data.features", "model.start"}
    assert {name for name, each in found.items() if each.path} - files == places
    decides = ["seed", "fold", "batch", "select", "data.frames", "data.augment.flip", "model.text", "schedule.gamma"]
    decides += ["optim.groups.image.lr", "engine.precision"]
    assert {found[name].resume for name in decides} == {"same"}
    assert {found[name].resume for name in ("checkpoint.keep_last", "published.uar", "engine.zero")} == {"free"}
