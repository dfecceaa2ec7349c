"""launch/demo.sh: the commands it runs, as their own parsers read them."""

import os
import subprocess
from pathlib import Path

import pytest

from dfer import cli
from dfer.jobs.config import load_run
from launch import __main__ as launcher
from shards import __main__ as shards

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cores() -> int:
    return len(os.sched_getaffinity(0))


def commands(home: Path, **more: str) -> list[list[str]]:
    """What the script calls, the threads first: both programs are stand-ins that print their arguments."""
    for name in ("dfer-shards", "dfer-launch"):
        program = home / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\t" "$OMP_NUM_THREADS" {name} "$@"\necho\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "demo.sh"), "some where"],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=30,
        env={**kept, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", **more},
        check=True,
    )
    return [line.rstrip("\t").split("\t") for line in done.stdout.splitlines() if "\t" in line]


def test_its_commands_are_understood(tmp_path: Path, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synth, build, run = commands(tmp_path)
    read = []
    monkeypatch.setattr(shards, "_synth", read.append)
    monkeypatch.setattr(shards, "_build", read.append)
    for words in (synth, build):
        assert shards.main(words[2:]) == 0
    drawn, built = read
    assert (drawn.out, drawn.clips, drawn.seed, drawn.jobs) == ("some where/raw", 980, 1, cores)
    assert (str(built.raw), built.out, built.jobs) == ("some where/raw", "some where/shards", cores)

    args = cli.parse(launcher.parser(), run[2:])
    config = load_run(args.configs, args.overrides)
    assert (args.verb, args.processes, args.parallel) == ("crossval", 1, min(cores, 5))
    assert (config.data.shards, config.run) == ("some where/shards", "some where/run")
    assert config.data.size == built.max_side, "frames lie in the shards at the size that is trained on"


def test_a_fold_has_one_thread_unless_told_otherwise(tmp_path: Path) -> None:
    assert {words[0] for words in commands(tmp_path)} == {"1"}
    assert {words[0] for words in commands(tmp_path, OMP_NUM_THREADS="3")} == {"3"}
