"""Shards, run folder and checkpoints on a real S3 server: killed, overtaken, used; and no key anywhere."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dfer.distributed import World
from dfer.run.checkpoints import Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.storage import Folder
from tests import servers
from tests.fault_proxy import fault_proxy
from tests.integration.commands import Done, finish, last_weights, records, result, start
from tests.integration.jobs import Job, clips, wait_until
from tests.servers import S3

pytestmark = pytest.mark.integration

SETTINGS = ("engine.name=ddp", "record_clips=true", "epochs=4", "checkpoint.keep_last=2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3, Path]]:
    """A server and the folder in which its bucket's objects are plain files."""
    folder = tmp_path_factory.mktemp("s3")
    with servers.rclone(folder) as server:
        yield server, folder / server.bucket


@pytest.fixture(scope="module")
def remote(store: tuple[S3, Path], dfew: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of shards that were built straight into the bucket."""
    server, bucket = store
    finish(
        "build",
        "dfew",
        dfew / "raw",
        f"{server.url}/shards",
        "--jobs",
        1,
        "--no-progress",
        module="shards",
        **server.environment,
    )
    for path in (dfew / "shards").glob("**/*"):
        if path.is_file():
            assert (bucket / "shards" / path.relative_to(dfew / "shards")).read_bytes() == path.read_bytes()
    config = tmp_path_factory.mktemp("config") / "remote.yaml"
    config.write_text(tiny.read_text().replace(f"shards: {dfew / 'shards'}", f"shards: {server.url}/shards"))
    return config


def published(run: Path) -> int:
    """Steps of the newest checkpoint."""
    return max((int(path.parent.name[5:13]) for path in run.glob("checkpoints/*/manifest.json")), default=0)


@pytest.mark.timeout(600)
def test_a_run_in_a_bucket_ends_as_one_on_a_disk(
    store: tuple[S3, Path], remote: Path, tiny: Path, tmp_path: Path
) -> None:
    server, bucket = store
    straight, run, url = tmp_path / "straight", bucket / "run", f"{server.url}/run"
    code, told = Job(tiny, f"run={straight}", *SETTINGS).end()
    assert code == 0, told
    cache, temporary = {"DFER_CACHE": str(tmp_path / "cache")}, tmp_path / "temporary"
    temporary.mkdir()
    for at in (2, 6):
        job = Job(remote, f"run={url}", *SETTINGS, **server.environment, **cache, TMPDIR=str(temporary))
        assert wait_until(job, lambda at=at: published(run) >= at), job.end()  # type: ignore[misc]
        job.kill("all")
    assert not list(temporary.glob("*checkpoint*"))  # what it was continued from had been fetched
    first = Job(remote, f"run={url}", *SETTINGS, **server.environment, **cache)
    assert wait_until(first, lambda: published(run) >= 8), first.end()
    first.send(signal.SIGSTOP, ranks=True)
    code, told = Job(remote, f"run={url}", *SETTINGS, **server.environment, **cache).end()
    assert code == 0, told
    files = {path: path.read_bytes() for path in run.glob("**/*") if path.is_file() and "tensorboard" not in str(path)}
    first.send(signal.SIGCONT, ranks=True)
    code, told = first.end()
    assert code == 8 and f"{url}: expected to be its only writer (lease g3-" in told, told
    assert {path: path.read_bytes() for path in files} == files
    ours, theirs = last_weights(run), last_weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert clips(run) == clips(straight) and len(clips(run)) == 12
    assert [r["loss"] for r in records(run, "train")] == [r["loss"] for r in records(straight, "train")]
    assert result(run) == result(straight)
    assert list(run.glob("tensorboard/events.*")) and len(list(run.glob("lease/*.json"))) == 4
    _use(server, run, url, tmp_path)


def _use(server: S3, run: Path, url: str, tmp_path: Path) -> None:
    """Evaluate, predict and report from the bucket."""
    before = result(run)
    shutil.rmtree(run / "results")
    done = finish("evaluate", url, DFER_CACHE=str(tmp_path / "cache"), **server.environment)
    assert done.stdout.startswith(f"{url}: WAR ") and result(run) == before
    finish("report", url, **server.environment)
    assert (run / "report" / "index.html").exists()


@pytest.mark.parametrize("name", ["seed[1]", "lr*", "what?"])
def test_old_checkpoints_leave_the_bucket_whatever_the_run_is_called(
    store: tuple[S3, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bucket = store
    servers.use(server, monkeypatch)
    home, other = Folder(f"{server.url}/named/{name}"), Folder(f"{server.url}/named/seed1")
    other.write("checkpoints/file", b"another run's")
    checkpoints = Checkpoints(home, world=World(), config=CheckpointConfig(keep_last=2))
    checkpoints.start(None)
    for step in range(1, 6):
        checkpoints.save(step, weights={"a": torch.ones(9)}, optimizer={}, state={})
    checkpoints.finish()
    files = [path for path in (bucket / "named" / name / "checkpoints").glob("**/*") if path.is_file()]
    assert {path.parent.name[5:13] for path in files} == {"00000004", "00000005"} and len(files) == 8
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 5 and other.names() == ["checkpoints/file"]
    latest.close()


def test_a_store_that_is_not_there_is_a_message(tiny: Path, tmp_path: Path) -> None:
    with servers.rclone(tmp_path) as server:
        gone = server
    done = start("train", tiny, "run=s3://data/run", **gone.environment, timeout=120)
    assert done.returncode == 6, done.stderr
    assert "s3://data/run" in done.stderr and "attempts). Check the URL, the network and the credentials" in done.stderr


# Secrets

KEY, SECRET = "AKIAPLANTEDFAKEKEY42", "pl4nted/f4ke+s3cret/never-to-be-seen"


def leaks(*places: Path) -> list[str]:
    found = []
    for place in places:
        for path in [place] if place.is_file() else place.glob("**/*"):
            if path.is_file():
                data = path.read_bytes()
                found += [str(path) for word in (KEY, SECRET) if word.encode() in data]
    return found


def silent(done: Done) -> None:
    assert SECRET not in done.stdout + done.stderr and KEY not in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_planted_key_appears_nowhere(tiny: Path, dfew: Path, tmp_path: Path) -> None:
    """Given as it should be, and in every place where it should not be."""
    with servers.rclone(tmp_path / "s3", keys=(KEY, SECRET)) as server:
        good = {**server.environment, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        run = f"{server.url}/run"
        done = finish("train", tiny, f"run={run}", "engine.name=ddp", "epochs=1", **good)
        silent(done)
        assert list((tmp_path / "s3").glob("data/run/results/test.json"))
        silent(finish("report", run, **good))
        wrong = {**good, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET + "x"}
        for arguments, variables in (
            (("train", tiny, f"run={server.url}/other"), wrong),
            (("train", tiny, "run=s3://no-such-bucket/run"), good),
            (("train", tiny, f"run=s3://{KEY}:{SECRET.replace('/', '%2F')}@data/run"), good),
            (("train", tiny, f"run={tmp_path / 'run'}", f"data.shards=s3://{KEY}:secret@data/shards"), good),
            (("report", f"s3://{KEY}:secret@data/run"), good),
        ):
            refused = start(*arguments, **variables, timeout=120)
            assert refused.returncode in (2, 6), refused.stderr
            silent(refused)
            assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1, refused.stderr
    said = json.loads((tmp_path / "s3" / "data" / "run" / "environment.json").read_text())
    assert said["command"][1] == "train"
    assert not leaks(tmp_path / "s3", *([tmp_path / "run"] if (tmp_path / "run").exists() else []))


def test_folds_beside_each_other_fetch_every_shard_once(
    store: tuple[S3, Path], remote: Path, dfew: Path, tmp_path: Path
) -> None:
    """They share the cache of the node."""
    server, _ = store
    with fault_proxy(server.endpoint) as proxy:
        env = {**server.environment, "AWS_ENDPOINT_URL_S3": proxy.endpoint, "DFER_CACHE": str(tmp_path / "cache")}
        words = ("--parallel", 2, "--only", "fold_1,fold_2", "epochs=2", "engine.name=ddp", f"run={tmp_path / 'run'}")
        finish("local", remote, *words, module="launch", **env)
        fetched = sum(size for path, size in proxy.counts()["bytes_of"].items() if path.endswith(".tar"))
    whole = sum(path.stat().st_size for path in dfew.glob("shards/**/*.tar"))
    assert whole <= fetched <= 1.02 * whole
