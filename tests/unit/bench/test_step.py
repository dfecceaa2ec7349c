"""`dfer bench step` measures and puts things back."""

import pytest
import torch

from dfer.bench.method import SECOND, TOWER, bench_method
from dfer.bench.step import bench_step
from dfer.config import ConfigProblem


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
