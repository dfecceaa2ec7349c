"""Generated faces, their shards and a finished cross-validation, made once for all tests of this folder."""

from pathlib import Path

import pytest

from tests import warm
from tests.integration import commands
from tests.suite import once


@pytest.fixture(scope="session")
def dfew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 clips of generated faces in DFEW's layout: raw/ and shards/."""
    with once(tmp_path_factory, "dfew") as (folder, made):
        return folder if made else commands.make_shards(folder, "dfew", clips=35)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, dfew: Path) -> Path:
    """A configuration of seconds on these shards."""
    with once(tmp_path_factory, "config") as (folder, made):
        path = folder / "tiny.yaml"
        if not made:
            path.write_text(commands.TINY.replace("shards: shards", f"shards: {dfew / 'shards'}"))
        return path


@pytest.fixture(scope="session")
def crossval(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, str]:
    """Run folder and standard output of an undisturbed cross-validation. Copy it before changing anything."""
    with once(tmp_path_factory, "crossval") as (folder, made):
        run, printed = folder / "run", folder / "printed"
        if not made:
            with warm.cold():  # `python -m dfer` as a new program
                printed.write_text(commands.finish("crossval", tiny, f"run={run}").stdout)
        return run, printed.read_text()
