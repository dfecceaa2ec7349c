"""A job: resolved text, absolute places, folds that exist, a batch that divides; patience with stores."""

import os
import pickle
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dfer.config import load_text, to_plain, to_yaml
from dfer.config_files import load
from dfer.distributed import World
from dfer.errors import CheckpointError, FencedError, ProcessError, StoppedError, StorageError, UsageError
from dfer.evaluation.results import save_result
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.models.files import files
from dfer.run.changes import keys
from dfer.storage import Folder
from launch import job as module
from launch.job import Job, Place, conclude, make_job, run_job
from launch.rendezvous import Rendezvous
from launch.timeout import with_timeout
from tests import fake_runs
from tests.unit.launch import counting
from tests.unit.launch.conftest import training

ALL = [f"fold_{number}" for number in range(1, 6)]
RESULT = fake_runs.result()
CONFIG = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.fixture(autouse=True)
def five_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer.jobs.crossval.known_folds", lambda _: [1, 2, 3, 4, 5])


PROBE = (
    "model={name: linear_probe, towers: {arch: tiny-conv-64}}",
    "data.train_frames=middle",
    "data.augment={crop: false, flip: 0.0, brightness: 0.0, rotation: 0.0}",
    "optim.groups={image: null, temporal: null, prompts: null, head: {lr: 0.1}}",
)


def made(*overrides: str, only: tuple[str, ...] = (), worlds: tuple[int, ...] = (1,)) -> Job:
    return make_job([CONFIG], overrides, only, worlds=worlds)


def names(job: Job) -> list[str]:
    return [part.name for part in job.parts]


def test_a_job_is_resolved_text_with_absolute_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = made("run=runs/x", "data.shards=shards", "seed=7", only=("fold_3", "fold_1"))
    config = load_text(job.config.encode(), RunConfig, where="job")
    assert (config.seed, config.run, config.data.shards) == (7, f"{tmp_path}/runs/x", f"{tmp_path}/shards")
    probe = (*PROBE, "data.features=f", "model.towers.pretrained=gone.pt")  # stored features need no tower
    assert load_text(made(*probe).config.encode(), RunConfig, where="job").data.features == f"{tmp_path}/f"
    assert (names(job), job.parts[1].run) == (["fold_1", "fold_3"], f"{tmp_path}/runs/x/fold_3")
    assert pickle.loads(pickle.dumps(job)) == job and "seed" not in repr(job)


