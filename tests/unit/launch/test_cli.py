"""The command line of the launchers: examples, wrong words, errors as one line."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dfer.cli import parse
from dfer.errors import StorageError
from dfer.jobs.config import load_run
from launch import __main__ as cli
from launch.cluster import RayCluster, SlurmCluster, load_cluster, split

ROOT = Path(__file__).parents[3]
LINES = [line.strip() for text in cli.EXAMPLES.values() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("line", LINES)
def test_examples_of_the_help_work(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    words = words[words.index("dfer-launch") + 1 :]
    args = parse(cli.parser(), words)
    mine, theirs = split(getattr(args, "overrides", []))
    if (configs := getattr(args, "configs", [])) and not configs[0].startswith("runs/"):
        assert load_run(configs, mine).run
    if kind := {"slurm": SlurmCluster, "ray": RayCluster}.get(words[0]):
        load_cluster(args.cluster, kind, theirs)


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.EXAMPLES:
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert f"dfer-launch {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "run", "seed=1"],
        ["slurm", "c.yaml", "--hosts=2"],
        ["logs", "run", "fold_1", "fold_2"],
        ["nix"],
        [],
    ],
)
def test_wrong_words_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


def test_overrides_of_the_cluster_are_told_apart() -> None:
    assert split(["seed=1", "cluster.nodes=2", "data.workers=3"]) == (["seed=1", "data.workers=3"], ["nodes=2"])


def test_who_only_looks_does_not_wait_for_torch() -> None:
    """`status`, `logs` and `cancel` answer at once, also on a login node that is busy."""
    text = "import sys, launch.status, launch.control, launch.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_errors_are_one_line_and_their_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise StorageError("s3://user:secret@b/run: expected to list it, got 503. Wait.")

    monkeypatch.setattr("launch.status.status", fail)
    assert cli.main(["status", "s3://b/run"]) == 6
    assert capsys.readouterr().err == "error: s3://b/run: expected to list it, got 503. Wait.\n"
