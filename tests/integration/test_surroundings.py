"""A cross-validation where nothing around it is as usual: names, encoding, TMPDIR, home folder."""

import tempfile
from pathlib import Path

import pytest

from tests.integration.commands import finish

pytestmark = pytest.mark.integration


def test_a_run_does_not_mind_where_it_is_started(tiny: Path, tmp_path: Path) -> None:
    """A run folder with ` #1` in it below `~`, output in ASCII, a TMPDIR too long for sockets, a data worker."""
    with tempfile.TemporaryDirectory(prefix="d" * 80, dir="/tmp") as temporary:
        done = finish(
            "crossval",
            tiny,
            "--only",
            "fold_1",
            "run=~/lr #1",
            "epochs=1",
            "data.workers=1",
            "eval_every=null",
            HOME=str(tmp_path),
            TMPDIR=temporary,
            PYTHONIOENCODING="ascii",
            LC_ALL="C",
        )
        assert not [*Path(temporary).glob("pymp-*")] and not [*Path(temporary).glob("dfer-*")]
    assert (tmp_path / "lr #1" / "fold_1" / "results" / "test.json").exists()
    assert not (tmp_path / "lr").exists() and not Path("~").exists()
    assert f"Report: {tmp_path}/lr #1/report/index.html" in done.stdout and "\\u2013" in done.stdout
    assert "–" in (tmp_path / "lr #1" / "report" / "report.md").read_text(encoding="utf-8")