def test_files_of_weights_become_absolute_and_have_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names that open_clip knows are no files, and what has a checkpoint or a result needs them no more."""
    monkeypatch.chdir(tmp_path)
    vit = ("run=runs/x", "model.towers.arch=ViT-B-32-quickgelu")

    def pretrained(job: Job) -> str | None:
        return load_text(job.config.encode(), RunConfig, where="job").model.towers.pretrained

    assert pretrained(made(*vit, "model.towers.pretrained=openai")) == "openai"
    file = "model.towers.pretrained=w/clip.pt"
    said = (
        rf"model.towers.pretrained={tmp_path}/w/clip.pt: expected a local file, got no such file. Correct the path, or"
    )
    with pytest.raises(CheckpointError, match=said):
        made(*vit, file)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "clip.pt").touch()
    job = made(*vit, file, only=("fold_2",))
    assert pretrained(job) == f"{tmp_path}/w/clip.pt"
    begun = tmp_path / "runs" / "x" / "fold_2"
    begun.mkdir(parents=True)
    config = load_text(job.config.encode(), RunConfig, where="job")
    (begun / "config.yaml").write_text(to_yaml(replace(config, fold=2, run=str(begun))))
    (tmp_path / "w" / "clip.pt").unlink()
    with pytest.raises(CheckpointError, match=said):  # begun, and killed before it saved
        made(*vit, file, only=("fold_2",))
    (begun / "results").mkdir()
    save_result(fake_runs.result(fold=2, epochs=config.epochs), Folder(begun))
    assert pretrained(made(*vit, file, only=("fold_2",))) == f"{tmp_path}/w/clip.pt"


def test_architectures_texts_and_models_to_start_from_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"model.towers.arch={tmp_path}/own.json: expected a local file"):
        made("run=x", "model.towers.arch=own.json")
    with pytest.raises(CheckpointError, match=rf"model.text={tmp_path}/own.yaml: .*no such file\. Correct the path\.$"):
        made("run=x", "model.text=own.yaml")
    with pytest.raises(
        CheckpointError, match=rf"model.start={tmp_path}/runs/x: expected the run folder of a fold, or a saved"
    ):
        made("run=x", "model.start=runs/x")
    job = made("run=x", "model.start=s3://bucket/runs/x")
    assert load_text(job.config.encode(), RunConfig, where="job").model.start == "s3://bucket/runs/x"
    config = load([CONFIG], RunConfig, ["model.towers.arch=own.json", "model.towers.pretrained=own.pt"]).model
    others = (replace(config, start="runs/x"), replace(config, text="own.yaml"))
    named = {f"model.{key}" for each in (config, *others) for key in files(each)}
    facts = keys(RunConfig, to_plain(replace(load([CONFIG], RunConfig), model=replace(config, start="runs/x"))))
    assert named == {name for name, key in facts.items() if key.file} | {"model.start"}
    assert files(config, weights=False) == {"towers.arch": "own.json"}


@pytest.mark.parametrize("name", ["lr #1", "010", "a: b", "null", "'q\"", "漢", "~"])
def test_places_reach_the_processes_letter_by_letter(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of a file too, which YAML would read once more if they were handed on as words."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    source = tmp_path / "c.yaml"
    source.write_text(yaml.safe_dump({"base": str(CONFIG), "run": f"./{name}", "data": {"shards": "s", "cache": "c"}}))
    job = make_job([source], [f"data.shards=./{name}"], (), worlds=(1,))
    seen: list[Any] = []
    monkeypatch.setattr("dfer.jobs.train.train", lambda config, *_: seen.append(config) or RESULT)
    monkeypatch.setattr(module, "export", lambda _: None)
    place = Place(
        rank=0, size=1, local_rank=0, local_size=1, rendezvous=Rendezvous(rank=0, size=1, host="h", port=1), gpu=False
    )
    run_job(pickle.loads(pickle.dumps(job)), job.part("fold_2"), place, Stop())
    here = f"{tmp_path}/{name}"
    assert (job.run, seen[0].run) == (f"{here}/{name}", f"{here}/{name}/fold_2")
    assert (seen[0].data.shards, seen[0].data.cache) == (f"{here}/{name}", f"{here}/c")


def test_urls_stay_as_they_are() -> None:
    job = made("run=memory://bucket/run/", "data.shards=s3://bucket/dfew")
    config = load_text(job.config.encode(), RunConfig, where="job")
    assert job.run == "memory://bucket/run" and config.data.shards == "s3://bucket/dfew"
    assert names(job) == ALL and job.parts[0].run == "memory://bucket/run/fold_1"


@pytest.mark.parametrize("name", ["fold_7", "1", "seed_1/fold_1"])
def test_parts_that_there_are_not_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(only=("fold_1", name))
    assert str(caught.value) == f"--only: expected some of {', '.join(ALL)}, got {name}. Correct --only."


def test_the_batch_has_to_divide_for_every_number_of_processes(tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    with pytest.raises(UsageError, match=r"batch: expected a multiple of 3 processes, got 8. Set batch=6"):
        made(run, "batch=8", worlds=(2, 3, 4))
    with pytest.raises(UsageError, match=r"got 8\. Set batch=6"):
        made(run, "batch=8", "micro_batch=1", worlds=(2, 3, 4))
    assert made(run, "batch=12", "micro_batch=5", worlds=(2, 3, 4)).parts


def test_the_folder_of_a_single_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"expected a folder for all parts, got the run of a single one. Choose"):
        made(f"run={tmp_path}")


def test_another_configuration_of_a_begun_fold_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Also of a finished one, whose old result would else pass for the new configuration's."""
    job = made(f"run={tmp_path}")
    config = replace(load_text(job.config.encode(), RunConfig, where="job"), fold=2, run=job.parts[1].run)
    (tmp_path / "fold_2").mkdir()
    (tmp_path / "fold_2" / "config.yaml").write_text(to_yaml(config))
    assert made(f"run={tmp_path}").parts == job.parts
    with pytest.raises(CheckpointError, match=r"fold_2.*seed"):
        made(f"run={tmp_path}", "seed=7")


