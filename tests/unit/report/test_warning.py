"""Scores of a model that was given the label carry the mark everywhere; pooled accuracy stands beside the mean."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfer.emotions import BASIC7
from dfer.evaluation.results import Published, TrainedOn, read_result, save_result
from dfer.jobs.config import RunConfig
from dfer.jobs.rows import Row
from dfer.report.compare import Pending, compare
from dfer.report.compare_tables import lines, matrix_rows
from dfer.report.crossval import summarise
from dfer.report.errors import ErrorPage, error_lines, error_page
from dfer.report.page import page
from dfer.report.tables import table_rows
from dfer.report.write import write_report
from dfer.storage import Folder
from tests import fake_runs

MARK = "LEAKS LABEL"
CAPTION = "caption true_label: caption of the true label, at test time too"
CK_FOLD = np.array([12, 18, 9, 21, 9, 24, 6])
"""Pictures of each class that test in a fold of CK+ (spec of the ten positional folds), 99 in all."""


def leaking(folder: Path, *, folds: int = 5, marked: bool = True) -> Path:
    for fold in range(1, folds + 1):
        found = fake_runs.result(fold=fold, num_folds=folds, method="clivp_fer")
        protocol = replace(found.protocol, presentation=CAPTION if marked else "", leaks_label=marked)
        fake_runs.write_fold(folder / f"fold_{fold}", replace(found, protocol=protocol), curves=False)
    return folder


@pytest.mark.usefixtures("no_drawing")
def test_every_number_of_a_leaking_model_is_marked(tmp_path: Path) -> None:
    run = leaking(tmp_path / "run")
    report, paths = summarise(Folder(str(run)), RunConfig), write_report(Folder(str(run)), RunConfig)
    for row in table_rows(report):
        assert (MARK in row.label) == (row.kind in ("fold", "mean", "pooled")), row.label
    markdown, page = Path(paths.markdown).read_text(), Path(paths.html).read_text()
    assert markdown.startswith(f"# clivp_fer on DFEW, {MARK}\n")
    headline = markdown.splitlines()[2]
    assert headline.startswith("UAR ") and f", {MARK}. " in headline
    assert paths.text.splitlines()[0].startswith(f"clivp_fer on DFEW, {MARK}, ")
    assert f"<title>clivp_fer on DFEW, {MARK}</title>" in page
    assert (
        page.count(f"ours, 5 of 5 folds, {MARK}; 95 % interval ") == 2 and f"predictions correct, {MARK}</span>" in page
    )
    for text in (markdown, page, paths.text):
        assert "the model was given the true label of every test clip" in text
    assert CAPTION in markdown and CAPTION in page
    plain = json.loads(Path(paths.json).read_text())
    assert plain["protocol"]["leaks_label"] is True and plain["protocol"]["presentation"] == CAPTION


LEAKING = {"war": 97.364, "source": "CLIVP-FER", "selection": "best_on_test", "leaks_label": True}


def test_the_mark_stands_beside_every_score_in_report_comparison_and_errors(tmp_path: Path) -> None:
    """Also beside published and pending rows, in the matrix of other data, and on the page's card."""
    run, sha = tmp_path / "run", "cd" * 32
    found = fake_runs.result(num_folds=1, method="clivp_fer", manifest_sha256="ab" * 32)
    marked = replace(found, protocol=replace(found.protocol, leaks_label=True))
    fake_runs.write_fold(run, marked, plain=fake_runs.config(published=LEAKING), curves=False)
    trained = TrainedOn(dataset="DFEW", protocol="published", fold=1, manifest_sha256="ab" * 32)
    other = replace(marked, dataset="KMU", trained=trained, manifest_sha256=sha)
    save_result(other, Folder(str(run)), name="results/other-KMU_cdcdcdcd.json")
    theirs = Published(war=99.22, source="a claim", leaks_label=True)
    waiting = Pending(label="waits", dataset="dfew", published=theirs, warning=MARK)
    compared = compare([Folder(str(run))], RunConfig, pending=[waiting])

    labels = [line.label for table in compared.tables for line in lines(table)]
    assert labels == [
        f"run, {MARK}",
        f"run, published, {MARK}",
        f"waits, {MARK}",
        f"waits, published, {MARK}",
        f"run, on KMU, {MARK}",
    ]
    score = f"{100 * found.uar:.2f} / {100 * found.war:.2f}, {MARK}"
    assert matrix_rows(compared)[1] == ["run (DFEW)", score, score]
    report = summarise(Folder(str(run)), RunConfig)
    assert table_rows(report)[-1].label == f"published, {MARK}"
    assert f'<b>– / 97.36</b><span class="soft">{MARK}; CLIVP-FER; ' in page(report)

    errors = ErrorPage(run="run", method="clivp_fer", data="DFEW", clips=9, wrong=0, mistakes=(), warning=MARK)
    assert f"<title>Most confident errors: clivp_fer on DFEW, {MARK}</title>" in error_page(errors)
    assert f"run: 0 of 9 test clips are wrong, {MARK}; these" in error_page(errors)
    assert error_lines(errors) == f"0 of 9 test clips are wrong, {MARK}"
    assert MARK not in error_page(replace(errors, warning="")) + error_lines(replace(errors, warning=""))


