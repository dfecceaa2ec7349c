"""launch/demo.sh and launch/demo_zeroshot.sh: the commands they run, as their own parsers read them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dfer import __main__ as dfer
from dfer import cli
from dfer.jobs.config import load_run
from dfer.jobs.parts import JOBS, load_job
from launch import __main__ as launcher
from shards import __main__ as shards

ROOT = Path(__file__).parents[3]
FOLDER = "some where"


@pytest.fixture
def cores() -> int:
    return len(os.sched_getaffinity(0))


def commands(home: Path, script: str = "demo", *words: str, **more: str) -> list[list[str]]:
    """What the script calls, the threads first: the programs are stand-ins that print their arguments."""
    for name in ("dfer-shards", "dfer-launch", "dfer"):
        program = home / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\t" "$OMP_NUM_THREADS" {name} "$@"\necho\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / f"{script}.sh"), FOLDER, *words],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=30,
        env={**kept, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", **more},
        check=True,
    )
    return [line.rstrip("\t").split("\t") for line in done.stdout.splitlines() if "\t" in line]


def packed(monkeypatch: pytest.MonkeyPatch, *lines: list[str]) -> list[Any]:
    """What `dfer-shards` reads from these lines."""
    read: list[Any] = []
    monkeypatch.setattr(shards, "_synth", read.append)
    monkeypatch.setattr(shards, "_build", read.append)
    for words in lines:
        assert shards.main(words[2:]) == 0
    return read


def test_its_commands_are_understood(tmp_path: Path, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synth, build, run = commands(tmp_path)
    drawn, built = packed(monkeypatch, synth, build)
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


def test_the_commands_of_the_zero_shot_demo_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / FOLDER / "clip" / "checkpoints" / "step_00000720-g1-0" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    synth, build, train, *jobs = commands(tmp_path, "demo_zeroshot", "3", "840", "epochs=2")
    drawn, _ = packed(monkeypatch, synth, build)
    assert (drawn.dataset, drawn.clips, drawn.seed) == ("described", 840, 3)

    args = dfer.parse(train[2:])
    config = load_run(args.configs, args.overrides)
    assert (config.seed, config.epochs, config.data.shards) == (3, 2, f"{FOLDER}/shards")
    monkeypatch.chdir(tmp_path)
    loaded = []
    for verb, words in zip(("extract", "fit", "zeroshot"), jobs, strict=True):
        args = dfer.parse(words[2:])
        assert (words[1], words[2]) == ("dfer", verb)
        loaded.append(load_job(args.configs, args.overrides, JOBS)[1])
    extract, fit, zeroshot = loaded
    assert extract.pairs == fit.pairs and fit.seed == 3
    found = str(weights.relative_to(tmp_path))
    towers = {extract.pairs.towers.pretrained, *(model.towers.pretrained for model in zeroshot.models.values())}
    assert towers == {found}
    assert zeroshot.models["exp_clip"].head == f"{fit.run}/fit/head/head.safetensors"
    assert zeroshot.sets["generated"].shards == extract.pairs.shards == f"{FOLDER}/shards"
    assert zeroshot.features == extract.pairs.features and "words" in zeroshot.remark
