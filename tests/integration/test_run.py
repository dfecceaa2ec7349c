"""Whole runs through the command line: generated faces -> shards -> train, crossval, evaluate, predict, report."""

import csv
import json
import re
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from dfer import config_files
from dfer.distributed import World
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import open_fold
from tests.integration.commands import (
    SGD,
    Capture,
    copied,
    finish,
    here,
    killed,
    largest_difference,
    last_weights,
    make_shards,
    records,
    refused,
    result,
    start,
)
from tests.integration.ranks import finish_ranks, start_ranks

pytestmark = pytest.mark.integration

FOLDS = [f"fold_{k}" for k in range(1, 6)]
STEPS = 9
# As DFEW's distributor numbers them in the split files.
DFEW = {1: "happiness", 2: "sadness", 3: "neutral", 4: "anger", 5: "surprise", 6: "disgust", 7: "fear"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predictions(run: Path) -> list[dict[str, str]]:
    return table(run / "results" / "test_predictions.csv")


def stamps(run: Path) -> dict[Path, int]:
    """When results, checkpoints, metrics and environments were written."""
    kept = [p for p in run.glob("fold_*/**/*") if p.is_file() and p.name != "config.yaml"]
    return {path: path.stat().st_mtime_ns for path in kept}


def saved(run: Path, step: int) -> bool:
    return any(run.glob(f"checkpoints/step_{step:08d}-*/manifest.json"))


# One run folder


def test_a_killed_run_that_is_evaluated_goes_on_to_the_same_end(capsys: Capture, tiny: Path, tmp_path: Path) -> None:
    """A real process, killed after its first epoch, and one that evaluates it; then the end of an undisturbed run."""
    words = (tiny, *SGD, "epochs=6")
    run, straight = tmp_path / "run", tmp_path / "straight"
    killed("train", *words, f"run={run}", when=lambda: any(run.glob("checkpoints/*/manifest.json")))
    between = finish("evaluate", run)
    (evaluated,) = run.glob("results/test-step_*.json")
    assert re.search(rf"; the training is not complete: epoch \d+ of 6, in results/{evaluated.name}\n", between.stdout)
    assert {path.name for path in run.glob("results/*")} == {evaluated.name, f"{evaluated.stem}_predictions.csv"}
    refused(here(capsys, "report", run), 5, "results/test.json of a complete training", "got fold 1 at epoch")
    finish("train", *words, f"run={run}")
    finish("train", *words, f"run={straight}")
    assert result(run)["complete"] is True and result(run) == result(straight)
    assert here(capsys, "report", run).returncode == 0


def test_a_run_folder_holds_what_the_documents_say(crossval: tuple[Path, str]) -> None:
    for fold in FOLDS:
        run = crossval[0] / fold
        assert {path.name for path in run.iterdir()} == {
            "config.yaml",
            "environment.json",
            "metrics.jsonl",
            "checkpoints",
            "lease",
            "results",
            "tensorboard",
        }
        assert [path.name[:16] for path in run.glob("checkpoints/*")] == [f"step_{STEPS:08d}-g1"]
        assert {path.name for path in run.glob("results/*")} == {"test.json", "test_predictions.csv"}
        resolved = config_files.load([run / "config.yaml"], RunConfig)
        assert (resolved.run, resolved.fold, resolved.epochs) == (str(run), FOLDS.index(fold) + 1, 3)
        assert json.loads((run / "environment.json").read_text())["command"][1] == "crossval"
    assert sorted(path.name for path in (crossval[0] / "report").iterdir()) == [
        "index.html",
        "report.json",
        "report.md",
    ]


def test_generated_faces_are_called_so_from_shards_to_report(crossval: tuple[Path, str]) -> None:
    assert {result(crossval[0] / fold)["generated"] for fold in FOLDS} == {"seed 1, generator 1"}
    assert {result(crossval[0] / fold)["excluded"] for fold in FOLDS} == {0}
    pages = [crossval[1], *((crossval[0] / "report" / name).read_text() for name in ("report.md", "report.json"))]
    assert all("generated faces in dfew's layout" in page or '"generated": "seed 1' in page for page in pages)
    assert not any("dfer_clip on dfew" in page for page in pages)


def test_every_step_and_evaluation_is_recorded_once(crossval: tuple[Path, str]) -> None:
    for fold in FOLDS:
        steps = records(crossval[0] / fold, "train")
        assert [(r["step"], r["epoch"]) for r in steps] == [(n + 1, n // 3) for n in range(STEPS)]
        assert [(r["step"], r["epoch"]) for r in records(crossval[0] / fold, "eval")] == [(3, 1), (6, 2), (9, 3)]


def test_each_fold_is_tested_on_its_own_split_file_and_nothing_else(dfew: Path, crossval: tuple[Path, str]) -> None:
    for k, fold in enumerate(FOLDS, start=1):
        rows = table(dfew / "raw" / "EmoLabel_DataSplit" / "test(single-labeled)" / f"set_{k}.csv")
        expected = {f"{int(row['video_name']):05d}": DFEW[int(row["label"])] for row in rows}
        assert {row["key"]: row["label"] for row in predictions(crossval[0] / fold)} == expected
        assert result(crossval[0] / fold)["clips"] == len(expected) == 7


def test_the_scores_are_those_of_the_predictions(crossval: tuple[Path, str]) -> None:
    for fold in FOLDS:
        rows, said = predictions(crossval[0] / fold), result(crossval[0] / fold)
        pairs = Counter((row["label"], row["predicted"]) for row in rows)
        assert said["confusion"] == [[pairs[a, b] for b in said["classes"]] for a in said["classes"]]
        assert said["war"] == pytest.approx(sum(row["label"] == row["predicted"] for row in rows) / len(rows))
        recalls = [statistics.fmean(r["predicted"] == c for r in rows if r["label"] == c) for c in said["classes"]]
        assert said["uar"] == pytest.approx(statistics.fmean(recalls))
        for row in rows:
            shares = {name: float(row[name]) for name in said["classes"]}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            assert max(shares, key=shares.__getitem__) == row["predicted"]


def test_the_report_shows_the_mean_of_the_folds(crossval: tuple[Path, str]) -> None:
    run, printed = crossval
    war, uar = (100 * statistics.fmean(result(run / fold)[name] for fold in FOLDS) for name in ("war", "uar"))
    for text in (printed, (run / "report" / "report.md").read_text(), (run / "report" / "index.html").read_text()):
        assert f"{war:.2f}" in text and f"{uar:.2f}" in text and "5 of 5 folds" in text
    assert printed.rstrip().endswith(f"Report: {run}/report/index.html")
    assert [line for line in printed.splitlines() if line.startswith("==")] == [
        f"== fold_{k} ({k} of 5)" for k in range(1, 6)
    ]


# Continuing


def test_a_second_call_does_nothing_new(crossval: tuple[Path, str], tiny: Path) -> None:
    run, printed = crossval
    before, began = stamps(run), time.monotonic()
    done = finish("crossval", tiny, f"run={run}")
    assert time.monotonic() - began < 60
    assert done.stdout == printed and "step" not in done.stderr
    assert stamps(run) == before


def test_a_killed_cross_validation_ends_with_the_same_results(
    crossval: tuple[Path, str], tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("crossval", tiny, f"run={run}")
    killed(*arguments, when=lambda: saved(run / "fold_2", 2))
    assert (run / "fold_1" / "results").exists() and not (run / "fold_2" / "results").exists()
    killed(*arguments, when=lambda: saved(run / "fold_3", 4))
    assert (run / "fold_2" / "results").exists() and not (run / "fold_3" / "results").exists()
    finish(*arguments)
    for fold in FOLDS:
        ours, theirs = run / fold, crossval[0] / fold
        assert result(ours) == result(theirs)
        assert predictions(ours) == predictions(theirs)
        assert largest_difference(ours, theirs) == 0.0
        losses = [[(r["step"], r["loss"]) for r in records(which, "train")] for which in (ours, theirs)]
        assert losses[0] == losses[1] and len(losses[0]) == STEPS
        assert not list(ours.glob("**/*.tmp"))


def test_another_configuration_does_not_continue_the_folder(
    capsys: Capture, crossval: tuple[Path, str], tiny: Path
) -> None:
    run = crossval[0] / "fold_1"
    done = here(capsys, "train", tiny, f"run={run}", "seed=2", "fold=1")
    refused(done, 5, str(run), "1 changed keys (seed was 1, now 2)", "run=FOLDER")


# Several processes


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    finish("train", tiny, f"run={run}", *SGD, "eval_batch=8")
    return run


@pytest.mark.parametrize("engine", [("engine.name=ddp",), ("engine.zero=2",)], ids=" ".join)
def test_two_processes_train_as_one(tiny: Path, tmp_path: Path, alone: Path, engine: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    words = ("train", tiny, f"run={run}", *SGD, *engine, "checkpoint.keep_last=99")
    by_torchrun = engine == ("engine.zero=2",)
    done = [finish(*words, ranks=2)] if by_torchrun else finish_ranks(("-m", "dfer", *words), ranks=2)
    assert "".join(told.stdout for told in done).count("WAR") == 1
    ours, theirs = result(run), result(alone)
    assert ours["clips"] == theirs["clips"] == sum(map(sum, ours["confusion"])) == 7
    assert ours["count"] == theirs["count"]
    assert [row["key"] for row in predictions(run)] == [row["key"] for row in predictions(alone)]
    losses = [[r["loss"] for r in records(which, "train")] for which in (run, alone)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert largest_difference(run, alone) < 1e-5
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    if by_torchrun:
        _continue_alone(tiny, run, alone)


def _continue_alone(tiny: Path, run: Path, alone: Path) -> None:
    """Set the run back to the middle of an epoch, and go on in one process with the other engine."""
    shutil.rmtree(run / "results")
    for path in run.glob("checkpoints/step_*"):
        if int(path.name[5:13]) > 4:
            shutil.rmtree(path)
    done = finish("train", tiny, f"run={run}", *SGD, "engine.name=ddp")
    assert [line.split("/")[0] for line in done.stderr.splitlines() if "loss" in line] == [
        f"step {n}" for n in range(5, STEPS + 1)
    ]
    assert len(records(run, "train")) == result(run)["step"] == STEPS
    assert largest_difference(run, alone) < 1e-5


# Selection


@pytest.mark.parametrize("select", ["best_on_val", "best_on_test"])
def test_the_selection_is_named_and_kept(capsys: Capture, tiny: Path, tmp_path: Path, select: str) -> None:
    run = tmp_path / "run"
    done = finish("train", tiny, f"run={run}", f"select={select}", "checkpoint.keep_last=1")
    said, evaluations = result(run), records(run, "eval")
    assert said["selection"] == select and f"({select})" in done.stdout
    best = max(evaluations, key=lambda record: (record["war"], -record["step"]))
    assert said["step"] == best["step"] and said["checkpoint"] == f"step_{best['step']:08d}"
    if select == "best_on_test":
        assert (said["war"], said["uar"]) == (pytest.approx(best["war"]), pytest.approx(best["uar"]))
        assert said["validation"] == ""
    else:
        assert said["validation"] in ("16 of 28 training clips held out", "12 of 28 training clips held out")
    again = here(capsys, "evaluate", run)
    assert again.stdout == done.stdout and result(run) == said


def test_validation_clips_are_taken_out_of_training(tiny: Path) -> None:
    whole = open_fold(config_files.load([tiny], RunConfig))
    clips = open_fold(config_files.load([tiny], RunConfig, ["select=best_on_val"]))
    assert clips.select is not None
    train, val, test = set(clips.train.keys), set(clips.select.keys), set(clips.test.keys)
    assert not (train & val or train & test or val & test) and val
    assert train | val == set(whole.train.keys) and len(whole.train) == 28
    assert test == set(whole.test.keys)


# Using a run


def test_evaluating_a_run_again_gives_the_very_same_numbers(crossval: tuple[Path, str], tmp_path: Path) -> None:
    run = copied(crossval[0] / "fold_2", tmp_path / "moved")
    shutil.rmtree(run / "results")
    done = finish("evaluate", run)
    assert result(run) == result(crossval[0] / "fold_2")
    assert predictions(run) == predictions(crossval[0] / "fold_2")
    scores = f"WAR {100 * result(run)['war']:.2f}, UAR {100 * result(run)['uar']:.2f}"
    assert done.stdout == f"{run}: {scores} on generated faces in dfew's layout (last)\n"


def test_weights_as_they_are(capsys: Capture, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish("evaluate", tiny, f"run={run}")
    assert (result(run)["step"], result(run)["checkpoint"], result(run)["clips"]) == (0, "random weights", 7)
    refused(here(capsys, "train", tiny, f"run={run}"), 2, "got the evaluation of a model that was not trained here")


def test_prediction_agrees_with_the_evaluation(dfew: Path, crossval: tuple[Path, str], tmp_path: Path) -> None:
    run = crossval[0] / "fold_3"
    expected = {row["key"]: row for row in predictions(run)}
    folders = [dfew / "raw" / "Clip" / "clip_224x224" / key for key in expected]
    done = finish("predict", run, *folders, "--csv", tmp_path / "answers.csv")
    rows = table(tmp_path / "answers.csv")
    assert [row["clip"] for row in rows] == [str(folder) for folder in folders]
    for row, told in zip(rows, expected.values(), strict=True):
        for name in DFEW.values():
            assert float(row[name]) == pytest.approx(float(told[name]), abs=1e-4)
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"{row['clip']}  {row['predicted']} {float(row[row['predicted']]):.2f}  (then ")


def test_a_report_of_some_folds_says_which_are_missing(
    capsys: Capture, crossval: tuple[Path, str], tmp_path: Path
) -> None:
    for fold in ("fold_1", "fold_4"):
        copied(crossval[0] / fold, tmp_path / "run" / fold)
    done = here(capsys, "report", tmp_path / "run")
    assert "No result yet for fold 2, fold 3, fold 5: means cover 2 of 5 folds." in done.stdout
    assert (tmp_path / "run" / "report" / "index.html").exists()
    refused(
        here(capsys, "report", tmp_path),
        5,
        "expected a results/test.json of a complete training in the run or in fold_*/, got none",
    )


def test_a_dry_run_writes_nothing(capsys: Capture, tiny: Path, tmp_path: Path) -> None:
    done = here(capsys, "crossval", tiny, f"run={tmp_path / 'run'}", "--dry-run", "--only", "fold_2,fold_5")
    assert not (tmp_path / "run").exists()
    assert "fold 2 of 5: trains on fold_1, fold_3, fold_4, fold_5" in done.stdout
    assert "train: 28 clips (happiness 4, sadness 4" in done.stdout
    assert "steps: 3 an epoch, 9 in all, 1 micro-batches each" in done.stdout
    assert yaml.safe_load(done.stdout[: done.stdout.index("\n== fold_2")])["epochs"] == 3


# The other data sets


@pytest.mark.parametrize(
    ("dataset", "clips", "classes", "tested"), [("ferv39k", 28, "basic7", None), ("mafw", 55, "mafw11", 11)]
)
def test_other_data_sets_train(
    capsys: Capture, tiny: Path, tmp_path: Path, dataset: str, clips: int, classes: str, tested: int | None
) -> None:
    made, run = make_shards(tmp_path / dataset, dataset, clips=clips), tmp_path / "run"
    finish("train", tiny, f"run={run}", f"data.shards={made / 'shards'}", f"data.classes={classes}", "epochs=1")
    said = result(run)
    assert said["dataset"] == dataset and len(said["classes"]) == {"basic7": 7, "mafw11": 11}[classes]
    assert (said["num_folds"], said["test_partitions"]) == ((1, ["test"]) if tested is None else (5, ["fold_1"]))
    counted = sum(map(sum, said["confusion"]))
    assert counted == (tested or len(predictions(run))) == said["clips"] > 0
    assert len(last_weights(run)) > 10
    done = here(capsys, "report", run)
    assert ("fixed split" if tested is None else "1 of 5 folds") in done.stdout


# A broken loss


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(dfew: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rates = "optim.groups={image: {lr: 1.0e+30}, temporal: {lr: 1.0e+30}, prompts: {lr: 1.0e+30}}"
    arguments = (
        "train",
        tiny,
        f"run={run}",
        "optim.name=sgd",
        rates,
        "engine.clip_norm=null",
        "schedule.name=constant",
    )
    line = refused(start(*arguments), 4, "expected a finite loss, got cross_entropy=", "Nothing was updated.")
    named = line.partition("with the clips ")[2].partition(".")[0].split(", ")
    train = open_fold(config_files.load([tiny], RunConfig)).train.keys
    assert len(named) == 8 and set(named) <= set(train)
    words = ("-m", "dfer", *arguments[:2], f"run={tmp_path / 'two'}", *arguments[3:])
    ranks = start_ranks(words, ranks=2)
    told = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [4, 4], told
    assert all("expected a finite loss" in text.splitlines()[-1] and "Traceback" not in text for text in told)
    assert not (run / "results").exists() and World().is_first
