"""Every command that a model card suggests names a configuration that dfer ships."""

import re
from dataclasses import replace
from importlib import resources
from typing import get_args

import pytest

from dfer.choices import SELECTION_TEXT, Selection
from dfer.models.card import SETS, card, fold_words
from dfer.models.config import ModelConfig
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.files import trains_nothing
from dfer.models.saved import Origin, SavedConfig

SHIPPED = {
    kind: {path.name.removesuffix(".yaml") for path in (resources.files("dfer") / "configs" / kind).iterdir()}
    for kind in ("sets", "methods")
}


def test_every_set_has_a_name() -> None:
    assert {*SETS} == SHIPPED["sets"]


def of_cnn(origin: Origin) -> str:
    return card(
        SavedConfig(
            model=CnnConfig(),
            classes=("anger", "fear"),
            normalisation="none",
            data={"frames": 1, "size": 44},
            recipe={},
            sha256="",
            bytes=0,
            origin=origin,
        )
    )


def test_the_command_tests_the_fold_of_the_score() -> None:
    origin = Origin(made_by="import", source="a.t7", source_sha256="", dataset="fer2013", protocol="public", fold=3)
    assert "sets/fer2013 run=runs/x data.protocol=public fold=3 #" in of_cnn(origin)
    assert "sets/fer2013 run=runs/x #" in " ".join(of_cnn(replace(origin, protocol="", fold=None)).split())
    assert fold_words(replace(origin, protocol="a b")) == " data.protocol='a b' fold=3"


@pytest.mark.parametrize("best", ["best_on_val", "best_on_test"])
def test_a_best_checkpoint_of_an_unfinished_training(best: Selection) -> None:
    origin = Origin(made_by="export", source="r", source_sha256="", step=9, epoch=10, epochs=50, complete=False)
    text = of_cnn(replace(origin, selection=best))
    assert f"| selection | {SELECTION_TEXT[best]}; incomplete: epoch 10 of 50 |" in text


@pytest.mark.parametrize("method", get_args(ModelConfig), ids=lambda method: method().name)
@pytest.mark.parametrize("frames", [1, 16])
def test_suggested_commands_exist(method: type, frames: int) -> None:
    model = method()
    text = card(
        SavedConfig(
            model=model,
            classes=("anger", "fear"),
            normalisation="none",
            data={"frames": frames, "size": 64},
            recipe={},
            sha256="",
            bytes=0,
            origin=Origin(made_by="import", source="a.pth", source_sha256="ab", dataset="kmu_fed"),
        )
    )
    assert {*re.findall(r"methods/(\w+)", text)} <= SHIPPED["methods"]
    assert ("dfer train" in text) == (not trains_nothing(model))
    assert "dfer evaluate FOLDER sets/kmu_fed " in text and "(KMU-FED)" in text
    still = frames == 1
    assert ("pipeline_tag: image-classification" in text) == ("Pictures are crops" in text) == still
    assert ("a folder of face frames" in text) == ("Frames are crops" in text) == (not still)
    if model.towers is not None and not trains_nothing(model):
        assert f" model.towers.arch={model.towers.arch} model.start=FOLDER" in text
