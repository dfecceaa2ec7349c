"""`dfer bench save` measures what it says."""

from pathlib import Path

import pytest

from dfer.bench.save import bench_save
from dfer.config import ConfigProblem


def test_measures_steps_with_and_without_a_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_save(arch="tiny-vit-64", clips=2, frames=2, saves=2, out=str(tmp_path))
    assert [len(found[kind]) for kind in ("usual", "saving", "after", "written")] == [4, 2, 2, 2]
    (checkpoint,) = tmp_path.glob("checkpoints/*")
    assert checkpoint.name.startswith("step_00000002-")
    assert found["bytes"] == sum(path.stat().st_size for path in checkpoint.iterdir())
    assert f"({found['ratio']:.2f} times)" in capsys.readouterr().out


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(ConfigProblem, match="are at least 1"):
        bench_save(saves=0)
