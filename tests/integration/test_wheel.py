"""The wheel: what it holds works without the checkout. Built offline, installed into a folder of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfer.config_files import names

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this checkout is installed."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    source.mkdir()
    for name in ("dfer", "shards", "launch", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(home), str(source)]
    subprocess.run(wheel, check=True, capture_output=True, timeout=120)
    found = next(home.glob("*.whl"))
    into = [*pip, "install", "--no-deps", "--no-index", "--target", str(home / "target"), str(found)]
    subprocess.run(into, check=True, capture_output=True, timeout=120)
    return home / "target"


def test_the_wheel_holds_the_configurations(installed: Path, tmp_path: Path) -> None:
    """Names work in another folder, with nothing of the checkout in reach."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from dfer import config, config_files\n"
        "from dfer.jobs.config import load_run\n"
        "from launch.__main__ import CLUSTERS\n"
        "assert config_files.__file__.startswith(sys.argv[1]) and (CLUSTERS / 'slurm.yaml').is_file()\n"
        "print(' '.join(config_files.names()))\n"
        "print(config.to_yaml(load_run(['methods/dfer_clip', 'sets/dfew'], ['seed=3'])))\n"
    )
    command = [sys.executable, "-c", script, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, _, text = done.stdout.partition("\n")
    assert first.split() == names()
    assert text.startswith("job: crossval\nworkers: 1\nrun: runs/dfew/dfer_clip\nseed: 3\n") and "uar: 59.61" in text


def test_the_wheel_holds_every_data_file(installed: Path) -> None:
    """Class texts, model configurations, pages: all of `dfer/` but modules and `configs/`."""

    def held(root: Path) -> set[Path]:
        found = (path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
        return {path.relative_to(root) for path in found if path.relative_to(root).parts[0] != "configs"}

    ours = held(ROOT / "dfer")
    assert {Path("report/report.html"), Path("py.typed")} <= ours
    assert ours - held(installed / "dfer") == set()