def test_every_launcher_trains_the_fold_in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "dfer.jobs.train.train", lambda config, world, stop: seen.append((config, world, stop)) or RESULT
    )
    monkeypatch.setattr(module, "export", lambda found: seen.append(found))
    monkeypatch.setattr(module, "revision", lambda: "other")
    rendezvous = Rendezvous(rank=0, size=1, host="h", port=1)
    stop = Stop()
    job = made(f"run={tmp_path / 'run'}")
    alone = Place(rank=0, size=1, local_rank=0, local_size=1, rendezvous=rendezvous, gpu=False)
    said = run_job(replace(job, revision="abc"), job.part("fold_4"), alone, stop)
    assert said == f"fold_4: WAR {100 * RESULT.war:.2f}, UAR {100 * RESULT.uar:.2f}"
    variables, (config, world, passed) = seen
    assert variables == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert (config.fold, config.run) == (4, str(tmp_path / "run" / "fold_4"))
    assert world == World(rank=0, size=1, local_rank=0, local_size=1) and passed is stop


def test_a_host_without_the_packages_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'open_clip'")

    monkeypatch.setattr(module, "export", lambda _: None)
    monkeypatch.setattr("dfer.jobs.train.train", missing)
    place = Place(
        rank=0, size=1, local_rank=0, local_size=1, rendezvous=Rendezvous(rank=0, size=1, host="h", port=1), gpu=False
    )
    with pytest.raises(UsageError) as caught:
        job = made(f"run={tmp_path / 'run'}")
        run_job(job, job.parts[0], place, Stop())
    expected = "expected an environment in which the job can be imported, got ModuleNotFoundError (No module named 'op"
    assert expected in str(caught.value) and str(caught.value).startswith("host ")


def test_another_revision_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfer.jobs.train.train", lambda *_: RESULT)
    monkeypatch.setattr(module, "export", lambda _: None)
    job = replace(made(f"run={tmp_path / 'run'}"), revision="abc")
    rendezvous = Rendezvous(rank=0, size=1, host="h", port=1)
    place = Place(rank=0, size=1, local_rank=0, local_size=1, rendezvous=rendezvous, gpu=False)
    for now, told, named in (("abc", False, ""), ("def", True, ""), ("unknown", False, "abc")):
        monkeypatch.setenv("DFER_REVISION", "")
        monkeypatch.setattr(module, "revision", lambda now=now: now)
        run_job(job, job.parts[0], place, Stop())
        assert ("note: the job was made by revision abc, this is def" in capsys.readouterr().err) is told
        assert os.environ["DFER_REVISION"] == named


@pytest.mark.parametrize(
    ("found", "folder", "revision"),
    [
        ("unknown", "_ray_pkg_029f88d5", "ray_pkg_029f88d5"),
        ("unknown", "project", "unknown"),
        ("0123abcd", "_ray_pkg_029f88d5", "0123abcd"),
    ],
)
def test_code_that_ray_unpacked_has_the_revision_of_its_folder(
    found: str, folder: str, revision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "revision", lambda: found)
    monkeypatch.setattr(module, "PROJECT", tmp_path / folder)
    assert made(f"run={tmp_path / 'run'}").revision == revision


def test_a_failed_fold_leaves_a_report_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_runs.write_fold(tmp_path / "fold_1", fake_runs.result(fold=1), curves=False)
    assert conclude(training(tmp_path, 1, 2, 3), 7) == 7
    out, err = capsys.readouterr()
    assert "1 of 5 folds" in out and (tmp_path / "report" / "report.md").exists()
    assert err.startswith(
        f"error: {tmp_path}: expected a result of every part, got none of fold_2, fold_3. `dfer-launch"
    )
    assert conclude(training(tmp_path, 1), 0) == 0
    with pytest.raises(CheckpointError, match="got none of fold_2"):
        conclude(training(tmp_path, 1, 2), 0)


