"""Predictions and features as jobs of real processes: killed, resumed with another number of parts, in a bucket."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers, warm
from tests.integration.commands import environment, finish, refused, start
from tests.integration.test_features import PROBE
from tests.processes import alive, children
from tests.servers import S3

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("s3")
    with servers.rclone(folder) as server:
        yield server


@pytest.fixture(scope="module")
def shards(store: S3, dfew: Path) -> str:
    """The shards of 35 clips in the bucket."""
    for path in (dfew / "shards").rglob("*"):
        if path.is_file():
            target = store.files / "shards" / path.relative_to(dfew / "shards")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return f"{store.url}/shards"


@pytest.fixture(scope="module")
def job(crossval: tuple[Path, str], shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "predict.yaml"
    path.write_text(
        f"job: predict\nrun: none\nmodel: {crossval[0] / 'fold_1'}\nshards: {shards}\nbatch: 2\nloaders: 0\n"
    )
    return path


def killed(words: list[str], *, when: int, pieces: Path, variables: dict[str, str]) -> bool:
    """Start parts beside each other, and SIGKILL all of them once there are `when` pieces; whether they still ran."""
    process = warm.Popen(
        [sys.executable, "-m", "launch", "local", *words],
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while process.poll() is None and len(list(pieces.glob("*.csv"))) < when:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    ranks = children(process.pid)
    hit = process.poll() is None and bool(ranks)
    for pid in [*ranks, process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    while any(map(alive, ranks)):
        time.sleep(0.01)
    return hit


def killed_twice(store: S3, job: Path, variables: dict[str, str]) -> str:
    """The name of a folder in the bucket where parts, killed at random, in two divisions, have left some pieces."""
    draw = random.Random(5)
    for attempt in range(6):
        name, hits = f"answers_{attempt}", 0
        out = store.files / name
        for workers in (3, 2):
            words = [str(job), f"run={store.url}/{name}", f"workers={workers}", "--parallel", str(workers)]
            when = min(8, len(list(out.glob("pieces/*.csv"))) + draw.randint(1, 2))
            hits += killed(words, when=when, pieces=out / "pieces", variables=variables)
        if hits == 2 and 0 < len(list(out.glob("pieces/*.csv"))) < 9:
            return name
    raise AssertionError("the parts always ended before they were killed")


def test_parts_killed_at_random_and_resumed_in_another_number_give_the_bytes_of_one(
    store: S3, job: Path, dfew: Path, crossval: tuple[Path, str], tmp_path: Path
) -> None:
    """The shards and the predictions lie in a bucket; the undisturbed run reads and writes a disk."""
    variables = {**store.environment, "DFER_CACHE": str(tmp_path / "cache")}
    name = killed_twice(store, job, variables)
    out, url, straight = store.files / name, f"{store.url}/{name}", tmp_path / "straight"
    left = {path: path.stat().st_mtime_ns for path in out.glob("pieces/*.csv")}
    assert not (out / "predictions.csv").exists()
    done = finish("local", job, f"run={url}", "workers=4", "--parallel", 2, module="launch", **variables)
    assert "predictions.csv: 35 clips: " in done.stdout
    assert all(path.stat().st_mtime_ns == at for path, at in left.items())
    finish("local", job, f"run={straight}", f"shards={dfew / 'shards'}", module="launch")
    assert {p.name: p.read_bytes() for p in [*out.glob("*.csv"), *out.glob("pieces/*")]} == {
        p.name: p.read_bytes() for p in [*straight.glob("*.csv"), *straight.glob("pieces/*")]
    }
    with (straight / "predictions.csv").open(newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert len(rows) == 35 and all(not row["error"] for row in rows.values())
    with (crossval[0] / "fold_1" / "results" / "test_predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert rows[row["key"]]["predicted"] == row["predicted"]
            shares = [name for name in row if name not in ("key", "label", "predicted")]
            assert all(abs(float(rows[row["key"]][name]) - float(row[name])) <= 1e-5 for name in shares)
    said = finish("status", url, module="launch", **store.environment).stdout
    assert said.count("finished") == 4, said


def test_the_command_starts_parts_beside_each_other(crossval: tuple[Path, str], dfew: Path, tmp_path: Path) -> None:
    clips, model = tmp_path / "clips", crossval[0] / "fold_1"
    for folder in sorted((dfew / "raw").rglob("*")):
        if folder.is_dir() and any(path.is_file() and path.suffix == ".jpg" for path in folder.iterdir()):
            (clips / "deep").mkdir(parents=True, exist_ok=True)
            (clips / "deep" / folder.name).symlink_to(folder, target_is_directory=True)
    count = len(list((clips / "deep").iterdir()))
    words = ("predict", model, "--clips", clips, "--out", tmp_path / "out", "--workers", 2)
    done = finish(*words)
    assert f"predictions.csv: {count} clips: " in done.stdout and count > 16, done.stdout
    assert "worker_1: " in done.stdout and "worker_2: " in done.stdout
    bad = tmp_path / "bad"
    (bad / "c").mkdir(parents=True)
    (bad / "c" / "1.jpg").write_bytes(b"no picture")
    done = start("predict", model, "--clips", bad, "--out", tmp_path / "none")
    refused(done, 3, f"{tmp_path / 'none'}: expected to read all 1 clips, got 1 that cannot be read: c.")


def test_features_of_parts_are_the_files_of_a_training(dfew: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.yaml"
    probe.write_text(PROBE.format(shards=dfew / "shards").replace("eval_batch: 1", "eval_batch: 2"))
    finish("train", probe, f"run={tmp_path / 'run'}", f"data.features={tmp_path / 'trained'}", "epochs=1")
    job = (probe, f"run={tmp_path / 'job'}", f"data.features={tmp_path / 'made'}", "job=features")
    done = finish("local", *job, "workers=3", "--parallel", 2, module="launch")
    assert "features of 35 clips; a training with the same configuration reads them" in done.stdout
    ours, theirs = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("made", "trained")
    )
    assert ours == theirs and len(ours) > 9
    again = finish("train", probe, f"run={tmp_path / 'next'}", f"data.features={tmp_path / 'made'}", "epochs=1")
    assert "features:" not in again.stderr
    lost = next((tmp_path / "made").rglob("00003-*.safetensors"))
    lost.unlink()
    next((tmp_path / "made").rglob("manifest.json")).unlink()
    refused_once = start("local", *job, "workers=3", module="launch")
    assert refused_once.returncode == 5 and "whole shards, got 1 missing or damaged" in refused_once.stderr
    finish("local", *job, "workers=2", module="launch")
    assert lost.read_bytes() == theirs[lost.relative_to(tmp_path / "made")]
