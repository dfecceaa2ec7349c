"""What a table may hold: means over like folds, missing folds named, unlike folds refused."""

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from dfer.emotions import BASIC7
from dfer.errors import CheckpointError
from dfer.evaluation.results import Protocol, save_result
from dfer.evaluation.scores import percent, scores
from dfer.jobs.config import RunConfig
from dfer.report.compare import compare
from dfer.report.crossval import average, deviation, summarise
from dfer.report.folds import fold_folders
from dfer.report.tables import facts, table_rows, text_table
from dfer.report.write import write_report
from dfer.run.changes import Change
from dfer.run.layout import RESULT
from dfer.storage import Folder
from tests import fake_runs


@pytest.fixture
def run(tmp_path):
    return fake_runs.write_crossval(tmp_path / "run", curves=False)


def change(run, fold, **changes):
    folder = run / f"fold_{fold}"
    save_result(replace(fake_runs.result(fold=fold), **changes), Folder(folder))


def test_mean_and_deviation_are_numpys_over_the_folds(run):
    report = summarise(Folder(run), RunConfig)
    table = np.array([[*fold.recall, fold.uar, fold.war] for fold in report.folds])
    assert [*report.mean.recall, report.mean.uar, report.mean.war] == pytest.approx(table.mean(axis=0))
    assert [*report.std.recall, report.std.uar, report.std.war] == pytest.approx(table.std(axis=0, ddof=1))
    assert report.pooled.num_clips == sum(fold.clips for fold in report.folds)
    assert report.coverage == "5 of 5 folds" and not report.missing


def test_dk_clips_published_folds_give_its_published_mean():
    """DK-CLIP, DFEW: the WAR column averages to 75.41; its sample deviation is 1.66."""
    wars = np.array([76.21, 73.22, 75.56, 74.48, 77.57])
    folds = []
    for fold, war in enumerate(wars, start=1):
        hits = round(war * 100)
        matrix = [[hits, 10_000 - hits, *[0] * 5], *([0] * 7 for _ in range(6))]
        folds.append(fake_runs.result(fold=fold, confusion=matrix))
    assert percent(average(folds).war) == "75.41"
    assert percent(deviation(folds).war) == "1.66"


def test_missing_folds_are_named_and_the_mean_says_how_many(tmp_path):
    report = summarise(Folder(fake_runs.write_crossval(tmp_path, done=(1, 3), curves=False)), RunConfig)
    assert report.missing == ("fold_2", "fold_4", "fold_5")
    assert report.coverage == "2 of 5 folds"
    assert "No result yet for fold 2, fold 4, fold 5: means cover 2 of 5 folds." in report.notes


def with_variants(run, *names):
    """Every fold's result with other answers that took the classes in another order."""
    for fold in range(1, 6):
        found = fake_runs.result(fold=fold)
        turned = scores([[*row[at:], *row[:at]] for at, row in enumerate(found.confusion)])
        save_result(replace(found, variants=dict.fromkeys(names, turned)), Folder(run / f"fold_{fold}"))


@pytest.mark.usefixtures("no_drawing")
def test_variants_stand_beside_the_answer_under_their_names(run):
    with_variants(run, "local", "global")
    report = summarise(Folder(run), RunConfig)
    wars = [fold.variants["local"].war for fold in report.folds]
    found = report.variants["local"]
    assert found.mean.war == pytest.approx(np.mean(wars)) and found.std.war == pytest.approx(np.std(wars, ddof=1))
    assert found.pooled.num_clips == report.pooled.num_clips and found.mean.war != report.mean.war
    paths = write_report(Folder(run), RunConfig)
    rows = [row.label for row in table_rows(report)]
    assert rows[6:] == ["std", "pooled", "local: mean", "local: std", "global: mean", "global: std", "published"]
    cell = f"{100 * found.mean.war:.2f}"
    plain = json.loads(Path(paths.json).read_text())
    assert plain["variants"]["local"]["mean"]["war"] == found.mean.war
    assert plain["results"][0]["variants"]["local"]["confusion"] == [
        list(r) for r in report.folds[0].variants["local"].confusion
    ]
    assert "| local: mean |" in Path(paths.markdown).read_text() and f"{cell} |" in Path(paths.markdown).read_text()
    assert '<tr class="variant"><th scope="row">local: mean' in Path(paths.html).read_text()


