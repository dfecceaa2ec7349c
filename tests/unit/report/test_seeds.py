"""A cross-validation that is repeated with several seeds: what its table, Markdown, JSON and page say."""

import html
import json
from pathlib import Path

import numpy as np
import pytest

from dfer.errors import CheckpointError
from dfer.jobs.config import RunConfig
from dfer.report.crossval import Report, summarise
from dfer.report.tables import spread, table_rows, text_table
from dfer.report.write import write_report
from dfer.storage import Folder
from tests import fake_runs

ALL = [(seed, fold) for seed in (1, 2, 10) for fold in range(1, 6)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_runs.write_seeds(tmp_path / "run", ALL)


def numbers(report: Report) -> np.ndarray:
    """Recalls, UAR and WAR by seed and fold, of complete tables."""
    rows = np.array([[*fold.recall, fold.uar, fold.war] for fold in report.folds], dtype=float)
    return rows.reshape(len(report.seeds), report.num_folds, -1)


def test_means_and_deviations_run_over_folds_and_over_seeds(run: Path) -> None:
    report = summarise(Folder(run), RunConfig)
    table, means = numbers(report), report.means
    assert [*means.mean.recall, means.mean.uar, means.mean.war] == pytest.approx(table.mean(axis=(0, 1)))
    assert means.std and means.seed_std
    assert [*means.std.recall, means.std.uar, means.std.war] == pytest.approx(table.mean(axis=0).std(axis=0, ddof=1))
    of_seeds = table.mean(axis=1).std(axis=0, ddof=1)
    assert [*means.seed_std.recall, means.seed_std.uar, means.seed_std.war] == pytest.approx(of_seeds)
    assert [means.by_seed[seed].war for seed in (1, 2, 10)] == pytest.approx(table.mean(axis=1)[:, -1])
    assert report.pooled.num_clips == sum(fold.clips for fold in report.folds) and not report.missing
    assert report.coverage == "5 of 5 folds, 3 seeds"


def test_the_table_has_every_fold_of_every_seed_then_what_they_come_to(run: Path) -> None:
    rows = table_rows(summarise(Folder(run), RunConfig))
    folds = [f"seed {seed}, fold {fold}" for seed, fold in ALL]
    ends = ["seed 1", "seed 2", "seed 10", "mean", "std", "std of seeds", "pooled", "published"]
    assert [row.label for row in rows] == [*folds, *ends]


@pytest.mark.usefixtures("no_drawing")
def test_all_forms_of_the_report_tell_both_deviations(run: Path) -> None:
    report = summarise(Folder(run), RunConfig)
    assert report.means.std and report.means.seed_std
    folds, seeds = (f"{100 * (row.uar or 0):.2f}" for row in (report.means.std, report.means.seed_std))
    both = f"± {folds} over folds ± {seeds} over seeds"
    paths = write_report(Folder(run), RunConfig)
    page, plain = html.unescape(Path(paths.html).read_text()), json.loads(Path(paths.json).read_text())
    assert both in Path(paths.markdown).read_text() and both in page
    assert "sample standard deviation (n - 1) over seeds, of their means over folds" in text_table(report)
    assert "Seed 10, fold 3" in page
    assert plain["seed_std"]["uar"] == report.means.seed_std.uar and [*plain["seed_means"]] == ["1", "2", "10"]
    assert plain["seeds"] == [1, 2, 10] and len(plain["results"]) == 15


def test_means_cover_the_folds_that_every_seed_has(tmp_path: Path) -> None:
    report = summarise(Folder(fake_runs.write_seeds(tmp_path, [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4)])), RunConfig)
    there = [fold.war for fold in report.folds if fold.fold in (2, 4)]
    assert report.means.covered == 2 and report.mean.war == pytest.approx(np.mean(there))
    assert report.missing[:3] == ("seed_1/fold_3", "seed_1/fold_5", "seed_2/fold_1")
    assert report.notes[0].endswith("seed 2, fold 5: means cover 2 of 5 folds, those that every seed has.")
    assert "seed 2, fold 1: no result yet" in text_table(report)


