"""Predictions read back from their file; what does not hold together is refused."""

from pathlib import Path

import pytest
import torch

from dfer.errors import CheckpointError
from dfer.evaluation.answers import read_answers
from dfer.evaluation.evaluator import Predictions
from dfer.evaluation.results import save_predictions
from dfer.storage import Folder
from tests import fake_runs

CLASSES = ("happiness", "sadness", "anger")
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 1.0, 0.0]])


def written(folder: Path) -> tuple[Folder, fake_runs.FoldResult]:
    """A result of three clips, the last of them wrong, with its predictions."""
    found = fake_runs.result(classes=CLASSES, confusion=[[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    answers = Predictions(labels=torch.tensor([0, 1, 2]), logits=LOGITS)
    save_predictions(answers, Folder(folder), keys=["a", "b", "c"], classes=CLASSES)
    return Folder(folder), found


def test_predictions_are_read_back(tmp_path: Path) -> None:
    answers = read_answers(*written(tmp_path))
    assert answers is not None and answers.keys == ("a", "b", "c")
    assert (answers.labels.tolist(), answers.predicted.tolist()) == ([0, 1, 2], [0, 1, 1])
    assert answers.right.tolist() == [True, True, False]
    expected = LOGITS.double().softmax(-1)
    assert answers.confidence.tolist() == pytest.approx(expected.max(-1).values.tolist(), abs=1e-6)


def test_a_result_without_predictions_has_none(tmp_path: Path) -> None:
    assert read_answers(Folder(tmp_path), fake_runs.result()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("anger", "fear"), "expected the columns key, label, predicted, happiness, sadness"),
        (lambda text: text.replace("a,happiness", "a,joy"), "expected a key, two of the classes and 3 probabilities"),
        (lambda text: text.replace("0.7", "1.7"), "expected probabilities of 0 or more that sum to 1"),
        (lambda text: text.replace("0.7", "x"), "expected numbers as probabilities"),
        (lambda text: text.replace("\nb,", "\na,"), "expected every clip once, got a key twice"),
        (lambda text: text.replace("c,anger,sadness", "c,anger,anger"), "expected the counts of the result beside it"),
        (lambda text: text[: text.rindex("c,")], "expected the counts of the result beside it"),
        (lambda text: text.replace("a,", '"a,'), "expected a table in UTF-8"),
        (lambda text: "", "expected the columns"),
    ],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, change, said: str) -> None:
    folder, found = written(tmp_path)
    path = tmp_path / "results" / "test_predictions.csv"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CheckpointError) as caught:
        read_answers(folder, found)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert str(caught.value).endswith("Evaluate again: dfer evaluate RUN.")
