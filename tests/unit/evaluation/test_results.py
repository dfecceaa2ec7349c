"""Result files: what was written is read back, and what does not hold together is refused."""

import csv
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.errors import CheckpointError, StorageError
from dfer.evaluation.evaluator import Predictions
from dfer.evaluation.results import FoldResult, Published, read_result, save_predictions, save_result
from dfer.evaluation.scores import scores
from dfer.storage import Folder
from tests import fake_runs

MATRIX = st.lists(st.lists(st.integers(0, 50), min_size=7, max_size=7), min_size=7, max_size=7).filter(
    lambda rows: any(map(any, rows))
)


@given(MATRIX)
def test_json_gives_the_same_result_back(matrix):
    found = fake_runs.result(confusion=matrix)
    assert from_plain(FoldResult, json.loads(json.dumps(to_plain(found)))) == found


def test_a_saved_result_lies_in_results_and_leaves_no_temporary_file(tmp_path):
    found = fake_runs.result()
    save_result(found, Folder(tmp_path))
    assert read_result(Folder(tmp_path)) == found
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["test.json"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"war": 0.99}, "war, uar, recall: expected what the confusion matrix gives"),
        ({"uar": 0.5}, "war, uar, recall: expected what the confusion matrix gives"),
        ({"clips": 7}, "clips, count: expected the sums of the confusion matrix"),
        ({"classes": ["anger", "fear"]}, "confusion: expected 2 x 2 counts"),
        ({"selection": "best"}, "selection: expected 'last' or 'best_on_val' or 'best_on_test', got 'best'"),
        ({"fold": 6}, "fold: expected 1..5, got 6"),
        ({"confusion": [[2**31 + 1] * 7] * 7}, "confusion: expected counts of at most 2,147,483,648 clips, got more"),
        ({"train_partitions": ["fold_1", "fold_2"]}, "got fold_1 in both"),
        ({"version": 2}, "version: expected 1, got 2"),
        ({"rank_mean": {"ranks": 2, "uar": 0.5, "recall": [0.5]}}, "rank_mean.recall: expected 7 numbers from 0 to 1"),
        ({"rank_mean": {"ranks": 2, "uar": 0.5, "recall": [1.5] * 7}}, "rank_mean.recall: expected 7 numbers"),
        ({"rank_mean": {"ranks": 2, "uar": 0.6, "recall": [0.5] * 7}}, "rank_mean.uar: expected the mean"),
        ({"note": "x"}, "note: unknown key"),
        ({"war": float("nan")}, "war: expected a number, got nan"),
    ],
)
def test_a_changed_result_file_is_refused_with_its_path(tmp_path, change, text):
    save_result(fake_runs.result(), Folder(tmp_path))
    path = tmp_path / "results" / "test.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        read_result(Folder(tmp_path))
    assert text in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.exit_code == 5


def test_negative_counts_and_no_counts_are_refused():
    plain = to_plain(fake_runs.result())
    for matrix in ([[-1] * 7] * 7, [[0] * 7] * 7):
        with pytest.raises(ConfigProblem, match=r"confusion: expected counts of at least one clip, none below 0"):
            from_plain(FoldResult, {**plain, "confusion": matrix})


def test_variants_are_read_back_and_older_results_have_none(tmp_path):
    other = scores([row[::-1] for row in fake_runs.result().confusion])
    found = fake_runs.result(variants={"local": other, "global": fake_runs.result().scores})
    save_result(found, Folder(tmp_path))
    assert read_result(Folder(tmp_path)) == found and list(read_result(Folder(tmp_path)).variants) == [
        "local",
        "global",
    ]
    plain = to_plain(fake_runs.result())
    del plain["variants"]
    assert from_plain(FoldResult, plain) == fake_runs.result()


def test_variants_of_other_clips_or_with_other_scores_are_refused():
    found = to_plain(fake_runs.result(variants={"local": fake_runs.result().scores}))
    local = found["variants"]["local"]
    for change, text in (
        ({"war": 0.99}, "variants.local: expected the scores that its confusion matrix gives"),
        ({"count": [1] * 7}, "variants.local: expected the 2"),
        ({"confusion": local["confusion"][1:]}, "variants.local.confusion: expected 7 x 7 counts"),
        ({"confusion": [[-1] * 7] * 7}, "variants.local.confusion: expected 7 x 7 counts"),
    ):
        with pytest.raises(ConfigProblem, match=text):
            from_plain(FoldResult, {**found, "variants": {"local": {**local, **change}}})


@pytest.mark.parametrize("content", ["{", "", "[" * 100_000, "\udcff"])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    Folder(tmp_path).write("results/test.json", content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"expected a JSON object.*Delete it and evaluate again"):
        read_result(Folder(tmp_path))


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a result file.*Finish the run first"):
        read_result(Folder(tmp_path))


def test_predictions_are_one_row_a_clip_in_order(tmp_path):
    answers = Predictions(labels=torch.tensor([1, 0]), logits=torch.tensor([[2.0, 2.0], [0.0, 5.0]]))
    save_predictions(answers, Folder(tmp_path), keys=["b/1", "a,2"], classes=("anger", "fear"))
    rows = list(csv.reader((tmp_path / "results" / "test_predictions.csv").read_text().splitlines()))
    assert rows == [
        ["key", "label", "predicted", "anger", "fear"],
        ["b/1", "fear", "anger", "0.500000", "0.500000"],
        ["a,2", "anger", "fear", "0.006693", "0.993307"],
    ]


def test_predictions_with_too_few_keys_are_a_programmers_error(tmp_path):
    answers = Predictions(labels=torch.tensor([1, 0]), logits=torch.zeros(2, 2))
    with pytest.raises(ValueError):
        save_predictions(answers, Folder(tmp_path), keys=["only one"], classes=("anger", "fear"))
    assert not (tmp_path / "results").exists()


def test_a_file_too_large_for_a_result_is_not_read(tmp_path, monkeypatch):
    save_result(fake_runs.result(), Folder(tmp_path))
    monkeypatch.setattr("dfer.run.layout.MAX_RESULT_BYTES", 100)
    with pytest.raises(StorageError, match=r"test.json: expected at most 100 bytes, got \d+. Replace or remove"):
        read_result(Folder(tmp_path))


@pytest.mark.parametrize("value", [0.5961, 0, 101])
def test_published_numbers_are_percent(value):
    with pytest.raises(ConfigProblem, match=r"uar: expected percent, 1 to 100, got .* Write 59.61"):
        from_plain(Published, {"uar": value, "war": 71.25, "source": "a paper"})


def test_published_numbers_need_their_source():
    with pytest.raises(ConfigProblem, match=r"source: expected paper and table"):
        from_plain(Published, {"uar": 59.61, "war": 71.25, "source": " "})


def test_scores_of_a_result_come_from_its_matrix():
    found = fake_runs.without_class(fake_runs.result(), 5)
    assert found.scores == scores(found.confusion)
    assert found.recall[5] is None