def test_seeds_without_a_common_fold_have_no_mean(tmp_path: Path) -> None:
    report = summarise(Folder(fake_runs.write_seeds(tmp_path, [(1, 1), (2, 2)])), RunConfig)
    assert (report.means.covered, report.mean.war, report.std, report.means.seed_std) == (0, None, None, None)
    assert "means cover 0 of 5 folds, those that every seed has." in report.notes[0]
    assert [row.cells[-1] for row in table_rows(report) if row.label in ("mean", "std", "std of seeds")] == ["–"] * 3


def test_a_fixed_split_is_repeated_too(tmp_path: Path) -> None:
    report = summarise(Folder(fake_runs.write_seeds(tmp_path, [(1, 1), (2, 1)], num_folds=1)), RunConfig)
    assert report.coverage == "fixed split, 2 seeds" and report.std is None and report.means.seed_std
    labels = [row.label for row in table_rows(report)]
    assert labels == ["seed 1, test split", "seed 2, test split", "mean", "std of seeds", "pooled", "published"]
    assert [text.partition(" over ")[2] for text in spread(report, "uar")] == ["seeds"]


def test_one_seed_alone_has_no_deviation(tmp_path: Path) -> None:
    report = summarise(Folder(fake_runs.write_seeds(tmp_path, ALL[:5])), RunConfig)
    assert report.coverage == "5 of 5 folds, 1 seed" and report.std and report.means.seed_std is None


def test_a_result_of_another_seed_is_refused(run: Path) -> None:
    (run / "seed_2").rename(run / "seed_3")
    with pytest.raises(CheckpointError, match=r"test.json: expected the result of seed 3, got seed 2\. Rename the"):
        summarise(Folder(run), RunConfig)


def test_folds_of_one_seed_beside_those_of_several_are_refused(run: Path) -> None:
    fake_runs.write_fold(run / "fold_2", fake_runs.result(fold=2), curves=False)
    with pytest.raises(CheckpointError) as caught:
        summarise(Folder(run), RunConfig)
    assert str(caught.value) == (
        f"{run}: expected folds of one seed or of several, got fold_2 beside seed_1/fold_1. "
        "Move the folds of one seed into a folder seed_NUMBER of their own, or into another run folder."
    )


def test_a_test_partition_stands_once_in_every_seed(run: Path) -> None:
    odd = fake_runs.result(fold=2, seed=2, train_partitions=("fold_3",), test_partitions=("fold_1",))
    fake_runs.write_fold(run / "seed_2" / "fold_2", odd, plain=fake_runs.config(fold=2, seed=2), curves=False)
    with pytest.raises(CheckpointError, match=r"got partition fold_1 in seed_2/fold_1 and seed_2/fold_2"):
        summarise(Folder(run), RunConfig)


@pytest.mark.slow("draws the curves of four runs")
def test_curves_are_told_apart_by_seed(tmp_path: Path) -> None:
    run = fake_runs.write_seeds(tmp_path, [(1, 1), (1, 2), (2, 1), (2, 2)], curves=True)
    report = summarise(Folder(run), RunConfig)
    assert [*report.curves["train/loss"]] == ["seed_1/fold_1", "seed_1/fold_2", "seed_2/fold_1", "seed_2/fold_2"]
    page = Path(write_report(Folder(run), RunConfig).html).read_text()
    loss = page[page.index("Training loss") :].partition("</svg>")[0]
    assert "seed 1" in loss and "seed 2" in loss and "fold 1" not in loss


def test_a_planned_seed_without_any_folder_is_named(tmp_path: Path) -> None:
    parts = [(seed, fold) for seed in (1, 2) for fold in range(1, 6)]
    run, two = (fake_runs.write_seeds(tmp_path / f"{n}", parts, planned=range(1, n + 1)) for n in (3, 2))
    report = summarise(Folder(run), RunConfig)
    assert report.coverage == "5 of 5 folds, 2 seeds"
    assert report.notes[0] == "No result yet for seed 3: the means leave it out."
    assert report.missing == tuple(f"seed_3/fold_{fold}" for fold in range(1, 6))
    assert "seed 3, fold 5: no result yet" in text_table(report)
    assert report.means == summarise(Folder(two), RunConfig).means and not summarise(Folder(two), RunConfig).missing
