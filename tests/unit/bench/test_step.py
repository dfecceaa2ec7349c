"""`dfer bench step` measures and puts things back."""

import pytest
import torch

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