def test_a_single_split_has_one_row_a_variant_and_unlike_variants_are_refused(run, tmp_path):
    single = fake_runs.result(num_folds=1)
    save_result(replace(single, variants={"local": single.scores}), Folder(tmp_path / "one"))
    (tmp_path / "one" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config()))
    assert [row.label for row in table_rows(summarise(Folder(tmp_path / "one"), RunConfig))] == [
        "test split",
        "local",
        "published",
    ]
    with_variants(run, "local")
    change(run, 3)
    with pytest.raises(
        CheckpointError, match=r"one set of variants for all folds, got local \(fold_1.*; none \(fold_3"
    ):
        summarise(Folder(run), RunConfig)


def test_one_fold_has_no_deviation(tmp_path):
    assert summarise(Folder(fake_runs.write_crossval(tmp_path, done=(2,), curves=False)), RunConfig).std is None


def test_an_empty_class_is_noted_and_its_mean_runs_over_the_other_folds(run):
    save_result(fake_runs.without_class(fake_runs.result(fold=2), 5), Folder(run / "fold_2"))
    report = summarise(Folder(run), RunConfig)
    others = [fold.recall[5] for fold in report.folds if fold.fold != 2]
    assert report.mean.recall[5] == pytest.approx(sum(others) / 4)
    assert "Fold 2 has no test clips of disgust: UAR averages over the other classes." in report.notes


def test_a_run_without_results_says_what_to_do(tmp_path):
    (tmp_path / "fold_1").mkdir()
    with pytest.raises(
        CheckpointError, match=r"expected a results/test.json of a complete .* got none. Finish"
    ) as caught:
        summarise(Folder(tmp_path), RunConfig)
    assert caught.value.exit_code == 5


MIXTURES = [
    ({"selection": "best_on_test"}, "one selection rule for all folds, got last (fold_1, fold_2, fold_4, fold_5); "),
    ({"dataset": "MAFW"}, "one data set for all folds, got DFEW (fold_1"),
    ({"classes": (*BASIC7[:5], "fear", "disgust")}, "one class list for all folds"),
    ({"method": "CoOp"}, "one method for all folds"),
    ({"manifest_sha256": "cd" * 32}, "one shard manifest for all folds"),
    ({"protocol": Protocol(num_frames=8, size=224, normalisation="none", augment="none")}, "one test protocol for all"),
    ({"epochs": 0, "step": 0, "epoch": 0}, "one number of epochs for all folds, got 50 (fold_1, fold_2, fold_4"),
    ({"num_folds": 10}, "one number of folds for all folds, got 5 ("),
    ({"test_partitions": ("fold_2",), "train_partitions": ("fold_1",)}, "partition fold_2 in fold_2 and fold_3"),
]


@pytest.mark.parametrize(("changes", "text"), MIXTURES)
def test_unlike_folds_never_share_a_table(run, changes, text):
    change(run, 3, **changes)
    with pytest.raises(CheckpointError) as caught:
        summarise(Folder(run), RunConfig)
    assert text in str(caught.value)
    assert caught.value.exit_code == 5


def test_folds_of_unlike_epochs_never_share_a_table(run):
    change(run, 3, epochs=60, epoch=60)
    (run / "fold_3" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=3, epochs=60)))
    with pytest.raises(CheckpointError) as caught:
        summarise(Folder(run), RunConfig)
    assert "one number of epochs for all folds, got 50 (fold_1, fold_2, fold_4, fold_5); 60 (fold_3). " in str(
        caught.value
    )


def without(path, *keys):
    """A result as older versions wrote it."""
    plain = {key: value for key, value in json.loads(path.read_text()).items() if key not in keys}
    path.write_text(json.dumps(plain))


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("older", [True, False])
def test_a_half_trained_fold_does_not_enter_the_table(run, older):
    """Which `dfer evaluate` wrote: an older version's as the result itself, now as a file of its own."""
    (run / "fold_3" / RESULT).unlink()
    change(run, 3, step=195, epoch=1, complete=False)
    between = run / "fold_3" / "results" / "test-step_00000195.json"
    if older:
        between.rename(run / "fold_3" / RESULT)
        for fold in range(1, 6):
            without(run / f"fold_{fold}" / RESULT, "complete", "epochs")
    report = summarise(Folder(run), RunConfig)
    assert (report.missing, report.incomplete) == (("fold_3",), ("fold_3",)) and [f.fold for f in report.folds] == [
        1,
        2,
        4,
        5,
    ]
    assert {fold.epochs for fold in report.folds} == {50}
    where = run / "fold_3" / RESULT if older else between
    assert report.notes[0] == f"Training incomplete, left out: fold 3 at epoch 1 of 50 ({where})."
    assert "fold 3: training incomplete" in text_table(report)
    paths = write_report(Folder(run), RunConfig)
    assert "fold 3: training incomplete" in html.unescape(Path(paths.html).read_text())
    assert json.loads(Path(paths.json).read_text())["incomplete_parts"] == ["fold_3"]


