"""Predictions and features as jobs of real processes: killed, resumed with another number of parts, in a bucket."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import servers, warm
from tests.integration.commands import environment, finish, start
from tests.integration.test_features import PROBE
from tests.processes import alive, children
from tests.servers import S3

pytestmark = pytest.mark.integration


@dataclass(frozen=True, kw_only=True)
class Place:
    """url: of a folder for predictions; files: the same on the disk. words: for the job; variables: for processes."""

    url: str
    files: Path
    words: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


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
def job(crossval: tuple[Path, str], dfew: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prediction of 35 clips in nine pieces."""
    path, model = tmp_path_factory.mktemp("job") / "predict.yaml", crossval[0] / "fold_1"
    path.write_text(f"job: predict\nrun: none\nmodel: {model}\nshards: {dfew / 'shards'}\nbatch: 2\nloaders: 0\n")
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


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where shards and predictions lie."""
    if request.param == "disk":
        return Place(url=str(tmp_path), files=tmp_path)
    server, shards = request.getfixturevalue("store"), request.getfixturevalue("shards")
    variables = {**server.environment, "DFER_CACHE": str(tmp_path / "cache")}
    return Place(url=server.url, files=server.files, words=(f"shards={shards}",), variables=variables)


def killed_twice(place: Place, job: Path) -> str:
    """The name of a folder where parts, killed at random, in two divisions, have left some pieces."""
    draw = random.Random(5)
    for attempt in range(8):
        name, hits = f"answers_{attempt}", 0
        out = place.files / name
        for workers in (3, 2):
            words = [str(job), *place.words, f"run={place.url}/{name}", f"workers={workers}", "--parallel", "2"]
            when = min(8, len(list(out.glob("pieces/*.csv"))) + draw.randint(1, 2))
            hits += killed(words, when=when, pieces=out / "pieces", variables=place.variables)
        if hits == 2 and 0 < len(list(out.glob("pieces/*.csv"))) < 9:
            return name
    raise AssertionError("the parts always ended before they were killed")


def test_parts_killed_at_random_and_resumed_in_another_number_give_the_bytes_of_one(
    place: Place, job: Path, crossval: tuple[Path, str], tmp_path: Path
) -> None:
    name = killed_twice(place, job)
    out, url, straight = place.files / name, f"{place.url}/{name}", tmp_path / "straight"
    left = {path: path.stat().st_mtime_ns for path in out.glob("pieces/*.csv")}
    assert not (out / "predictions.csv").exists()
    words = (job, *place.words, f"run={url}", "workers=4", "--parallel", 2)
    done = finish("local", *words, module="launch", **place.variables)
    assert "predictions.csv: 35 clips: " in done.stdout
    assert all(path.stat().st_mtime_ns == at for path, at in left.items())
    finish("local", job, f"run={straight}", module="launch")
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
    said = finish("status", url, module="launch", **place.variables).stdout
    assert said.count("finished") == 4, said


def test_the_command_answers_from_a_bucket_into_a_bucket(
    store: S3, shards: str, crossval: tuple[Path, str], tmp_path: Path
) -> None:
    model, variables = crossval[0] / "fold_1", {**store.environment, "DFER_CACHE": str(tmp_path / "cache")}
    with (model / "results" / "test_predictions.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    words = ("--shards", shards, "--partitions", "fold_1", "--out", f"{store.url}/here")
    done = finish("predict", model, *words, **variables)
    assert f"{store.url}/here/predictions.csv: {len(expected)} clips: " in done.stdout
    with (store.files / "here" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["predicted"]) for row in rows] == [(row["key"], row["predicted"]) for row in expected]


@pytest.mark.long
def test_the_command_starts_parts_beside_each_other(crossval: tuple[Path, str], dfew: Path, tmp_path: Path) -> None:
    clips, model = tmp_path / "clips", crossval[0] / "fold_1"
    found = sorted({path.parent for path in (dfew / "raw").rglob("*.jpg")})[:20]
    (clips / "deep").mkdir(parents=True)
    for folder in found:
        (clips / "deep" / folder.name).symlink_to(folder, target_is_directory=True)
    bad = clips / "deep" / "bad"
    bad.mkdir()
    (bad / "1.jpg").write_bytes(b"no picture")
    words = ("predict", model, "--clips", clips, "--out", tmp_path / "out", "--workers", 2)
    done = start(*words)
    assert "worker_1: " in done.stdout and "worker_2: " in done.stdout
    said = f"{tmp_path / 'out'}: expected to read all {len(found) + 1} clips, got 1 that cannot be read: deep/bad. "
    assert done.returncode == 3 and said in done.stderr, done.stderr
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert sum(bool(row["predicted"]) for row in csv.DictReader(file)) == len(found) == 20


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
