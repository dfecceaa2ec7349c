"""launch/slurm_*.sh: which command they become."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETS = ("dfew", "ferv39k", "mafw")


@pytest.fixture
def told(tmp_path: Path) -> dict[str, str]:
    """An environment in which `dfer-launch` prints its arguments, and the scripts find no other one."""
    for folder in ("launch", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    program = tmp_path / "bin" / "dfer-launch"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("METHOD", "CLUSTER", "ONLY")}
    return {**kept, "PATH": f"{program.parent}:{os.environ['PATH']}", "HERE": str(tmp_path)}


def run(environment: dict[str, str], name: str, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    script = Path(environment["HERE"]) / "launch" / f"slurm_{name}.sh"
    return subprocess.run(
        ["bash", str(script), *words],
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", SETS)
def test_nothing_but_the_name_is_needed(told: dict[str, str], name: str) -> None:
    home = told["HERE"]
    words = run(told, name).stdout.split()
    assert words == [
        "slurm",
        f"{home}/configs/methods/dfer_clip.yaml",
        f"{home}/configs/sets/{name}.yaml",
        "--cluster",
        f"{home}/configs/clusters/slurm.yaml",
    ]


def test_flags_go_before_the_environment(told: dict[str, str]) -> None:
    words = ["-m", "dfer_clip_depth2", "-o", "fold_1,fold_3", "-n", "seed=2", "cluster.account=a b"]
    more = {"METHOD": "none", "CLUSTER": "mine.yaml", "ONLY": "fold_5"}
    got = run(told, "mafw", *words, **more).stdout.splitlines()
    assert got[1].endswith("configs/methods/dfer_clip_depth2.yaml") and got[2].endswith("configs/sets/mafw.yaml")
    assert got[3:] == [
        "--cluster",
        "mine.yaml",
        "--dry-run",
        "seed=2",
        "cluster.account=a b",
        "--only",
        "fold_1,fold_3",
    ]
    assert run(told, "mafw", METHOD="class_name_temporal", ONLY="fold_5").stdout.split()[-2:] == ["--only", "fold_5"]


def test_a_method_may_be_a_file_of_ones_own(told: dict[str, str], tmp_path: Path) -> None:
    own = tmp_path / "my method.yaml"
    own.write_text("base: methods/dfer_clip\n")
    got = run(told, "dfew", "-m", str(own)).stdout.splitlines()
    assert got[1] == str(own) and got[2].endswith("configs/sets/dfew.yaml")
    assert run(told, "dfew", METHOD=str(own)).stdout.splitlines() == got


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "dferclip"], "error: dferclip: expected one of class_name_no_temporal "),
        (["-m", "none/mine.yaml"], "error: none/mine.yaml: expected one of class_name_no_temporal "),
        (["-m", "dfew/linear_probe"], "This name stands for a method and a set: dfer-launch slurm dfew/linear_probe"),
        (["folds"], "error: folds: expected -m, -c, -o, -n or a.b=c."),
    ],
)
def test_mistakes_are_told(told: dict[str, str], words: list[str], said: str) -> None:
    done = run(told, "dfew", *words)
    assert done.returncode == 2 and done.stdout == "" and said in done.stderr


@pytest.mark.parametrize("name", SETS)
def test_help_names_the_options(told: dict[str, str], name: str) -> None:
    text = run(told, name, "--help").stdout
    assert f"launch/slurm_{name}.sh" in text and all(option in text for option in ("-m METHOD", "-c FILE", "-o PARTS"))


def test_the_scripts_are_bash_without_mistakes() -> None:
    for script in sorted(ROOT.glob("launch/*.sh")):
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
