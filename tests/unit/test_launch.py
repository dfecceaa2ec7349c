"""The local launcher: what it starts, and that ranks and exit code come through."""

import sys
from pathlib import Path

import pytest

from launch import __main__ as cli
from launch import local


def test_dry_run_prints_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["local", "c.yaml", "--processes", "3", "--dry-run", "seed=2"]) == 0
    words = capsys.readouterr().out.split()
    assert words[0] == sys.executable and "--nproc-per-node=3" in words
    assert words[words.index("dfer") :] == ["dfer", "crossval", "c.yaml", "seed=2"]


def test_no_process_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["local", "c.yaml", "--processes", "0"]) == 2
    assert "--processes: expected 1 or more, got 0" in capsys.readouterr().err


def test_stray_arguments_are_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["local", "c.yaml", "--procs", "2"])
    assert caught.value.code == 2


@pytest.mark.integration
def test_the_job_fails_with_a_message_and_its_failure_is_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert local.run("train", tmp_path / "none.yaml", [], processes=2) != 0
    assert "none.yaml: cannot be read" in capfd.readouterr().err
