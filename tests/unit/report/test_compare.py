"""A comparison of runs: rows, intervals, paired tests, what is not alike, pending and published rows, the matrix."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.emotions import BASIC7
from dfer.errors import CheckpointError, UsageError
from dfer.evaluation.results import FoldResult, LastResult, Published, TrainedOn, save_result
from dfer.evaluation.scores import RankMean, scores
from dfer.jobs.config import RunConfig, load_run
from dfer.report import compare_plots
from dfer.report.compare import Comparison, Pending, compare, distinct
from dfer.report.compare_page import compare_page
from dfer.report.compare_tables import lines, markdown, text
from dfer.report.tables import table_rows
from dfer.report.write import summarise, text_table, write_report
from dfer.storage import Folder
from dfer.store.format import Overlap
from tests import fake_runs

Matrix = Sequence[Sequence[int]]
OTHERS = "results/other-FERV39k_cdcdcdcd-fold_1-protocol_published.json"
SHUFFLED = "results/other-shuffled.json"
FOLDS = (1, 2)


def worse(matrix: Matrix, share: float) -> list[list[int]]:
    """A share of the right answers moved to the next class."""
    rows = [list(row) for row in matrix]
    for k, row in enumerate(rows):
        lost = int(row[k] * share)
        row[k] -= lost
        row[(k + 1) % len(row)] += lost
    return rows


def base(fold: int) -> Matrix:
    return fake_runs.confusion(BASIC7, clips=400, seed=fold)


def fold_of(run: Path, found: FoldResult, *, seed: int = 1, predicted: bool = True, **changes: Any) -> Path:
    """One fold with its predictions, in the folder of its number, or of seed and number."""
    plain = fake_runs.config(fold=found.fold, select=found.selection, seed=found.seed, **changes)
    home = run / f"fold_{found.fold}" if found.seed == 1 else run / f"seed_{found.seed}" / f"fold_{found.fold}"
    fake_runs.write_fold(home, found, plain=plain, curves=False)
    if predicted:
        fake_runs.write_predictions(home, found, seed=seed)
    return home


def run_of(run: Path, share: float, *, seed: int = 1, predicted: bool = True, **changes: Any) -> Path:
    """A run of two folds; a share of its answers is wrong in addition to those of `base`."""
    published = changes.pop("published", None)
    for fold in FOLDS:
        found = fake_runs.result(fold=fold, num_folds=2, confusion=worse(base(fold), share), **changes)
        fold_of(run, found, seed=seed + fold, predicted=predicted, published=published, epochs=found.epochs)
    return run


def compared(*runs: Path, pending: Sequence[Pending] = ()) -> Comparison:
    return compare([Folder(run) for run in runs], RunConfig, pending=pending)


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def right(run: Path, fold: int) -> dict[str, bool]:
    found = rows(run / f"fold_{fold}/results/test_predictions.csv")
    return {key: row["label"] == row["predicted"] for key, row in found.items()}


# --- rows


def test_a_row_holds_the_means_of_the_report_with_an_interval_around(tmp_path: Path) -> None:
    found = compared(run_of(tmp_path / "a", 0))
    (entry,) = found.tables[0].entries
    expected = [scores(base(fold)) for fold in FOLDS]
    assert entry.mean.uar == pytest.approx(statistics.fmean(each.uar for each in expected))
    assert entry.intervals is not None and entry.intervals.uar.value == pytest.approx(entry.mean.uar)
    assert entry.intervals.uar.low < entry.mean.uar < entry.intervals.uar.high
    assert entry.intervals.war.value == pytest.approx(statistics.fmean(each.war for each in expected))
    line = next(line for line in text(found).splitlines() if line.startswith("a "))
    assert f"{100 * entry.mean.uar:.2f} [{100 * entry.intervals.uar.low:.2f}, " in line
    assert [f"{100 * share:.2f}" in line for share in entry.mean.recall if share is not None] == [True] * 7


def test_the_calibration_is_that_of_the_predictions_of_all_folds(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", 0)
    (entry,) = compared(run).tables[0].entries
    every = [row for fold in FOLDS for row in rows(run / f"fold_{fold}/results/test_predictions.csv").values()]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in every:
        sure = float(row[row["predicted"]])
        bins.setdefault(int(np.ceil(sure * 15)), []).append((sure, row["label"] == row["predicted"]))
    gaps = [abs(sum(sure for sure, _ in each) - sum(hit for _, hit in each)) for each in bins.values()]
    assert entry.calibration is not None and entry.calibration.ece == pytest.approx(sum(gaps) / len(every))


def test_without_predictions_there_is_no_test_and_the_reason_is_told(tmp_path: Path) -> None:
    found = compared(run_of(tmp_path / "a", 0), run_of(tmp_path / "b", 0.1, predicted=False))
    (table,) = found.tables
    assert table.pairs == () and table.entries[1].intervals is not None and table.entries[1].calibration is None
    assert table.notes == ("No test between a and b: no predictions of the same clips in b.",)
    assert table.notes[0] in text(found) and table.notes[0] in markdown(found)


def test_published_numbers_are_a_row_of_their_own(tmp_path: Path) -> None:
    theirs = {"uar": 59.61, "war": 71.25, "source": "A paper, table 1", "selection": "best_on_test"}
    found = compared(run_of(tmp_path / "a", 0, published=theirs))
    lines = [line.split() for line in text(found).splitlines()]
    (line,) = [line for line in lines if line[:2] == ["a,", "published"] and "59.61" in line]
    assert line[2:] == ["–"] * 7 + ["59.61", "71.25", "–", "–", "best_on_test"]
    assert "a, published: A paper, table 1" in text(found)
    assert found.tables[0].notes == ("a: the published numbers stand for selection best_on_test, ours for last.",)


DK_CLIP_DFEW = ("94.61", "76.19", "75.06", "78.65", "63.61", "23.60", "42.93")


@pytest.mark.usefixtures("no_drawing")
def test_published_recalls_stand_under_their_classes_and_never_in_ours(tmp_path: Path) -> None:
    theirs = {"uar": 59.61, "war": 71.25, "source": "A paper", "recall": {"fear": 11.25, "happiness": 90.5}}
    run = run_of(tmp_path / "a", 0, predicted=False, published=theirs)
    found = compared(run, pending=[Pending(label="b", dataset="dfew", published=from_plain(Published, theirs))])
    own, published, _, waiting = lines(found.tables[0])
    expected = ("90.50", "–", "–", "–", "–", "–", "11.25", "59.61", "71.25")  # in the order of the table's classes
    assert published.cells[:9] == waiting.cells[:9] == expected
    assert own.cells == lines(compared(run_of(tmp_path / "bare", 0, predicted=False)).tables[0])[0].cells
    for page in (text(found), markdown(found), compare_page(found)):
        assert page.count("90.50") == 2 and page.count("11.25") == 2
    pictures = [each.caption for column in compare_plots.pictures(found.tables[0]) for each in column]
    assert pictures[-1].endswith("mean over folds and seeds. Hollow diamonds: published.")
    (row,) = [row for row in table_rows(summarise(Folder(run), RunConfig)) if row.kind == "theirs"]
    assert row.cells == expected


def test_a_published_recall_is_in_percent() -> None:
    with pytest.raises(ConfigProblem, match=r"^recall.fear: expected percent, 0 to 100, got 101.0. Correct it.$"):
        Published(war=71.25, source="A paper", recall={"fear": 101.0})


@pytest.mark.slow("resamples the clips of a run and draws its page")
@pytest.mark.usefixtures("no_drawing")
def test_a_rank_mean_stands_beside_the_pooled_scores_and_its_note_beside_the_published_ones(tmp_path: Path) -> None:
    theirs = load_run(["methods/dk_clip", "sets/dfew"]).published
    assert theirs is not None
    plain, run = {"published": to_plain(theirs)}, tmp_path / "a"
    for fold, uar in zip(FOLDS, (0.4, 0.5), strict=True):
        found = RankMean(ranks=2, uar=uar, recall=(uar,) * 7)
        facts = {"dataset": "dfew", "confusion": base(fold), "rank_mean": found}
        fold_of(run, fake_runs.result(fold=fold, num_folds=2, **facts), **plain)
    result = compared(run)
    own, ranks, published = lines(result.tables[0])
    assert (ranks.label, ranks.cells[:8]) == ("a, rank mean of 2", ("45.00",) * 8)
    assert ranks.cells[8] == own.cells[8].split(" [")[0] and "averaged over ranks" in ranks.detail
    assert published.cells[:9] == (*DK_CLIP_DFEW, "64.95", "75.41")
    for page in (text(result), markdown(result), compare_page(result)):
        assert "UAR and recalls are means over two ranks; best test epoch, the last one has 63.85 / 74.61" in page
    assert "UAR and recalls are means over two ranks" in text_table(summarise(Folder(run), RunConfig))


@pytest.mark.usefixtures("no_drawing")
def test_pending_rows_stand_as_pending_in_the_table_of_their_set(tmp_path: Path) -> None:
    theirs = Published(uar=58.87, war=70.92, source="A paper", selection="best_on_test")
    waiting = [
        Pending(label="deep", dataset="dfew", published=theirs),
        Pending(label="deep", dataset="mafw", published=None),
    ]
    found = compared(run_of(tmp_path / "a", 0), pending=waiting)
    assert [(table.data, len(table.pending)) for table in found.tables] == [("DFEW", 1), ("mafw", 1)]
    for page in (text(found), markdown(found), compare_page(found)):
        assert page.count("pending") >= 4 and "58.87" in page and "70.92" in page
    assert "mafw" in text(compared(pending=waiting))


def test_second_results_and_the_last_checkpoint_are_rows_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "a"
    for fold in FOLDS:
        last = LastResult(step=9750, epoch=50, scores=scores(worse(base(fold), 0.1)))
        own = fake_runs.result(fold=fold, num_folds=2, confusion=base(fold), selection="best_on_test", last=last)
        home = fold_of(run, own)
        mixed = replace(own.protocol, shuffled=True)
        shuffled = fake_runs.result(fold=fold, num_folds=2, confusion=worse(base(fold), 0.3), protocol=mixed)
        save_result(shuffled, Folder(home), name=SHUFFLED)
        fake_runs.write_predictions(home, shuffled, file=SHUFFLED)
    found = compared(run)
    assert [(e.label, e.kind) for e in found.tables[0].entries] == [
        ("a", "run"),
        ("a, last checkpoint", "last"),
        ("a, frames shuffled", "other"),
    ]
    wars = [entry.mean.war for entry in found.tables[0].entries]
    expected = [[scores(worse(base(fold), share)).war for fold in FOLDS] for share in (0, 0.1, 0.3)]
    assert wars == pytest.approx([statistics.fmean(each) for each in expected])
    assert [(pair.first, pair.second) for pair in found.tables[0].pairs] == [("a", "a, frames shuffled")]
    # The report has the same rows; its own result is unchanged by them.
    report = summarise(Folder(run), RunConfig)
    assert report.mean.war == pytest.approx(wars[0])
    lines = text_table(report).splitlines()
    for name, war in (("last checkpoint: mean", wars[1]), ("frames shuffled: mean", wars[2])):
        assert any(line.startswith(name) and line.endswith(f"{100 * war:.2f}") for line in lines if war), name


def test_a_second_result_of_another_checkpoint_is_left_out_and_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", 0)
    old = fake_runs.result(fold=1, num_folds=2, step=17)
    save_result(old, Folder(run / "fold_1"), name=SHUFFLED)
    assert len(compared(run).tables[0].entries) == 1
    note = f"Second results of other checkpoints are left out: {run}/fold_1/{SHUFFLED}."
    assert note in summarise(Folder(run), RunConfig).notes


# --- tests between runs


@pytest.mark.slow("resamples the clips of two runs")
def test_a_pair_is_mcnemars_test_on_the_clips_of_both(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one", 0), run_of(tmp_path / "two", 0.08, seed=5)
    ((pair,),) = [table.pairs for table in compared(one, two).tables]
    hits = [(right(one, fold)[key], hit) for fold in FOLDS for key, hit in right(two, fold).items()]
    only = [sum(a and not b for a, b in hits), sum(b and not a for a, b in hits)]
    assert (pair.test.first_only, pair.test.second_only, pair.clips) == (*only, len(hits))
    assert pair.test.p == pytest.approx(binomtest(only[0], sum(only)).pvalue) and pair.folds == FOLDS
    wars = [statistics.fmean(scores(worse(base(fold), share)).war for fold in FOLDS) for share in (0, 0.08)]
    assert pair.difference.war.value == pytest.approx(wars[1] - wars[0])
    assert pair.difference.war.low < wars[1] - wars[0] < pair.difference.war.high


def test_a_run_beside_its_equal_has_no_difference(tmp_path: Path) -> None:
    ((pair,),) = [table.pairs for table in compared(run_of(tmp_path / "x", 0), run_of(tmp_path / "y", 0)).tables]
    assert (pair.test.p, pair.difference.uar.low, pair.difference.uar.high) == (1.0, 0.0, 0.0)


def test_runs_on_other_clips_are_not_tested_against_each_other(tmp_path: Path) -> None:
    other = run_of(tmp_path / "b", 0)
    path = other / "fold_2/results/test_predictions.csv"
    path.write_text(path.read_text().replace("2/anger_0000", "2/anger_9999"))
    (table,) = compared(run_of(tmp_path / "a", 0), other).tables
    assert table.notes == ("No test between a and b: they were tested on different clips.",) and table.pairs == ()


def test_only_folds_that_both_have_are_paired(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", 0)
    (one / "fold_2" / "results" / "test.json").unlink()
    (table,) = compared(one, run_of(tmp_path / "two", 0.1)).tables
    assert [pair.folds for pair in table.pairs] == [(1,)]
    assert "Not alike in folds: 1 of 2 folds (one); 2 of 2 folds (two)." in table.unlike


def test_seeds_are_averaged_by_clip(tmp_path: Path) -> None:
    """Three seeds of one fold: the interval is that of the clips' means, not of three times as many clips."""
    run = tmp_path / "seeds"
    for seed in (2, 3, 4):
        found = fake_runs.result(fold=1, num_folds=1, seed=seed, confusion=base(1))
        fold_of(run, found, seed=0)  # the same answers in every seed
    single = fold_of(tmp_path / "single", fake_runs.result(fold=1, num_folds=1, confusion=base(1)), seed=0)
    three, one = (compared(path).tables[0].entries[0] for path in (run, single))
    assert three.seeds == [2, 3, 4] and three.intervals is not None and one.intervals is not None
    assert three.intervals.war == one.intervals.war


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"selection": "best_on_test"}, "Not alike in selection: last (a); best_on_test (b)."),
        ({"manifest_sha256": "cd" * 32}, "Not alike in shards: manifest abababab (a); manifest cdcdcdcd (b)."),
        (
            {"protocol": replace(fake_runs.result().protocol, num_frames=8, views="4 clips x 3 crops")},
            "Not alike in frames: 16 (a); 8 (b).",
        ),
        ({"split": "subjects"}, "Not alike in split protocol: not recorded (a); subjects (b)."),
        (
            {"overlap": Overlap(tests=800, twice=3, never=0, subjects=17)},
            "Not alike in training and test: overlap not recorded (a); 800 test clips in all folds; 3 clips tested "
            "more than once, 0 never; in the training of the same fold: the person of 17 (b).",
        ),
        ({"epochs": 60, "epoch": 50, "stopped": 50}, "Not alike in epochs: 50 (a); 60 (b)."),
        ({"epochs": 60, "epoch": 50, "stopped": 50}, "Not alike in early stop: none (a); in 2 of 2 results (b)."),
        (
            {"protocol": replace(fake_runs.result().protocol, augment="none", targets="votes", weights="average")},
            "Not alike in training augmentation: random resized crop, flip 0.5, brightness 0.5 (a); none (b).",
        ),
        (
            {"protocol": replace(fake_runs.result().protocol, targets="votes")},
            "Not alike in training targets: labels (a); votes (b).",
        ),
        (
            {"protocol": replace(fake_runs.result().protocol, weights="average, decay 0.9")},
            "Not alike in weights evaluated: those of training (a); average, decay 0.9 (b).",
        ),
        ({"start": "runs/other"}, "Not alike in start: its own (a); another run (b)."),
    ],
)
def test_unlike_protocols_are_named_under_the_table(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = compared(run_of(tmp_path / "a", 0), run_of(tmp_path / "b", 0, **changes))
    assert said in found.tables[0].unlike and said in text(found) and said in markdown(found).replace("\\", "")
    assert compared(tmp_path / "a").tables[0].unlike == ()


# --- the matrix


def test_the_matrix_lays_out_trained_on_and_tested_on(tmp_path: Path) -> None:
    """Five models on one test set: every clip counts once in the interval."""
    run, sha = tmp_path / "a", "cd" * 32
    for fold in FOLDS:
        home = fold_of(run, fake_runs.result(fold=fold, num_folds=2, confusion=base(fold)))
        where = {"dataset": "FERV39k", "manifest_sha256": sha, "num_folds": 1}
        trained = TrainedOn(dataset="DFEW", protocol="published", fold=fold, manifest_sha256="ab" * 32)
        found = fake_runs.result(fold=1, confusion=worse(base(9), 0.2), trained=trained, **where)
        save_result(found, Folder(home), name=OTHERS)
        fake_runs.write_predictions(home, found, file=OTHERS)
    found = compared(run, run_of(tmp_path / "b", 0))
    expected = scores(worse(base(9), 0.2))
    assert [*found.matrix] == [("a", "DFEW")] and [*found.matrix["a", "DFEW"]] == ["DFEW", "FERV39k"]
    assert found.matrix["a", "DFEW"]["FERV39k"].war == pytest.approx(expected.war)
    assert [(table.data, [e.label for e in table.entries]) for table in found.tables] == [
        ("DFEW", ["a", "b"]),
        ("FERV39k", ["a, on FERV39k"]),
    ]
    assert f"{100 * expected.uar:.2f} / {100 * expected.war:.2f}" in text(found)
    crossed, alone = found.tables[1].entries[0], fake_runs.result(confusion=worse(base(9), 0.2))
    fold_of(tmp_path / "alone", replace(alone, fold=1, num_folds=1), seed=0)
    single = compared(tmp_path / "alone").tables[0].entries[0]
    assert crossed.intervals is not None and crossed.intervals == single.intervals


# --- wrong use, and text that stays text


def test_nothing_to_compare_and_a_run_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"compare: expected at least one run or row, got none\. Name run folders"):
        compared()
    run = run_of(tmp_path / "a", 0)
    with pytest.raises(UsageError, match=r"compare: expected every run once, got .*/a twice\. Leave one out"):
        compared(run, run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: expected a results/test\.json of a complete training"):
        compared(tmp_path / "empty")


def test_runs_are_named_by_the_shortest_ends_that_tell_them_apart() -> None:
    assert distinct(["/x/dfew/clip", "/x/dfew/coop"]) == ["clip", "coop"]
    assert distinct(["/x/dfew/clip", "s3://b/mafw/clip"]) == ["dfew/clip", "mafw/clip"]
    assert distinct([]) == []


def test_text_of_a_run_folder_stays_text(tmp_path: Path) -> None:
    evil = '"><script>document.title="pwned"</script>|*'
    run = run_of(tmp_path / "a", 0, dataset=evil)
    found = compared(run)
    assert "<script" not in compare_page(found) and "&lt;script" in compare_page(found)
    assert "<script" not in markdown(found) and "\\|\\*" in markdown(found)


@pytest.mark.slow("draws a report and resamples its clips")
@pytest.mark.usefixtures("no_drawing")
def test_a_report_shows_its_intervals(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", 0)
    report = summarise(Folder(run), RunConfig)
    assert report.intervals.mean is not None and [*report.intervals.parts] == ["fold_1", "fold_2"]
    shown = f"[{100 * report.intervals.mean.uar.low:.2f}, {100 * report.intervals.mean.uar.high:.2f}]"
    written = write_report(Folder(run), RunConfig)
    for page in (written.text, Path(written.html).read_text(), Path(written.markdown).read_text().replace("\\", "")):
        assert shown in page
    assert Path(written.markdown).read_text().count("| fold 1 |") == 2
