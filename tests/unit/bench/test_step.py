"""`dfer bench step` measures and puts things back."""

from typing import Any

import pytest
import torch

from dfer.bench import method as method_bench
from dfer.bench.method import SECOND, TOWER, bench_method
from dfer.bench.step import bench_step
from dfer.config import ConfigProblem
from dfer.emotions import BASIC7, Emotions
from dfer.models.build import build
from dfer.models.config import ModelConfig
from dfer.recognition import Recognizer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measures_every_step(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    result = bench_step(arch="tiny-vit-64", clips=2, frames=2, precision=precision, steps=3, threads=1)  # type: ignore[arg-type]
    assert len(result["seconds"]) == 3 and min(result["seconds"]) > 0
    assert 2 / max(result["seconds"]) <= result["clips_per_second"] <= 2 / min(result["seconds"])
    assert f"{precision}, 2 clips x 2 frames" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(ConfigProblem, match="are at least 1"):
        bench_step(steps=0)


def test_a_method_is_measured_beside_its_tower(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.towers.arch=tiny-vit-64", "data.size=64", "data.frames=4"]
    result = bench_method(["methods/dk_clip", "sets/mafw"], overrides, clips=1, rounds=1, threads=1)
    assert list(result["seconds"]) == [
        "method",
        "image tower forward",
        TOWER,
        SECOND,
        f"{TOWER} and {SECOND}",
    ]
    for name, ratio in result["ratios"].items():
        assert ratio == pytest.approx(result["seconds"]["method"] / result["seconds"][name])
    assert "the method takes" in capsys.readouterr().out
    with pytest.raises(ConfigProblem, match="are at least 1"):
        bench_method(["methods/dk_clip", "sets/mafw"], clips=0)


@pytest.mark.parametrize(
    ("method", "dataset", "overrides", "told"),
    [
        ("resnet18", "fer2013", ["model.width=4"], "cnn, no CLIP, fp32, 2 clips x 1 frames"),
        ("zero_shot", "kmu_fed", ["model.towers.arch=tiny-vit-64", "data.size=64"], "zero_shot, tiny-vit-64"),
        (
            "contrastive",
            "mafw",
            ["model.towers.arch=tiny-vit-64", "data.size=64", "data.frames=2"],
            "contrastive, tiny-vit-64, fp32, 2 clips x 2 frames",
        ),
    ],
)
def test_methods_without_a_tower_without_training_and_with_captions(
    method: str, dataset: str, overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench_method([f"methods/{method}", f"sets/{dataset}"], overrides, clips=2, rounds=1, threads=1)
    assert set(result["ratios"]) == (set() if method == "resnet18" else {"image tower forward", TOWER})
    assert told in capsys.readouterr().out


def test_the_classes_are_those_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of classes would be another model, with labels that it does not have."""
    built = []

    def recorded(config: ModelConfig, emotions: Emotions, **rest: Any) -> Recognizer:
        built.append(emotions.names)
        return build(config, emotions, **rest)

    monkeypatch.setattr(method_bench, "build", recorded)
    for name in ("kmu_fed", "affectnet7", "mafw"):
        bench_method(["methods/vgg19", f"sets/{name}"], ["model.width=4"], clips=7, rounds=1, threads=1)
    bench_method(["methods/vgg19", "sets/afew"], ["model.width=4", "data.classes=null"], clips=7, rounds=1, threads=1)
    no_neutral = tuple(name for name in BASIC7 if name != "neutral")
    more = ("contempt", "anxiety", "helplessness", "disappointment")
    assert built == [no_neutral, BASIC7, (*BASIC7, *more), BASIC7]