def test_a_run_with_evaluations_of_an_incomplete_training_alone_gives_no_report(tmp_path):
    for step, epoch in ((195, 1), (390, 2)):
        unfinished = fake_runs.result(fold=1, step=step, epoch=epoch, complete=False)
        fake_runs.write_fold(tmp_path / "fold_1", unfinished, curves=False)
    with pytest.raises(CheckpointError, match=r"complete training .*, got fold 1 at epoch 2 of 50. Finish the run"):
        summarise(Folder(tmp_path), RunConfig)


def test_a_finished_fold_whose_epochs_were_raised_is_left_out_until_it_has_them(run):
    (run / "fold_2" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=2, epochs=60)))
    report = summarise(Folder(run), RunConfig)
    assert report.incomplete == ("fold_2",)
    assert "fold 2 finished with 50 epochs, and more are configured now" in report.notes[0]


def test_what_was_changed_on_the_way_is_noted(run):
    made = (Change(key="epochs", was=40, now=50, step=7800), Change(key="eval_every", was=None, now=5, step=100))
    change(run, 4, changed=made)
    data = {**fake_runs.config()["data"], "max_bad_share": 0.001}
    (run / "fold_4" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=4, eval_every=5, data=data)))
    notes = summarise(Folder(run), RunConfig).notes
    assert "Fold 4 went on with epochs from 40 to 50 at step 7800, eval_every from none to 5 at step 100." in notes
    others = "None (fold_1), None (fold_2), None (fold_3)"
    assert f"The folds differ in eval_every: {others}, 5 (fold_4), None (fold_5)." in notes
    assert f"The folds differ in data.max_bad_share: {others}, 0.001 (fold_4), None (fold_5)." in notes


@pytest.mark.usefixtures("no_drawing")
def test_a_metrics_file_over_its_bound_shortens_the_curves_alone(run, monkeypatch):
    lines = "".join(json.dumps({"kind": "train", "step": n, "loss": 1.0}) + "\n" for n in range(1, 100))
    (run / "fold_1" / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr("dfer.report.recorded.MAX_BYTES", 2000)
    report = summarise(Folder(run), RunConfig)
    assert 0 < len(report.curves["train/loss"]["fold_1"]) < 99
    assert any("The curves leave out the end of metrics.jsonl" in n and n.endswith("fold_1.") for n in report.notes)
    write_report(Folder(run), RunConfig)


def test_folds_of_different_configurations_never_share_a_table(run):
    plain = fake_runs.config(fold=4)
    plain["optim"]["groups"]["image"]["lr"] = 1e-6
    (run / "fold_4" / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(CheckpointError) as caught:
        summarise(Folder(run), RunConfig)
    key = "optim.groups.image.lr"
    text = f"one configuration for all folds, got {key} = 1e-05 (fold_1); {key} = 1e-06 (fold_4)"
    assert text in str(caught.value)


def test_a_key_that_only_one_configuration_has_is_a_difference(run):
    (run / "fold_5" / "config.yaml").write_text(yaml.safe_dump({**fake_runs.config(fold=5), "extra": 1}))
    with pytest.raises(CheckpointError, match=r"extra = None \(fold_1\); extra = 1 \(fold_5\)"):
        summarise(Folder(run), RunConfig)


def test_what_may_change_between_two_stretches_may_differ_between_folds(run):
    plain = fake_runs.config(fold=4)
    data = {**plain["data"], "shards": "/elsewhere/dfew", "workers": 0}
    changes = {"data": data, "micro_batch": 4, "engine": {"name": "ddp"}, "checkpoint": {"every_steps": 5}}
    for fold, folder in ((1, "w"), (2, "/b/w"), (3, "w"), (4, "/c"), (5, "w")):
        weights = {"model": {**plain["model"], "text": f"{folder}/texts.yaml"}}
        text = yaml.safe_dump({**fake_runs.config(fold=fold), **weights, **(changes if fold == 4 else {})})
        (run / f"fold_{fold}" / "config.yaml").write_text(text)
    assert summarise(Folder(run), RunConfig).coverage == "5 of 5 folds"


def test_published_numbers_that_not_all_folds_name_are_left_out(run):
    (run / "fold_4" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=4, published=None)))
    report = summarise(Folder(run), RunConfig)
    left_out = "Published numbers are left out: the configurations of the folds name different ones."
    assert report.published is None and left_out in report.notes
    assert "59.61" not in text_table(report)


def test_seeds_may_differ_and_are_named(run):
    change(run, 2, seed=7)
    (run / "fold_2" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=2, seed=7)))
    assert summarise(Folder(run), RunConfig).seeds == [1, 7]


