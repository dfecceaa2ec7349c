"""Read the predictions of a result, RUN/results/test_predictions.csv. Imports no torch.

Letters: N clips, K classes.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Never

import numpy as np
from numpy.typing import NDArray

from dfer.errors import CheckpointError, message
from dfer.evaluation.results import FoldResult
from dfer.run.layout import RESULT, predictions_name
from dfer.storage import Folder

MAX_BYTES = 64 * 2**20
"""Largest file that is read: about half a million clips of seven classes."""
ROUNDING = 1e-3
"""Largest deviation of a row's sum from 1: the file has six decimals."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The predictions of one result, in the order of the split.

    keys: of the N clips. labels, predicted: class numbers int64 [N]. probabilities: float64 [N K].
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each clip was classified rightly, bool [N]."""
        found: NDArray[np.bool_] = self.labels == self.predicted
        return found

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted class, float64 [N]."""
        found: NDArray[np.float64] = self.probabilities[np.arange(len(self.keys)), self.predicted]
        return found


def read_answers(folder: Folder, result: FoldResult, *, beside: str = RESULT) -> Answers | None:
    """Read the predictions that belong to a result file of a run folder; None if there is no such file.

    Raises:
        CheckpointError: the file is damaged, or its counts are not those of the result.
    """
    name = predictions_name(beside)
    data = folder.read(name, most=MAX_BYTES)
    if data is None:
        return None
    where = folder.where(name)
    rows = _rows(data, where)
    if not rows or rows[0] != ["key", "label", "predicted", *result.classes]:
        _refuse(where, f"the columns key, label, predicted, {', '.join(result.classes)}", "others")
    answers = _answers(rows[1:], result.classes, where)
    counts = np.zeros((len(result.classes),) * 2, np.int64)
    np.add.at(counts, (answers.labels, answers.predicted), 1)
    if counts.tolist() != [list(row) for row in result.confusion]:
        _refuse(where, "the counts of the result beside it", "others")
    return answers


def _rows(data: bytes, where: str) -> list[list[str]]:
    try:
        return list(csv.reader(StringIO(data.decode()), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        _refuse(where, "a table in UTF-8", str(error)[:200])


def _answers(rows: Sequence[Sequence[str]], classes: Sequence[str], where: str) -> Answers:
    number = {name: k for k, name in enumerate(classes)}
    if any(len(row) != 3 + len(classes) or row[1] not in number or row[2] not in number for row in rows):
        _refuse(where, f"a key, two of the classes and {len(classes)} probabilities in every row", "another row")
    try:
        shares = np.array([row[3:] for row in rows], np.float64).reshape(len(rows), len(classes))
    except ValueError as error:
        _refuse(where, "numbers as probabilities", str(error)[:200])
    if not (np.abs(shares.sum(1) - 1) < ROUNDING).all() or (shares < 0).any():
        _refuse(where, "probabilities of 0 or more that sum to 1 in every row", "others")
    keys = tuple(row[0] for row in rows)
    if len(set(keys)) < len(keys):
        _refuse(where, "every clip once", "a key twice")
    return Answers(
        keys=keys,
        labels=np.array([number[row[1]] for row in rows], np.int64),
        predicted=np.array([number[row[2]] for row in rows], np.int64),
        probabilities=shares,
    )


def _refuse(where: str, expected: str, got: str) -> Never:
    raise CheckpointError(message(where, expected=expected, got=got, do="Evaluate again: dfer evaluate RUN."))
