"""A finished run of somebody else: predicted with, evaluated and reported by a process without any right to write."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.another_user import NOBODY, folder_for_all
from tests.integration.commands import environment, result

pytestmark = pytest.mark.integration


Commands = list[list[object]]


def as_nobody(*, first: Commands, then: Commands, **variables: str) -> list[tuple[int, str, str]]:
    words = [json.dumps([list(map(str, command)) for command in commands]) for commands in (first, then)]
    program = [sys.executable, "-m", "tests.integration.as_user", str(NOBODY), *words]
    done = subprocess.run(program, env=environment(**variables), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout.splitlines()[-1])]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


@pytest.mark.skipif(os.geteuid() != 0, reason="starting a process as another user needs root")
def test_a_run_of_somebody_else_is_used_without_writing_to_it(dfew: Path, crossval: tuple[Path, str]) -> None:
    with folder_for_all() as shared:
        run, shards, clip = shared / "run", shared / "shards", shared / "clip"
        shutil.copytree(crossval[0] / "fold_1", run)
        shutil.copytree(dfew / "shards", shards)
        shutil.copytree(next((dfew / "raw/Clip/clip_224x224").iterdir()), clip)
        mine = shared / "mine"
        mine.mkdir()
        os.chown(mine, NOBODY, NOBODY)
        before = snapshot(run)
        told = as_nobody(
            first=[
                ["evaluate", run, f"data.shards={shards}", "--out", shared / "root"],
                ["report", run, "--out", shared / "root"],
            ],
            then=[
                ["predict", run, clip, "--csv", mine / "answers.csv"],
                ["evaluate", run, f"data.shards={shards}"],
                ["evaluate", run, f"data.shards={shards}", "--out", mine / "again"],
                ["report", run],
                ["report", run, "--out", mine / "report"],
                ["evaluate", run, f"data.shards={shards}", "--out", run],
            ],
            DFER_CACHE=str(mine / "cache"),
        )
        assert [code for code, _, _ in told] == [0, 6, 0, 6, 0, 2], told
        assert f"{run}: expected a folder other than a run folder, got a run folder. Choose" in told[5][2]
        assert not any("Traceback" in err for _, _, err in told)
        for number, word in ((1, "evaluate"), (3, "report")):
            assert f"; this user is uid {NOBODY})" in told[number][2] and "belongs to " in told[number][2]
            assert told[number][2].endswith(f"write elsewhere: dfer {word} {run} --out FOLDER\n")
        assert result(mine / "again") == result(run)
        assert (mine / "again/results/test_predictions.csv").read_bytes() == (
            run / "results/test_predictions.csv"
        ).read_bytes()
        assert (mine / "report/index.html").exists() and (mine / "answers.csv").exists()
        assert snapshot(run) == before