def test_a_fold_in_the_wrong_folder_is_refused(run):
    save_result(fake_runs.result(fold=2), Folder(run / "fold_1"))
    with pytest.raises(CheckpointError, match=r"expected the result of fold 1, got fold 2. Rename the folder back"):
        summarise(Folder(run), RunConfig)


@pytest.mark.parametrize(("text", "got"), [(None, "no such file"), ("a: [", "not valid YAML"), ("- 1", "list")])
def test_a_result_without_its_configuration_is_refused(run, text, got):
    path = run / "fold_1" / "config.yaml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError, match=f"config.yaml: expected .*, got {got}"):
        summarise(Folder(run), RunConfig)


@pytest.mark.usefixtures("no_drawing")
def test_generated_faces_stand_under_their_own_name_and_beside_no_published_numbers(tmp_path):
    made = fake_runs.result(generated="seed 3, generator 1", excluded=2)
    report = summarise(Folder(fake_runs.write_fold(tmp_path / "run", made, curves=False)), RunConfig)
    assert report.published is None
    assert "2 clips of the split files are not in the shards; `dfer-shards show` names them." in report.notes
    left_out = "Published numbers are left out: they hold for DFEW itself, these are generated faces in DFEW's layout."
    assert left_out in report.notes
    screen = text_table(report)
    assert screen.startswith("DFER-CLIP on generated faces in DFEW's layout, ")
    assert "59.61" not in screen and "on DFEW" not in screen
    paths = write_report(Folder(tmp_path / "run"), RunConfig)
    for text in (Path(paths.markdown).read_text(), Path(paths.html).read_text()):
        plain = html.unescape(text)
        assert "DFER-CLIP on generated faces in DFEW's layout" in plain
        assert "seed 3, generator 1" in plain and left_out in plain and "2 clips of the split files" in plain
        assert "Zhao & Patras" not in plain.split("<pre>")[0]
    stored = json.loads(Path(paths.json).read_text())
    assert (stored["generated"], stored["excluded"], stored["published"]) == ("seed 3, generator 1", 2, None)


def test_generated_and_real_faces_never_share_a_table(run):
    change(run, 2, generated="seed 3, generator 1")
    with pytest.raises(CheckpointError, match=r"one data set for all folds, got .*generated faces in DFEW's layout"):
        summarise(Folder(run), RunConfig)


def test_one_clip_left_out_is_told_and_none_is_not(tmp_path):
    fake_runs.write_fold(tmp_path, fake_runs.result(excluded=1), curves=False)
    assert any(
        note.startswith("1 clip of the split files is not in the shards")
        for note in summarise(Folder(tmp_path), RunConfig).notes
    )
    fake_runs.write_fold(tmp_path, fake_runs.result(), curves=False)
    assert not any("split files" in note for note in summarise(Folder(tmp_path), RunConfig).notes)


