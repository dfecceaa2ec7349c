"""Building shards as a job of independent parts."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dfer.config import ConfigProblem
from dfer.errors import DataError, UsageError
from dfer.interruption import Stop
from launch.__main__ import main
from launch.build import conclude, done, load, parts, run
from launch.job import make_job
from launch.local import processes
from launch.local.processes import Rank
from launch.local.submit import run_parts
from shards import parts as shard_parts
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
    with pytest.raises(
        DataError, match=r"got 1 \(missing.*: worker_1, worker_3\)\. Run the same .*`--only worker_1,worker_3`;"
    ):
        run_parts(job)
    built = load([config], [])
    assert [done(built, part) for part in parts(built)] == [False, True, False]
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert run_parts(make_job([config], [], [], worlds=[1])) == 0
    assert (tmp_path / "shards" / "manifest.json").exists()


def test_a_build_with_gaps_is_repaired_by_the_same_command(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is damaged: a part is done only if its report and its shards are those of the plan."""
    home = shutil.copytree(raw, tmp_path / "raw")
    job = make_job([written(tmp_path, home, "jobs: 1\nclips_per_shard: 4\n")], [], [], worlds=[1])
    built, out = job.configuration(), tmp_path / "shards"
    started: list[str] = []

    def run_all() -> str:
        started[:] = [part.name for part in job.parts if part not in job.done()]
        for part in job.parts:
            if part.name in started:
                run(built, part, None, Stop())
        return conclude(built)

    lost = sorted((home / "Clip/clip_224x224").iterdir())[5]
    lost.rename(tmp_path / "lost")
    with pytest.raises(DataError, match="got 1 clip that cannot be packed") as caught:
        run_all()
    found = re.search(
        r"Mend the raw data and run the same dfer-launch command again, also with `--only (worker_\d)` "
        r"\(finished shards are kept\), or accept the gaps with allow_missing=1\.",
        str(caught.value),
    )
    assert found and started == ["worker_1", "worker_2"]
    (tmp_path / "lost").rename(lost)
    with monkeypatch.context() as patch:
        patch.setattr(shard_parts, "remove_plan", lambda *_: None)  # as if killed before its end
        run_all()
    assert started == [found[1]] and len(job.done()) == 2
    report, shard = out / "part_1_of_2.json", sorted(out.glob("*/00000.tar"))[0]
    whole = report.read_text()
    for text in ("{", whole.replace('"plan": "', '"plan": "0'), whole.replace("/0000", "/../0000")):
        report.write_text(text)
        assert [part.name for part in job.done()] == ["worker_2"]
    shard.unlink()
    report.write_text(whole)
    assert len(job.done()) == 1
    run_all()
    assert len(started) == 1
    build(
        mark_generated(SOURCES["dfew"](raw), raw),
        str(tmp_path / "one"),
        BuildOptions(clips_per_shard=4),
        progress=False,
    )
    assert files(out) == files(tmp_path / "one")


@pytest.mark.slow("starts the launcher's processes three times")
def test_the_same_command_goes_on_after_a_killed_worker_and_after_a_gap(
    raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(raw, tmp_path / "raw")
    lost = sorted((home / "Clip/clip_224x224").iterdir())[5]
    lost.rename(tmp_path / "lost")
    config = written(tmp_path, home, "workers: 3\njobs: 1\nclips_per_shard: 4\n")
    command = ["local", str(config), "--parallel", "3"]
    start = processes._start

    def start_and_kill(arguments: Sequence[str], environment: Mapping[str, str], number: int, label: str) -> Rank:
        rank = start(arguments, environment, number, label)
        if label == "worker_1":
            rank.process.kill()
        return rank

    with monkeypatch.context() as patch:
        patch.setattr(processes, "_start", start_and_kill)
        assert main(command) == 7
    assert "missing or not finished: worker_1)" in capfd.readouterr().err
    before = changed_at(tmp_path / "shards")
    assert {"part_2_of_3.json", "part_3_of_3.json"} <= before.keys()
    assert main(command) == 3
    said = capfd.readouterr()
    assert "worker_1: 4 shards made" in said.out and "worker_2: " not in said.out and "run the same" in said.err
    after = changed_at(tmp_path / "shards")
    assert {name: after[name] for name in before if "/" in name} == {n: at for n, at in before.items() if "/" in n}
    (tmp_path / "lost").rename(lost)
    assert main(command) == 0
    assert len(re.findall(r"worker_\d: 1 shards made, \d up to date", capfd.readouterr().out)) == 1
    build(
        mark_generated(SOURCES["dfew"](raw), raw),
        str(tmp_path / "one"),
        BuildOptions(clips_per_shard=4),
        progress=False,
    )
    assert files(tmp_path / "shards") == files(tmp_path / "one")


def changed_at(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


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
