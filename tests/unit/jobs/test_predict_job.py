"""Predictions of many clips: equal to those of an evaluation, for any number of parts; what is refused and retried."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from dfer.__main__ import main
from dfer.commands import predict as predict_command
from dfer.config import ConfigProblem
from dfer.data.config import DataConfig
from dfer.data.recipes import DferClipAugment, ViewsConfig
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, DataError, StoppedError, UsageError
from dfer.interruption import Stop
from dfer.jobs import predict_job, predict_pieces
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import JOBS, load_job, name_of
from dfer.jobs.predict import predict
from dfer.jobs.predict_job import PredictConfig
from dfer.jobs.train import train
from dfer.models.config import LinearProbeConfig
from dfer.models.config_towers import TowersConfig
from dfer.recognition import Recognition
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from tests.unit.data.shardkit import CLASSES, Clip, write_shards

BATCH = 4
"""Rows: two clips with two views each."""


def clip(key: str, seed: int, *, label: int | None = 0) -> Clip:
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 256, (2 + seed % 5, 40, 48, 3), dtype=np.uint8)
    return Clip(key=key, label=label, frames=[simplejpeg.encode_jpeg(frame, quality=95) for frame in frames])


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of 18 clips of noise, in shards of six; every fifth clip has no label."""
    made = [clip(f"c{n:02d}", n, label=None if n % 5 == 4 else n % 7) for n in range(36)]
    cut = {f"fold_{k + 1}": [made[at : at + 6] for at in range(18 * k, 18 * k + 18, 6)] for k in range(2)}
    return write_shards(tmp_path_factory.mktemp("shards"), cut)


