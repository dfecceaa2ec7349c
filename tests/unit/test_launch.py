"""The local launcher: what it starts, and that ranks and exit code come through."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import __main__ as cli
from launch import local

CONFIGS = Path(__file__).parents[2] / "configs"


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


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        ("none.yaml", "seed=1", "none.yaml: cannot be read"),
        ("demo.yaml", "epoch=3", "epoch: unknown key. Did you mean"),
    ],
)
def test_a_wrong_configuration_starts_no_process(
    config: str, override: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert cli.main(["local", str(CONFIGS / config), "--processes", "2", override]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.integration
def test_the_job_fails_with_a_message_and_its_failure_is_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run={tmp_path / 'run'}", f"data.shards={tmp_path / 'none'}"]
    assert local.run("train", CONFIGS / "demo.yaml", overrides, processes=2) == 1
    assert f"{tmp_path}/none/manifest.json: expected the manifest" in capfd.readouterr().err
