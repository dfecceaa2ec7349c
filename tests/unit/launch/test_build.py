"""Building shards as a job of independent parts."""

import re
from pathlib import Path

import pytest

from dfer.config import ConfigProblem
from dfer.errors import DataError, UsageError
from launch.__main__ import main
from launch.build import DEFAULTS, BuildConfig, _command, done, load, parts
from launch.job import make_job
from launch.local.submit import run_parts
from shards.build import build
from shards.shard import BuildOptions
from shards.sources import SOURCES
from shards.sources.generated import mark_generated
from shards.synthetic import synth
from tests.unit.launch.conftest import FakeSlurm


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synth("dfew", folder, clips=40, seed=1, jobs=1, size=32, progress=False)
    return folder


def written(folder: Path, raw: Path, text: str = "") -> Path:
    path = folder / "build.yaml"
    lines = [f"job: build\nrun: {folder}/job\ndataset: dfew\nraw: {raw}\nout: {folder}/shards\n", text]
    path.write_text("".join(lines))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow("two builds, one of them in processes of a launcher")
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_parts_gives_the_bytes_of_one_build(
    raw: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    source = mark_generated(SOURCES["dfew"](raw), raw)
    build(source, str(tmp_path / "one"), BuildOptions(clips_per_shard=4), progress=False)
    config = written(tmp_path, raw, f"workers: {workers}\njobs: 1\nclips_per_shard: 4\n")
    assert main(["local", str(config), "--parallel", "2"]) == 0
    assert files(tmp_path / "shards") == files(tmp_path / "one")
    assert len(re.findall(r"worker_\d: \d+ shards made", capfd.readouterr().out)) == workers
    assert main(["local", str(config)]) == 0
    again = capfd.readouterr().out  # no part is started again
    assert "worker_" not in again and again.endswith("10 shards, finished before\n")
    job = make_job([config], [], [], worlds=[1])
    assert [part.name for part in job.done()] == [f"worker_{k}" for k in range(1, workers + 1)]


@pytest.mark.slow("starts the launcher's processes")
def test_one_part_alone_leaves_the_others_to_do(raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, raw, "workers: 3\njobs: 1\nclips_per_shard: 4\n")
    job = make_job([config], [], ["worker_2"], worlds=[1])
    with pytest.raises(DataError, match=r"(?s)got 1 \(missing.*: 1/3, 3/3\).*--clips-per-shard 4 --part 1/3"):
        run_parts(job)
    built = load([config], [])
    assert [done(built, part) for part in parts(built)] == [False, True, False]
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert run_parts(make_job([config], [], [], worlds=[1])) == 0
    assert (tmp_path / "shards" / "manifest.json").exists()


def test_the_dry_run_of_a_local_job_names_its_parts(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(written(tmp_path, raw, "workers: 3\n"))
    assert (
        main(["local", config, "--processes", "4", "--parallel", "2", "--only", "worker_1,worker_3", "--dry-run"]) == 0
    )
    said = "2 parts, 2 at a time; processes of a part: 1; parts: worker_1, worker_3\n"
    assert capsys.readouterr().out == said
    assert not (tmp_path / "shards").exists() and not (tmp_path / "job").exists()


def test_every_part_is_a_task_in_slurms_queue(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
) -> None:
    config = written(tmp_path, raw, "workers: 5\n")
    assert main(["slurm", str(config), "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "--array=0-4" in script and "--ntasks-per-node=1" in script and "worker_5" in script


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset=dfeww", "dataset: expected one of .*, got dfeww. Did you mean 'dfew'"),
        ("workers=0", "workers: expected 1 or more, got 0"),
        ("workers=10001", "workers: expected at most 10000, got 10001"),
        ("jobs=0", "jobs: expected 1 or more, got 0"),
        ("allow_missing=-1", "allow_missing: expected 0 or more, got -1"),
        ("epochs=3", "epochs: unknown key"),
    ],
)
def test_wrong_values_are_named(raw: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load([written(tmp_path, raw)], [override])


def test_split_files_that_are_not_there_are_told_before_any_part_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path / "nothing")):
        make_job([written(tmp_path, tmp_path / "nothing")], [], [], worlds=[1])


def test_a_kind_of_job_that_there_is_not(raw: Path, tmp_path: Path) -> None:
    path = written(tmp_path, raw)
    path.write_text(path.read_text().replace("job: build", "job: biuld"))
    with pytest.raises(ConfigProblem, match=r"job: expected one of crossval, .*, build, got biuld"):
        make_job([path], [], [], worlds=[1])


def test_a_command_for_training_refuses_the_configuration_of_a_build(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dfer.__main__ import main as dfer

    assert dfer(["crossval", str(written(tmp_path, raw))]) == 2
    assert "job: expected 'crossval' or 'features', got 'build'" in capsys.readouterr().err


def test_the_command_of_a_part_says_what_differs_from_the_defaults() -> None:
    config = BuildConfig(run="r", dataset="dfew", raw="a b", out="o", quality=80, max_side=DEFAULTS.max_side)
    assert _command(config) == "dfer-shards build dfew 'a b' o --max-side 256 --quality 80"
    config = BuildConfig(run="r", dataset="dfew", raw="a b", out="o", clips_per_shard=DEFAULTS.clips_per_shard)
    assert _command(config) == "dfer-shards build dfew 'a b' o"
