"""A job to launch, and a SLURM that only keeps books."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfer.config import to_yaml
from dfer.config_files import load
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import Part
from launch.job import Job

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
COMMANDS = ("sbatch", "squeue", "sinfo", "sacct", "sacctmgr", "scontrol", "scancel", "srun")
SINFO = """gpu*|up|4|0/4/0/4|infinite|1-infinite|gpu:a100:4(S:0-1)
gpu*|up|2|1/1/0/2|infinite|1-infinite|gpu:8
small|up|4|2/2/0/4|1-02:30:00|1-2|(null)
closed|down|4|0/4/0/4|2:00|1|gpu:2
"""


def training(run: Path | str, *folds: int, seeds: tuple[int, ...] = ()) -> Job:
    """The job of a cross-validation of 50 epochs, and of it these folds."""
    config = load([DEMO], RunConfig, [f"run={run}", "epochs=50", f"seeds={[*seeds]}"])
    names = [f"fold_{number}" for number in folds]
    if seeds:
        names = [f"seed_{seed}/{name}" for seed in seeds for name in names]
    parts = tuple(Part(name=name, run=f"{run}/{name}") for name in names)
    return Job(kind="dfer.jobs.crossval", config=to_yaml(config), run=str(run), parts=parts, revision="abc")


class FakeSlurm:
    """What was submitted, and what the commands answer; see fake_slurm.py."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "slurm.json"
        self.change(
            calls=[],
            jobs=[],
            gone=[],
            states={},
            broken={},
            sinfo=SINFO,
            sacct="",
            sacctmgr="vision\nresearch\n",
            scontrol={},
            refuses="-",
            foreign={},
            hangs=[],
        )

    def change(self, **fields: Any) -> None:
        before = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.file.write_text(json.dumps({**before, **fields}))

    def __getattr__(self, name: str) -> Any:
        return json.loads(self.file.read_text())[name]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    folder = tmp_path / "bin"
    folder.mkdir()
    body = Path(__file__).with_name("fake_slurm.py").read_text().partition("\n")[2]
    for name in COMMANDS:
        path = folder / name
        path.write_text(f"#!{sys.executable} -S\n{body}")
        path.chmod(0o755)
    slurm = FakeSlurm(tmp_path)
    monkeypatch.setenv("FAKE_SLURM", str(slurm.file))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield slurm