def test_published_numbers_of_the_config_are_checked(run):
    for fold in range(1, 6):
        plain = fake_runs.config(fold=fold, published={"uar": 59.61, "war": 71.25})
        (run / f"fold_{fold}" / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(CheckpointError, match=r"fold_1/config.yaml: published.source: required, but missing"):
        summarise(Folder(run), RunConfig)


def test_folds_of_a_coupled_method_on_other_layouts_are_named(run):
    for fold in range(1, 6):
        change(run, fold, processes=2 if fold == 4 else 1, micro_batch=64 if fold == 4 else 128)
    report = summarise(Folder(run), RunConfig)
    (note,) = [note for note in report.notes if note.startswith("The folds differ in processes or micro-batch")]
    assert "1 process with micro-batches of 128 (fold_3), 2 processes with micro-batches of 64 (fold_4)" in note
    assert ("training layout", "1 process with micro-batches of 128") in facts(report)
    (table,) = compare([Folder(run)], RunConfig).tables
    assert table.entries[0].first.layout == "1 process with micro-batches of 128"


THEIRS = {"uar": 59.61, "war": 71.25, "source": "a row", "dataset": "DFEW"}
NOTHING_TRAINED = {**THEIRS, "selection": "none"}
WHOLE_BATCH = "their row took the batch of 48 whole on 1 process, this run on "


@pytest.mark.parametrize(
    ("published", "start", "changes", "why"),
    [
        (THEIRS, None, {}, ""),
        (THEIRS, None, {"dataset": "ferv39k"}, "they hold for DFEW, the test clips are of ferv39k"),
        (THEIRS, "runs/mafw/x", {}, "their row has no model.start, this run began from runs/mafw/x"),
        (THEIRS, None, {"epochs": 0}, "they are of a training, these weights were not trained"),
        (THEIRS, "imported/dfer_clip", {"epochs": 0}, ""),
        (NOTHING_TRAINED, None, {"epochs": 0}, ""),
        (NOTHING_TRAINED, "runs/x", {"epochs": 0}, "their row has no model.start, this run began from runs/x"),
        ({**THEIRS, "dataset": ""}, "runs/mafw/x", {"dataset": "ferv39k"}, ""),
        (THEIRS, None, {"processes": 1, "micro_batch": 48}, ""),
        (THEIRS, None, {"processes": 2, "micro_batch": 24}, WHOLE_BATCH + "2 processes with micro-batches of 24"),
        (THEIRS, None, {"processes": 1, "micro_batch": 24}, WHOLE_BATCH + "1 process with micro-batches of 24"),
        ({**THEIRS, "dataset": ""}, None, {"processes": 2, "micro_batch": 24}, ""),
    ],
)
def test_a_row_s_numbers_stand_beside_what_they_describe_alone(tmp_path, published, start, changes, why):
    """Numbers of the user's own name no data set and stay."""
    plain = fake_runs.config(published=published)
    plain["model"] = {**plain["model"], "start": start}
    fake_runs.write_fold(tmp_path / "run", fake_runs.result(num_folds=1, **changes), plain=plain, curves=False)
    report = summarise(Folder(tmp_path / "run"), RunConfig)
    assert [note for note in report.notes if "left out" in note] == (
        [f"Published numbers are left out: {why}."] if why else []
    )
    assert (report.published is None) == bool(why)


@pytest.mark.parametrize(("epochs", "noted"), [(0, False), (50, True)])
def test_a_method_that_trains_nothing_has_no_selection_to_compare(tmp_path, epochs, noted):
    plain = fake_runs.config(published={**NOTHING_TRAINED, "dataset": ""})
    found = fake_runs.result(num_folds=1, epochs=epochs)
    fake_runs.write_fold(tmp_path / "run", found, plain=plain, curves=False)
    notes = summarise(Folder(tmp_path / "run"), RunConfig).notes
    assert any(note.startswith("Not like for like") for note in notes) is noted
    (table,) = compare([Folder(tmp_path / "run")], RunConfig).tables
    assert any("published numbers stand for selection none" in note for note in table.notes) is noted


def test_another_selection_rule_of_the_paper_is_noted(run):
    note = "Not like for like: the published numbers stand for selection best_on_test, ours for last."
    assert note in summarise(Folder(run), RunConfig).notes


def test_steps_trained_twice_count_with_their_last_record_and_torn_lines_are_noted(run):
    records = [
        {"kind": "train", "step": 1, "loss": 3.0},
        {"kind": "train", "step": 2, "loss": 2.5},
        {"kind": "train", "step": 1, "loss": 2.9, "lr": {"image": 1e-5}},
        {"kind": "eval", "step": 1, "loss": 7.0},
    ]
    lines = [json.dumps(record) for record in records]
    odd = ['{"step": 3, "loss": NaN, "note": "text", "done": true}', '["step"]', '{"loss": 1}', '{"step": 4, "lo']
    (run / "fold_1" / "metrics.jsonl").write_text("\n".join([*lines, *odd]))
    report = summarise(Folder(run), RunConfig)
    assert report.curves == {
        "train/loss": {"fold_1": [(1, 2.9), (2, 2.5)]},
        "train/lr/image": {"fold_1": [(1, 1e-5)]},
        "eval/loss": {"fold_1": [(1, 7.0)]},
    }
    assert any("could not be read" in note and "fold_1: 1" in note for note in report.notes)


def test_fold_folders_are_ordered_by_number_and_nothing_else_counts(tmp_path):
    for name in ("fold_10", "fold_2", "fold_x", "fold_2_old", "report"):
        (tmp_path / name).mkdir()
    (tmp_path / "fold_3").write_text("a file")
    assert [*fold_folders(Folder(tmp_path))] == ["fold_2", "fold_10"]


def test_environments_that_are_equal_are_shown_once(run):
    (run / "fold_5" / "environment.json").write_text("not json")
    found = summarise(Folder(run), RunConfig).environments
    assert list(found) == ["fold_1, fold_2, fold_3, fold_4", "fold_5"]
    assert found["fold_5"] == "not json"


def test_a_single_run_is_its_own_table(tmp_path):
    report = summarise(Folder(fake_runs.write_fold(tmp_path, fake_runs.result(num_folds=1), curves=False)), RunConfig)
    assert report.coverage == "fixed split"
    assert (tmp_path / RESULT).is_file() and len(report.folds) == 1
