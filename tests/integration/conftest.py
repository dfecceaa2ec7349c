"""Generated faces, their shards and a finished cross-validation, made once for all tests of this folder."""

from pathlib import Path

import pytest

from tests.integration import commands


@pytest.fixture(scope="session")
def dfew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 clips of generated faces in DFEW's layout: raw/ and shards/."""
    return commands.make_shards(tmp_path_factory.mktemp("dfew"), "dfew", clips=35)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, dfew: Path) -> Path:
    """A configuration of seconds on these shards."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(commands.TINY.replace("shards: shards", f"shards: {dfew / 'shards'}"))
    return path


@pytest.fixture(scope="session")
def crossval(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, str]:
    """Run folder and standard output of an undisturbed cross-validation. Copy it before changing anything."""
    run = tmp_path_factory.mktemp("crossval") / "run"
    return run, commands.finish("crossval", tiny, f"run={run}").stdout
