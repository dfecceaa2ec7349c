"""Every command that a model card suggests names a configuration that dfer ships."""

import re
from importlib import resources
from typing import get_args

import pytest

from dfer.models.card import SETS, card
from dfer.models.config import ModelConfig
from dfer.models.files import trains_nothing
from dfer.models.saved import Origin, SavedConfig

SHIPPED = {
    kind: {path.name.removesuffix(".yaml") for path in (resources.files("dfer") / "configs" / kind).iterdir()}
    for kind in ("sets", "methods")
}


def test_every_set_has_a_name() -> None:
    assert {*SETS} == SHIPPED["sets"]


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
