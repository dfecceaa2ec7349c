"""What a comparison says of second results: the data they were trained on, and which of them share a column."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfer.emotions import BASIC7
from dfer.evaluation.results import LastResult, TrainedOn, save_result
from dfer.evaluation.scores import RankMean, scores
from dfer.jobs.config import RunConfig
from dfer.report.beside import beside
from dfer.report.compare_tables import text
from dfer.report.write import summarise
from dfer.storage import Folder
from tests import fake_runs
from tests.unit.report.test_compare import base, compared, fold_of, worse

FERV = "results/other-FERV39k_cdcdcdcd-fold_1-protocol_published"


def trained_on(run: Path, name: str, *, clips: int = 400) -> Path:
    """A run of one fold, tested on FERV39k too."""
    home = fold_of(run, fake_runs.result(num_folds=1, dataset=name, confusion=base(1)))
    add(home, name, clips=clips)
    return run


def add(home: Path, name: str, *, file: str = f"{FERV}.json", clips: int = 400, fold: int = 1, **changes: Any) -> None:
    trained = TrainedOn(dataset=name, protocol="published", fold=1, manifest_sha256="ab" * 32)
    matrix = fake_runs.confusion(BASIC7, clips=clips, seed=9)
    facts = {"dataset": "FERV39k", "manifest_sha256": "cd" * 32, "num_folds": 1, "confusion": matrix, **changes}
    found = fake_runs.result(fold=fold, trained=trained, **facts)
    save_result(found, Folder(home), name=file)
    fake_runs.write_predictions(home, found, file=file)


def test_the_training_data_of_second_results_are_not_the_tested_ones(tmp_path: Path) -> None:
    found = compared(trained_on(tmp_path / "a", "DFEW"), trained_on(tmp_path / "b", "MAFW"))
    (table,) = [each for each in found.tables if each.data == "FERV39k"]
    assert "Not alike in training data: DFEW (a, on FERV39k); MAFW (b, on FERV39k)." in table.unlike
    assert "training data FERV39k" not in table.alike


def test_other_clips_are_another_column_of_the_matrix(tmp_path: Path) -> None:
    one, two = trained_on(tmp_path / "a", "DFEW"), trained_on(tmp_path / "b", "DFEW", clips=900)
    sizes = [sum(map(sum, fake_runs.confusion(BASIC7, clips=clips, seed=9))) for clips in (400, 900)]
    found = compared(one, two)
    names = [f"FERV39k, {size:,} clips" for size in sizes]
    assert [[*row] for row in found.matrix.values()] == [["DFEW", names[0]], ["DFEW", names[1]]]
    assert all(name in text(found) for name in names)


def test_the_matrix_shows_what_is_seen_as_in_the_run_and_the_later_of_two_builds(tmp_path: Path) -> None:
    run, confusion = trained_on(tmp_path / "a", "DFEW"), worse(base(9), 0.3)
    few = replace(fake_runs.result().protocol, num_frames=8)
    add(run / "fold_1", "DFEW", file=f"{FERV}-frames_8.json", protocol=few, confusion=confusion)
    again, later = FERV.replace("cdcdcdcd", "00000000"), "2027-01-01T00:00:00Z"
    matrix = fake_runs.confusion(BASIC7, clips=400, seed=9)
    rotated = [[*row] for row in matrix]
    rotated[0][0], rotated[0][1] = rotated[0][1], rotated[0][0]
    add(run / "fold_1", "DFEW", file=f"{again}.json", confusion=rotated, manifest_sha256="00" * 32, finished=later)
    found = compared(run)
    assert found.matrix["a", "DFEW"]["FERV39k"].war == pytest.approx(scores(rotated).war)
    (table,) = [each for each in found.tables if each.data == "FERV39k"]
    assert [entry.label for entry in table.entries] == [
        "a, on FERV39k; manifest 00000000",
        "a, on FERV39k; manifest cdcdcdcd",
        "a, on FERV39k; 8 frames",
    ]


def test_every_fold_on_every_fold_of_another_set(tmp_path: Path) -> None:
    """Those on the folds of the same numbers are a row, the others a row for each tested fold."""
    run = tmp_path / "a"
    for fold in (1, 2):
        home = fold_of(run, fake_runs.result(fold=fold, num_folds=2, confusion=base(fold)))
        for tested in (1, 2):
            add(home, "DFEW", file=FERV.replace("fold_1", f"fold_{tested}") + ".json", fold=tested, num_folds=2)
    rows = {each.name: {part: found.fold for part, found in each.results.items()} for each in beside(summary(run))}
    assert rows == {
        "on FERV39k; folds 1, 2": {"fold_1": 1, "fold_2": 2},
        "on FERV39k; fold 1": {"fold_2": 1},
        "on FERV39k; fold 2": {"fold_1": 2},
    }


def test_the_last_checkpoint_has_no_mean_over_ranks(tmp_path: Path) -> None:
    """That of the chosen checkpoint is of other weights."""
    last = LastResult(step=9750, epoch=50, scores=scores(worse(base(1), 0.1)))
    mean = RankMean(ranks=2, uar=0.4, recall=(0.4,) * 7)
    fold_of(
        tmp_path / "a",
        fake_runs.result(num_folds=1, confusion=base(1), selection="best_on_test", last=last, rank_mean=mean),
    )
    (row,) = beside(summary(tmp_path / "a"))
    assert (row.kind, row.first.rank_mean) == ("last", None)


def summary(run: Path) -> Any:
    return summarise(Folder(run), RunConfig)
