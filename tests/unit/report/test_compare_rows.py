"""Rows of configs/README.md in a comparison: those with results, those that wait, and in which table."""

from pathlib import Path

import pytest

from dfer.commands.compare import named_rows, rows_of, with_results
from dfer.emotions import label_set
from dfer.errors import UsageError
from dfer.jobs.config import RunConfig
from dfer.jobs.rows import published_of
from dfer.report.compare import compare
from tests import fake_runs
from tests.unit.report.test_compare import base, compared, run_of


def test_rows_of_a_set_are_runs_where_there_are_results_and_else_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "runs" / "dfew" / "linear_probe", 0)
    run_of(tmp_path / "runs" / "dfew" / "dfer_clip", 0)
    rows = rows_of("dfew")
    there, pending = with_results(rows, ["runs/dfew/dfer_clip/"])
    assert [folder.name for folder in there] == ["linear_probe"], "the run that was named is not taken again"
    assert len(pending) == len(rows) - 2 and {row.dataset for row in pending} == {"dfew"}
    by_name = {row.label: row.published for row in pending}
    assert by_name["dfer_clip_depth2"] == published_of(["methods/dfer_clip_depth2", "sets/dfew"])
    assert "linear_probe" not in by_name and "dfer_clip" not in by_name


def test_rows_of_a_set_are_also_files_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = fake_runs.result(num_folds=1, dataset="ckplus48", classes=label_set("ck7").names, confusion=base(1))
    fake_runs.write_fold(tmp_path / "runs/ckplus48/vgg19_subjects", found, curves=False)
    there, pending = with_results(rows_of("ckplus48"), [])
    assert [folder.name for folder in there] == ["vgg19_subjects"]
    assert {row.label for row in pending} == {"vgg19", "resnet18", "resnet18_subjects", "linear_probe"}
    (table,) = compare(there, RunConfig, pending=pending).tables
    assert len(table.pending) == 4
    public = {row.label: row.published for row in with_results(rows_of("fer2013"), [])[1]}
    assert public["vgg19_public"] is not None and public["vgg19_public"].war == 71.496


def test_sets_that_share_shards_stand_in_the_tables_of_their_classes() -> None:
    probes = [row for row in (*rows_of("affectnet7"), *rows_of("sets/affectnet8")) if row.method == "linear_probe"]
    _, pending = with_results(probes, [])
    assert [(row.dataset, len(row.classes)) for row in pending] == [("affectnet", 7), ("affectnet", 8)]
    assert [table.data for table in compared(pending=pending).tables] == [
        "affectnet, 7 classes",
        "affectnet, 8 classes",
    ]


def test_a_row_that_waits_joins_the_results_on_its_shards_and_classes(tmp_path: Path) -> None:
    _, pending = with_results([*rows_of("affectnet7"), *rows_of("affectnet8")], [])
    tables = compared(run_of(tmp_path / "a", 0, dataset="affectnet"), pending=pending).tables
    labels = {"exp_clip_b32", "exp_clip_b16", "exp_clip_l14", "zero_shot_face", "linear_probe"}
    assert [(table.data, len(table.entries)) for table in tables] == [("affectnet", 1), ("affectnet", 0)]
    assert all({row.label for row in table.pending} == labels for table in tables)


def test_the_row_of_a_leaking_method_waits_with_the_mark() -> None:
    found = {row.label: row for row in with_results(rows_of("kmu_fed"), [])[1]}
    assert found["clivp_fer_true_label"].warning == "LEAKS LABEL" and found["clivp_fer"].warning == ""
    published = found["clivp_fer_true_label"].published
    assert published is not None and published.warning == "LEAKS LABEL"
    with pytest.raises(UsageError, match=r"--set: expected one of afew, affectnet7, .*kmu_fed.*, got nothing"):
        rows_of("nothing")


def test_named_rows_are_all_methods_on_all_sets() -> None:
    names = ["methods/dfer_clip", "sets/mafw", "methods/linear_probe", "sets/dfew"]
    assert [row.configs for row in named_rows(names)] == [
        ("methods/dfer_clip", "sets/mafw"),
        ("methods/linear_probe", "sets/mafw"),
        ("methods/dfer_clip", "sets/dfew"),
        ("methods/linear_probe", "sets/dfew"),
    ]
    assert named_rows([]) == []