@pytest.mark.slow("draws a whole report, in which no picture may have the mark either")
def test_other_reports_have_no_mark(tmp_path: Path) -> None:
    paths = write_report(Folder(str(leaking(tmp_path / "run", marked=False))), RunConfig)
    for path in (paths.markdown, paths.html):
        assert MARK not in Path(path).read_text()
    assert MARK not in paths.text


def test_a_single_split_is_marked_too(tmp_path: Path) -> None:
    found = fake_runs.result(num_folds=1)
    marked = replace(found, protocol=replace(found.protocol, leaks_label=True))
    fake_runs.write_fold(tmp_path, marked, curves=False)
    rows = table_rows(summarise(Folder(str(tmp_path)), RunConfig))
    assert [row.label for row in rows] == [f"test split, {MARK}", "published"]
    assert marked.line == f"WAR {100 * found.war:.2f}, UAR {100 * found.uar:.2f}, {MARK}" and MARK not in found.line


def test_a_result_says_what_was_shown_after_reading_it_back(tmp_path: Path) -> None:
    found = fake_runs.result()
    marked = replace(found, protocol=replace(found.protocol, presentation=CAPTION, leaks_label=True))
    save_result(marked, Folder(str(tmp_path)))
    assert read_result(Folder(str(tmp_path))) == marked
    old = json.loads((tmp_path / "results" / "test.json").read_text())
    del old["protocol"]["presentation"], old["protocol"]["leaks_label"]
    (tmp_path / "results" / "test.json").write_text(json.dumps(old))
    assert read_result(Folder(str(tmp_path))).protocol == found.protocol  # results from before these keys


def test_leaking_and_honest_folds_are_not_averaged(tmp_path: Path) -> None:
    run = leaking(tmp_path / "run")
    save_result(fake_runs.result(fold=2, method="clivp_fer"), Folder(str(run / "fold_2")))
    with pytest.raises(Exception, match="one test protocol for all folds"):
        summarise(Folder(str(run)), RunConfig)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(("hits", "percent"), [(931, "94.04"), (937, "94.65")])
def test_ten_folds_of_ck_plus_pool_over_990_predictions(tmp_path: Path, hits: int, percent: str) -> None:
    """The published 94.040 and 94.646 % are 931 and 937 of 990 (spec). Folds of one size have the same mean; a fold
    that is smaller moves the mean, not the pooled number of correct predictions."""
    wrong = np.full(10, (990 - hits) // 10)
    wrong[: (990 - hits) % 10] += 1
    for fold, errors in enumerate(wrong, start=1):
        matrix = np.diag(CK_FOLD)
        matrix[5, 5], matrix[5, 3] = matrix[5, 5] - errors, errors
        found = fake_runs.result(fold=fold, num_folds=10, classes=BASIC7, confusion=matrix.tolist())
        fake_runs.write_fold(tmp_path / f"fold_{fold}", found, curves=False)
    report = summarise(Folder(str(tmp_path)), RunConfig)
    paths = write_report(Folder(str(tmp_path)), RunConfig)
    (pooled,) = (row for row in table_rows(report) if row.kind == "pooled")
    assert pooled.cells[-1] == percent and pooled.detail.startswith(f"{hits} of 990 predictions correct: ")
    assert f"pooled WAR {percent} ({hits} of 990 predictions correct)" in Path(paths.markdown).read_text()
    card = f'WAR pooled (%)<b>{percent}</b><span class="soft">{hits} of 990 predictions correct</span>'
    assert card in Path(paths.html).read_text()


def test_pooled_and_mean_differ_where_folds_have_other_sizes(tmp_path: Path) -> None:
    for fold, (right, all_) in enumerate([(90, 100), (1, 10)], start=1):
        matrix = [[0] * 7 for _ in range(7)]
        matrix[0][0], matrix[0][1] = right, all_ - right
        found = fake_runs.result(fold=fold, num_folds=2, confusion=matrix)
        fake_runs.write_fold(tmp_path / f"fold_{fold}", found, curves=False)
    rows = {row.kind: row for row in table_rows(summarise(Folder(str(tmp_path)), RunConfig))}
    assert (rows["mean"].cells[-1], rows["pooled"].cells[-1]) == ("50.00", "82.73")


@pytest.mark.usefixtures("no_drawing")
def test_a_published_accuracy_without_uar_is_shown_with_a_dash(tmp_path: Path) -> None:
    published = Published(war=94.646, source="a repository", selection="best_on_test")
    assert published.text == "– / 94.65"
    assert "| – / 94.65 |" in Row(configs=("a", "b"), protocol="CK+", published=published).line()
    plain = fake_runs.config(published={"war": 94.646, "source": "a repository", "selection": "best_on_test"})
    fake_runs.write_fold(tmp_path, fake_runs.result(num_folds=1), plain=plain, curves=False)
    report, paths = summarise(Folder(str(tmp_path)), RunConfig), write_report(Folder(str(tmp_path)), RunConfig)
    assert table_rows(report)[-1].cells[-2:] == ("–", "94.65")
    assert "<b>– / 94.65</b>" in Path(paths.html).read_text()
