"""CLIP's normalisation is refused for weights that were trained with another one."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import LinearProbeConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.files import tags
from dfer.models.normalisation import refuse_other_normalisation

MEAN, STD = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


@pytest.mark.parametrize(
    ("arch", "tag", "values", "do"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k", "(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)", ", or take other weights."),
        (
            "MobileCLIP-B",
            "datacompdr",
            "(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)",
            ": these weights take frames in 0..1.",
        ),
    ],
)
@pytest.mark.parametrize("dims", [None, {"frames": 8}], ids=["frames", "features"])
def test_a_tag_of_another_normalisation_is_refused_before_it_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, arch: str, tag: str, values: str, do: str, dims: dict[str, int] | None
) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: pytest.fail("downloaded"))
    config = LinearProbeConfig(towers=TowersConfig(arch=arch, pretrained=tag))
    with pytest.raises(ConfigProblem) as caught:
        build(config, label_set("basic7"), num_frames=2, seed=1, dims=dims)
    assert str(caught.value) == (
        f"model.clip_normalisation=true: expected weights trained with CLIP's mean and deviation {MEAN}, {STD}, "
        f"got model.towers.pretrained={tag} with {values}. Set model.clip_normalisation=false{do}"
    )
    plain = LinearProbeConfig(towers=config.towers, clip_normalisation=False)
    if dims is not None:
        build(plain, label_set("basic7"), num_frames=2, seed=1, dims=dims)


def test_every_tag_is_refused_or_normalised_as_open_clip_does() -> None:
    refused = 0
    for arch, names in tags().items():
        for tag in names:
            listed = open_clip.get_pretrained_cfg(arch, tag)
            own = [tuple(listed.get(name) or own) for name, own in (("mean", MEAN), ("std", STD))] == [MEAN, STD]
            try:
                refuse_other_normalisation(TowersConfig(arch=arch, pretrained=tag))
            except ConfigProblem:
                refused += 1
                assert not own, (arch, tag)
            else:
                assert own, (arch, tag)
    assert refused > 8


@pytest.mark.parametrize(
    ("preprocessing", "fits"),
    [
        ({"mean": MEAN, "std": STD}, True),
        ({}, True),
        (None, True),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, False),
        ({"mean": MEAN, "std": [0.5] * 3}, False),
        ({"mean": "none", "std": {"a": [1] * 99}}, False),
    ],
)
def test_the_configuration_beside_a_file_says_its_normalisation(tmp_path: Path, preprocessing: Any, fits: bool) -> None:
    weights = tmp_path / "clip.safetensors"
    weights.write_bytes(b"")
    config = TowersConfig(arch="tiny-vit-64", pretrained=str(weights))
    refuse_other_normalisation(config)  # nothing beside it
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": preprocessing}))
    if fits:
        refuse_other_normalisation(config)
        return
    with pytest.raises(
        ConfigProblem, match=r"^models\.a\.clip_normalisation=true: expected weights trained with CLIP's"
    ):
        refuse_other_normalisation(config, model="models.a")