@pytest.fixture(scope="module")
def model(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on fold 1, with two views of a test clip."""
    run = tmp_path_factory.mktemp("run") / "fold_1"
    data = DataConfig(
        shards=str(faces), workers=0, frames=2, size=64, augment=DferClipAugment(), views=ViewsConfig(clips=2)
    )
    config = RunConfig(
        run=str(run),
        epochs=1,
        batch=4,
        eval_batch=BATCH,
        data=data,
        model=LinearProbeConfig(towers=TowersConfig(arch="tiny-conv-64")),
        engine=EngineConfig(name="ddp"),
        optim=SgdConfig(groups={"head": GroupConfig(lr=0.5)}),
    )
    with process_group(World()):
        train(config, World())
    return run


def config(run: Path, model: Path, **changes: Any) -> PredictConfig:
    return PredictConfig(**{"run": str(run), "model": str(model), "batch": BATCH, "loaders": 0, **changes})


def make(job: PredictConfig, *, stop: Stop | None = None) -> str:
    """All parts in this process, as a launcher starts them; returns the conclusion."""
    parts = predict_job.parts(job)
    predict_job.check(job, parts, [1])
    for part in parts:
        if not predict_job.done(job, part):
            predict_job.run(job, part, None, stop or Stop())
            assert predict_job.done(job, part)
    return predict_job.conclude(job)


def table(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def folders(home: Path, numbers: range) -> Path:
    """The clips of the shards as folders of pictures."""
    for number in numbers:
        folder = home / f"s{number % 3}" / f"c{number:02d}"
        folder.mkdir(parents=True)
        for at, data in enumerate(clip("", number).frames):
            (folder / f"{at}.jpg").write_bytes(data)
    return home


# --- equal


def test_a_test_set_is_answered_as_the_evaluation_does(tmp_path: Path, model: Path, faces: Path) -> None:
    test = json.loads((model / "results" / "test.json").read_text())["test_partitions"]
    make(config(tmp_path / "a", model, shards=str(faces), partitions=tuple(test)))
    with (model / "results" / "test_predictions.csv").open(newline="") as file:
        expected = {row["key"]: row for row in csv.DictReader(file)}
    rows = {row["key"]: row for row in table(tmp_path / "a")}
    assert len(rows) == 18 > len(expected) >= 14, "clips without a label are answered too"
    for key, row in expected.items():
        assert rows[key]["predicted"] == row["predicted"]
        for name in CLASSES:
            assert float(rows[key][name]) == pytest.approx(float(row[name]), abs=1e-5)
    assert len({row["anger"] for row in rows.values()}) > 9


def test_any_number_of_parts_gives_the_same_bytes(tmp_path: Path, model: Path, faces: Path) -> None:
    files = []
    for workers in (1, 11):
        job = config(tmp_path / str(workers), model, shards=str(faces), workers=workers)
        said = make(job)
        files.append({path.name: path.read_bytes() for path in (tmp_path / str(workers)).rglob("*.csv")})
    assert files[0] == files[1] and len(files[0]) == 10  # 36 clips, 4 a piece; and the whole
    assert [row["key"] for row in table(tmp_path / "11")] == [f"c{n:02d}" for n in range(36)]
    assert said.startswith(f"{tmp_path / '11'}/predictions.csv: 36 clips: ")
    summary = json.loads((tmp_path / "11" / "summary.json").read_text())
    assert (summary["clips"], summary["answered"], summary["failed"]) == (36, 36, 0)
    assert list(summary["predicted"]) == list(CLASSES) and sum(summary["predicted"].values()) == 36


def test_folders_are_answered_as_one_by_one(tmp_path: Path, model: Path, faces: Path) -> None:
    home = folders(tmp_path / "clips", range(9))
    make(config(tmp_path / "a", model, clips=str(home), workers=2))
    make(config(tmp_path / "shards", model, shards=str(faces)))
    alone = {row["key"]: row for row in table(tmp_path / "shards")}
    rows = table(tmp_path / "a")
    assert [row["key"] for row in rows] == sorted(f"s{n % 3}/c{n:02d}" for n in range(9))
    found = predict_job.work_of(config(tmp_path / "a", model, clips=str(home))).answering.config
    for row, (_, answer) in zip(rows, predict(found, [home / row["key"] for row in rows], World())):
        assert isinstance(answer, dict)
        for name in CLASSES:
            assert float(row[name]) == pytest.approx(answer[name], abs=1e-5)
            assert float(row[name]) == pytest.approx(float(alone[row["key"][3:]][name]), abs=1e-5)
    (tmp_path / "list.txt").write_text("clips/s2/c05\nclips/s0/c00\n")
    make(config(tmp_path / "b", model, clips=str(tmp_path / "list.txt")))
    assert [row["key"] for row in table(tmp_path / "b")] == ["clips/s2/c05", "clips/s0/c00"]
    listed = {row["key"]: row["fear"] for row in rows}
    for row in table(tmp_path / "b"):
        assert float(row["fear"]) == pytest.approx(float(listed[row["key"].removeprefix("clips/")]), abs=1e-5)


def test_lines_of_json(tmp_path: Path, model: Path) -> None:
    home = folders(tmp_path / "clips", range(3))
    (home / "s0" / "c00" / "0.jpg").write_bytes(b"no picture")
    for form in ("csv", "jsonl"):
        with pytest.raises(DataError):
            make(config(tmp_path / "a", model, clips=str(home), format=form))
    lines = [json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["key"] == "s0/c00" and set(lines[0]) == {"key", "error"}
    for line, row in zip(lines[1:], table(tmp_path / "a")[1:], strict=True):
        assert line["key"] == row["key"] and line["predicted"] == row["predicted"]
        assert line["probabilities"] == {name: float(row[name]) for name in CLASSES}


# --- interrupted


def test_a_stopped_part_goes_on_and_finished_pieces_stand(tmp_path: Path, model: Path, faces: Path) -> None:
    job, stop = config(tmp_path / "a", model, shards=str(faces)), Stop()
    pieces = tmp_path / "a" / "pieces"
    stop.request("SIGTERM")
    with pytest.raises(StoppedError, match=r"the predictions in .*: expected to go on, got SIGTERM\. All is saved"):
        make(job, stop=stop)
    with pytest.raises(CheckpointError, match="expected the pieces of every part, got none of worker_1"):
        predict_job.conclude(job)
    assert not predict_job.done(job, predict_job.parts(job)[0]) and not (tmp_path / "a" / "predictions.csv").exists()
    make(config(tmp_path / "whole", model, shards=str(faces)))
    names = sorted(path.name for path in (tmp_path / "whole" / "pieces").iterdir())
    for name in names[2:5]:
        shutil.copy(tmp_path / "whole" / "pieces" / name, pieces.mkdir(exist_ok=True) or pieces / name)
    before = {name: (pieces / name).stat().st_mtime_ns for name in names[2:5]}
    make(replace(job, workers=2))
    assert {name: (pieces / name).stat().st_mtime_ns for name in before} == before
    assert [path.read_bytes() for path in sorted(pieces.iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "whole" / "pieces").iterdir())
    ]


@pytest.mark.parametrize("damage", ["gone", "cut", "columns", "other keys", "binary"])
def test_a_damaged_piece_is_made_again_by_the_same_command(
    tmp_path: Path, model: Path, faces: Path, damage: str
) -> None:
    job = config(tmp_path / "a", model, shards=str(faces), workers=2)
    make(job)
    whole, path = (tmp_path / "a" / "predictions.csv").read_bytes(), sorted((tmp_path / "a/pieces").iterdir())[3]
    data = path.read_text()
    texts = {
        "cut": data[: data.index("\n") + 30],
        "columns": "key,predicted\n",
        "other keys": data.replace("c12", "c99"),
        "binary": '"',
    }
    path.unlink() if damage == "gone" else path.write_text(texts[damage])
    with pytest.raises(CheckpointError, match=r"[Tt]he same command makes"):
        make(job)
    assert not path.exists()
    make(job)
    assert path.read_text() == data and (tmp_path / "a" / "predictions.csv").read_bytes() == whole


# --- clips that cannot be read


def test_a_clip_that_cannot_be_read_costs_no_other_and_is_tried_again(tmp_path: Path, model: Path) -> None:
    whole, home = folders(tmp_path / "whole", range(9)), folders(tmp_path / "clips", range(9))
    make(config(tmp_path / "expected", model, clips=str(whole)))
    picture, odd = home / "s2" / "c05" / "1.jpg", home / "s1" / "c04"
    picture.write_bytes(picture.read_bytes()[:90])
    (odd / "1.jpg").rename(odd / "cover.jpg")
    job = config(tmp_path / "a", model, clips=str(home), workers=2)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            make(job)
        assert str(caught.value) == (
            f"{tmp_path / 'a'}: expected to read all 9 clips, got 2 that cannot be read: s1/c04, s2/c05. "
            "predictions.csv has the others, and the error of each of these; repair or remove these, then repeat the "
            "command."
        )
    rows, expected = {row["key"]: row for row in table(tmp_path / "a")}, table(tmp_path / "expected")
    assert rows["s2/c05"]["error"].startswith(f"{picture}: expected a whole JPEG") and not rows["s2/c05"]["anger"]
    assert "frame cover.jpg has no number in its name" in rows["s1/c04"]["error"] and not rows["s1/c04"]["predicted"]
    for row in expected:
        assert row["key"] in ("s1/c04", "s2/c05") or rows[row["key"]] == row
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["answered"], summary["failed"], summary["failed_clips"]) == (7, 2, ["s1/c04", "s2/c05"])
    shutil.copy(whole / "s2" / "c05" / "1.jpg", picture)
    (odd / "cover.jpg").rename(odd / "1.jpg")
    make(job)
    assert (tmp_path / "a/predictions.csv").read_bytes() == (tmp_path / "expected/predictions.csv").read_bytes()


def test_a_damaged_clip_of_shards(tmp_path: Path, model: Path) -> None:
    clips = [clip(f"c{n}", n) for n in range(5)]
    clips[3] = replace(clips[3], frames=[b"\xff\xd8 no picture"])
    shards = write_shards(tmp_path / "s", {"all": [clips[:2], clips[2:]]})
    job = config(tmp_path / "a", model, shards=str(shards), workers=2)
    with pytest.raises(DataError, match=r"expected to read all 5 clips, got 1 that cannot be read: c3\. predictions"):
        make(job)
    rows = table(tmp_path / "a")
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, False]
    assert rows[3]["error"].startswith(f"{shards}/all/00001.tar, clip c3, frame 0: expected a whole JPEG or PNG")


def test_a_shard_of_another_size_is_told_for_each_of_its_clips(tmp_path: Path, model: Path) -> None:
    shards = write_shards(tmp_path / "s", {"all": [[clip("a", 1)], [clip("b", 2), clip("c", 3)]]})
    with (shards / "all" / "00001.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"got 2 that cannot be read: b, c\."):
        make(config(tmp_path / "a", model, shards=str(shards)))
    assert "00001.tar: expected " in table(tmp_path / "a")[1]["error"]


def test_shards_that_are_replaced_meanwhile_stop_the_part(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "s", {"all": [[clip("a", 1)], [clip("b", 2)]]})
    job = config(tmp_path / "a", model, shards=str(shards))
    work = predict_job.work_of(job)
    write_shards(shards, {"all": [[clip("a", 3)], [clip("b", 4)]]})
    monkeypatch.setattr(predict_job, "work_of", lambda _: work)
    with pytest.raises(DataError, match=r"expected the manifest this run began with, sha256 .*The shards were built"):
        predict_job.run(job, predict_job.parts(job)[0], None, Stop())
    assert not list((tmp_path / "a").glob("pieces/*"))


def test_answers_that_are_not_finite_are_no_answers(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folders(tmp_path / "clips", range(2))
    inference = predict_pieces.inference

    def broken(*words: Any, **named: Any) -> Any:
        forward = inference(*words, **named)

        def some(batch: Any) -> Recognition:
            logits = forward(batch).logits
            return Recognition(logits=logits.masked_fill(batch.index[:, None] == 1, torch.nan))

        return some

    monkeypatch.setattr(predict_pieces, "inference", broken)
    with pytest.raises(DataError, match="got 1 that cannot be read: s1/c01"):
        make(config(tmp_path / "a", model, clips=str(home), batch=2))
    good, bad = table(tmp_path / "a")
    assert good["predicted"] and not good["error"] and not bad["predicted"]
    assert bad["error"] == "expected finite logits, got NaN or infinity. Predict it with precision=fp32."


# --- refused


def test_another_model_or_source_is_refused_until_the_plan_is_removed(tmp_path: Path, model: Path) -> None:
    mine, home = tmp_path / "model", folders(tmp_path / "clips", range(40))
    shutil.copytree(model, mine)
    job = config(tmp_path / "a", mine, clips=str(home), batch=2)
    make(job)
    before = {path.name for path in (tmp_path / "a" / "pieces").iterdir()}
    (home / "s1" / "c01" / "0.jpg").write_bytes(clip("", 77).frames[0])
    for change in (job, replace(job, precision="bf16"), replace(job, batch=4)):
        with pytest.raises(
            CheckpointError, match=r"as it was begun with, got .* or start anew with run=FOLDER\. Without"
        ):
            make(change)
    (tmp_path / "a" / "plan.json").unlink()
    make(job)
    after = {path.name for path in (tmp_path / "a" / "pieces").iterdir()}
    assert len(after - before) == 1 and before < after, "only the piece of the changed clip was made again"
    trained = predict_job.work_of(job).answering.config
    with process_group(World()):
        train(replace(trained, epochs=2), World())
    with pytest.raises(
        CheckpointError, match=r'expected model {"newest_checkpoint": "step_.*, as it was begun with, got'
    ):
        make(job)


def test_what_is_no_model_no_clip_or_no_place(tmp_path: Path, model: Path, faces: Path) -> None:
    shards = str(faces)
    with pytest.raises(UsageError) as caught:
        make(config(tmp_path / "a", tmp_path, shards=shards))
    assert str(caught.value) == (
        f"{tmp_path}: expected the run folder of one fold, with config.yaml, got none. Train first: dfer train CONFIG"
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(model / "config.yaml", bare)
    with pytest.raises(CheckpointError) as caught:
        make(config(tmp_path / "a", bare, shards=shards))
    assert str(caught.value) == f"{bare}: expected a run with a checkpoint, got none. Train first: dfer train CONFIG"
    with pytest.raises(UsageError) as problem:
        make(config(model, model, shards=shards))
    assert str(problem.value) == (
        f"{model}: expected a folder for predictions, got a run or a saved model. Choose another one with run=FOLDER."
    )
    with pytest.raises(DataError, match="expected partitions out of fold_1, fold_2, got test"):
        make(config(tmp_path / "a", model, shards=shards, partitions=("test",)))
    (tmp_path / "s").mkdir()
    empty = write_shards(tmp_path / "s", {"all": []})
    with pytest.raises(DataError) as nothing:
        make(config(tmp_path / "a", model, shards=str(empty)))
    assert str(nothing.value) == f"{empty}: expected shards with clips, got no clips. Correct shards or partitions."
    with pytest.raises(CheckpointError) as early:
        predict_job.conclude(config(tmp_path / "a", model, shards=shards))
    assert str(early.value) == (
        f"{tmp_path / 'a'}: expected a prediction that was begun, got none. Repeat the command, which starts it."
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "predict: expected shards or clips, got neither. Set shards=FOLDER_OR_URL, for example."),
        ({"shards": "s", "clips": "c"}, "predict: expected shards or clips, got both. Set shards="),
        (
            {"clips": "s3://b/c"},
            "clips: expected a folder or a file on a disk, got s3://b/c. Pack the clips into shards",
        ),
        ({"clips": "c", "partitions": ("a", "b")}, "partitions: expected none with clips, got a, b. Leave them out."),
        ({"shards": "s", "workers": 0}, "workers: expected 1 to 10,000 parts, got 0. Correct it."),
        ({"shards": "s", "batch": 0}, "batch: expected at least 1, got 0. Correct it."),
        ({"shards": "s", "loaders": -1}, "loaders: expected at least 0, got -1. Correct it."),
        ({"shards": "s", "cache_gib": 0.0}, "cache_gib: expected more than 0, got 0.0. Correct it."),
    ],
)
def test_a_wrong_configuration(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        PredictConfig(run="r", model="m", **changes)
    assert str(caught.value).startswith(said)


def test_the_configuration_of_the_package(tmp_path: Path) -> None:
    words = [f"run={tmp_path}", "model=m", "shards=s3://b/s", "partitions=[a]", "workers=8"]
    module, found = load_job(["jobs/predict"], words)
    assert name_of(module) == JOBS["predict"] and not module.grouped
    expected = PredictConfig(run=str(tmp_path), model="m", shards="s3://b/s", partitions=("a",), workers=8)
    assert found == expected
    where = module.absolute(found)
    assert Path(where.model).is_absolute() and where.shards == "s3://b/s"
    assert module.shared(found) == {"model": "m", "shards": "s3://b/s"}


# --- the command


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def call(*words: object) -> tuple[int, str, str]:
        code = main(["predict", *map(str, words)])
        return code, *capsys.readouterr()

    yield call


def test_several_workers_are_those_of_the_launcher(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of the process; its words stand for the same job."""
    started: list[list[str]] = []

    def execv(_: str, words: list[str]) -> None:
        started.append(words[1:])
        raise SystemExit(0)

    monkeypatch.setattr(predict_command.os, "execv", execv)
    for source in (("--shards", "s3://b/s", "--partitions", "a,b"), ("--clips", "my clips #1")):
        with pytest.raises(SystemExit):
            said("runs/x", *source, "--out", "o=1/a b", "--workers", 3)
    assert [words[:6] for words in started] == [["-m", "launch", "local", "jobs/predict", "--parallel", "3"]] * 2
    same: dict[str, Any] = {"run": "o=1/a b", "model": "runs/x", "workers": 3}
    assert [load_job(["jobs/predict"], words[6:])[1] for words in started] == [
        PredictConfig(shards="s3://b/s", partitions=("a", "b"), **same),
        PredictConfig(clips="my clips #1", **same),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "predict: expected clips, got none. Give folders of face frames, or --shards URL --out FOLDER."),
        (("--out", "o"), "predict: expected --shards URL or --clips PATH, got none. Add it."),
        (("--shards", "s"), "predict: expected --out FOLDER, got none. Add it."),
        (("clip", "--shards", "s"), "predict: expected folders or --shards, got both. Give one of the two."),
        (
            ("--shards", "s", "--out", "o", "--csv", "c"),
            "--csv: expected FOLDERs, got --shards. Leave --csv out; --out",
        ),
        (("--shards", "s", "--clips", "c", "--out", "o"), "predict: expected shards or clips, got both."),
    ],
)
def test_a_command_without_clips_or_a_place(said: Any, words: tuple[str, ...], message: str) -> None:
    code, out, err = said("runs/x", *words)
    assert code == 2 and not out and err.startswith(f"error: {message}")