@pytest.mark.parametrize("code", [FencedError.exit_code, StoppedError.exit_code])
def test_what_goes_on_at_the_next_start_is_not_reported(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.write_fold(tmp_path / "fold_1", fake_runs.result(fold=1), curves=False)
    assert conclude(training(tmp_path, 1, 2), code) == code
    assert capsys.readouterr() == ("", "") and not (tmp_path / "report").exists()


@pytest.mark.parametrize(("there", "enough"), [(0, False), (2, False), (4, True), (1, True)])
def test_missing_gpus_are_told_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: int, enough: bool
) -> None:
    """One card may be a process's own."""
    monkeypatch.setattr("dfer.jobs.train.train", lambda *_: RESULT)
    monkeypatch.setattr(module, "export", lambda _: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    # It would take the cards for real.
    monkeypatch.setattr("dfer.distributed.process_group", lambda *_, **_more: nullcontext())
    rendezvous = Rendezvous(rank=0, size=1, host="h", port=1)
    place = Place(rank=0, size=1, local_rank=0, local_size=4, rendezvous=rendezvous, gpu=True)
    job = made(f"run={tmp_path / 'run'}")
    if enough:
        run_job(job, job.parts[0], place, Stop())
    else:
        with pytest.raises(UsageError, match=rf"expected a GPU for each of 4 processes, got {there}. Check nvidia"):
            run_job(job, job.parts[0], place, Stop())


def test_a_store_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    hanging = threading.Event()
    with pytest.raises(StorageError, match=r"s3://b/x: expected an answer within 0.05 s, got none. Check the URL"):
        with_timeout(0.05, hanging.wait, what="s3://b/x")
    hanging.set()


def test_a_process_that_computes_has_more_time_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine delays imports and reading, and is no store that does not answer."""
    ticks, answered = iter(range(10**6)), threading.Event()

    def cpu_time() -> float:
        now = next(ticks)
        if now == 40:  # two a fifth of the timeout: after four times the timeout
            answered.set()
        return float(now)

    monkeypatch.setattr("launch.timeout.time.process_time", cpu_time)
    assert with_timeout(0.05, lambda: answered.wait() and "an answer", what="x") == "an answer"
    monkeypatch.setattr("launch.timeout.MORE_S", 0.1)
    answered.clear()
    with pytest.raises(StorageError, match=r"x: expected an answer within 0.05 s, got none"):
        with_timeout(0.05, answered.wait, what="x")
    answered.set()


def test_a_check_that_reads_data_has_the_time_that_its_module_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = counting.Config(run=str(tmp_path))
    monkeypatch.setattr(module, "load_job", lambda *_: (counting, config))
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    monkeypatch.setattr(counting, "check", lambda *_: time.sleep(0.2))
    with pytest.raises(StorageError, match=r"expected an answer within 0.05 s"):
        make_job([], [], [], worlds=[1])
    monkeypatch.setattr(counting, "check_s", 30.0, raising=False)
    assert len(make_job([], [], [], worlds=[1]).parts) == 3


def test_results_and_errors_of_patient_work_come_through() -> None:
    assert with_timeout(5, lambda: 3, what="x") == 3

    def fail() -> None:
        raise ProcessError("no")

    with pytest.raises(ProcessError):
        with_timeout(5, fail, what="x")


def test_a_fold_is_finished_when_its_training_is_complete(tmp_path: Path) -> None:
    """Not when there is an evaluation of it, nor with fewer epochs than are asked for now."""
    job = made(f"run={tmp_path}", "epochs=50")
    for fold, changes in ((1, {}), (2, {"complete": False}), (3, {"epochs": 40}), (4, {"step": 0, "epochs": 0})):
        save_result(fake_runs.result(fold=fold, **changes), Folder(job.part(f"fold_{fold}").run))
    assert [part.name for part in job.done()] == ["fold_1", "fold_4"]
    assert (Path(job.parts[1].run) / "results" / "test-step_00009750.json").exists()
    with pytest.raises(CheckpointError, match="got none of fold_2, fold_5"):
        module.report(made(f"run={tmp_path}", "epochs=50", only=("fold_2", "fold_5")))
    (tmp_path / "fold_5" / "results").mkdir(parents=True)
    (tmp_path / "fold_5" / "results" / "test.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"fold_5/results/test.json: expected a JSON object, got .* Delete it and"
    ):
        job.done()
