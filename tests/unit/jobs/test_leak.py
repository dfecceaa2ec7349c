"""CLIVP-FER on pictures of noise, from training to the report: only the protocol that reads the label scores."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import yaml

from dfer.__main__ import main
from dfer.config import ConfigProblem
from dfer.data.config import DataConfig
from dfer.distributed import World, process_group
from dfer.errors import UsageError
from dfer.evaluation.results import read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.predict import predict
from dfer.jobs.train import train
from dfer.models.config_clivp_fer import ClivpFerConfig
from dfer.models.config_towers import TowersConfig
from dfer.report.crossval import summarise
from dfer.report.tables import markdown, text_table
from dfer.storage import Folder
from dfer.training.config import AdamWConfig, EngineConfig, GroupConfig
from tests.unit.data.shardkit import Clip, write_shards

CLASSES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
TRAIN, TEST = 96, 120
STILL = type(DataConfig(shards="none").augment)(crop=False, flip=0.0)


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stills of noise: nothing in them tells the label."""
    draw, folder = np.random.default_rng(8), tmp_path_factory.mktemp("noise")

    def still(number: int) -> Clip:
        picture = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return Clip(key=f"{number:04d}", label=number % 6, frames=[simplejpeg.encode_jpeg(picture, quality=95)])

    stills = [still(number) for number in range(TRAIN + TEST)]
    return write_shards(folder, {"train": [stills[:TRAIN]], "test": [stills[TRAIN:]]}, classes=CLASSES)


def config(home: Path, noise: Path, *, caption: Any, features: Path | None = None, **changes: Any) -> RunConfig:
    data = DataConfig(
        shards=str(noise),
        workers=0,
        frames=1,
        size=64,
        augment=STILL,
        train_frames="middle",
        features=None if features is None else str(features),
    )
    values: dict[str, Any] = {
        "run": str(home),
        "epochs": 10,
        "batch": 32,
        "eval_batch": 60,
        "data": data,
        "model": ClivpFerConfig(towers=TowersConfig(arch="tiny-conv-64"), caption=caption),
        "engine": EngineConfig(name="ddp"),
        "optim": AdamWConfig(groups={"head": GroupConfig(lr=0.01)}),
    }
    return RunConfig(**{**values, **changes})


@pytest.mark.parametrize("caption", ["true_label", "zero_shot", "all"])
def test_noise_is_recognised_only_by_a_model_that_is_given_the_label(
    tmp_path: Path, noise: Path, alone: World, caption: str
) -> None:
    run, features = tmp_path / "run", tmp_path / "features"
    result = train(config(run, noise, caption=caption, features=features), alone)
    report = summarise(Folder(str(run)), RunConfig)
    text, page = text_table(report), markdown(report)
    assert f"- presentation: caption {caption}: " in page
    assert ("LEAKS LABEL" in text) == ("LEAKS LABEL" in page) == (caption == "true_label")
    assert result.protocol.leaks_label == (caption == "true_label")
    if caption == "true_label":
        assert result.war > 0.99
        assert result.line.endswith(", LEAKS LABEL")
    else:
        assert abs(result.war - 1 / 6) < 3 * (5 / 36 / TEST) ** 0.5


def test_prediction_is_refused_where_the_label_would_be_read_and_an_export_says_it(
    tmp_path: Path, noise: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export: in what the command prints, in every metric of the card's front matter and in its text."""
    leaking = config(tmp_path / "run", noise, caption="true_label", epochs=1)
    result = train(leaking, alone)
    expected = r"expected a model that answers without the true label, got model\.caption=true_label, which LEAKS LABEL"
    with pytest.raises(UsageError, match=expected + r"\. Train with model\.caption=zero_shot or all"):
        next(iter(predict(leaking, [tmp_path], alone)))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith(f", {result.line}\n")
    card = (tmp_path / "out" / "README.md").read_text()
    (found,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert [metric["name"][-13:] for metric in found["metrics"]] == [", LEAKS LABEL"] * 2
    assert "test clips; LEAKS LABEL: the model was given the true label of every test clip |" in card
    assert "| captions | caption true_label: " in card and "dfer predict" not in card


def test_features_stand_for_frames_and_a_checkpoint_of_features_predicts(
    tmp_path: Path, noise: Path, alone: World
) -> None:
    """The text tower is part of a run on features; the image tower is not, and is built anew for a clip of frames."""
    frames = config(tmp_path / "frames", noise, caption="zero_shot", epochs=2)
    cached = config(tmp_path / "cached", noise, caption="zero_shot", epochs=2, features=tmp_path / "features")
    scores = [train(one, alone) for one in (frames, cached)]
    assert scores[0].confusion == scores[1].confusion
    assert scores[1].protocol.normalisation == "ImageNet's mean and deviation"
    again = evaluate_run(cached, alone, trained=True, out=Folder(str(tmp_path / "out")))
    assert again.confusion == scores[1].confusion == read_result(Folder(str(tmp_path / "cached"))).confusion
    folder = tmp_path / "clip"
    folder.mkdir()
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (folder / "1.jpg").write_bytes(simplejpeg.encode_jpeg(picture, quality=95))
    answers = [dict(predict(one, [folder], alone))[folder] for one in (frames, cached)]
    assert isinstance(answers[0], dict) and answers[0] == pytest.approx(answers[1], abs=1e-4)


def test_features_do_not_go_with_a_changing_view(tmp_path: Path, noise: Path) -> None:
    data = config(tmp_path, noise, caption="all").data
    with pytest.raises(ConfigProblem, match="clips that look the same in every epoch"):
        replace(data, features="f", augment=replace(STILL, flip=0.5))
