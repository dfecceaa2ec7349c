"""Compute WAR, UAR and per-class recall from a confusion matrix. Imports no torch.

K classes. Rows of a matrix are the truth, columns the prediction.
WAR is accuracy; UAR is the mean of the per-class recalls (DFER-CLIP, Zhao & Patras, BMVC 2023, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dfer.errors import DataError, message


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one confusion matrix, from 0 to 1.

    recall: per class; None for a class without test clips, which the mean of UAR omits. count: clips per class.
    """

    confusion: tuple[tuple[int, ...], ...]
    war: float
    uar: float
    recall: tuple[float | None, ...]
    count: tuple[int, ...]

    @property
    def num_clips(self) -> int:
        """Number of clips counted."""
        return sum(self.count)

    @property
    def empty_classes(self) -> tuple[int, ...]:
        """Classes without test clips."""
        return tuple(k for k, clips in enumerate(self.count) if not clips)


def scores(matrix: Sequence[Sequence[int]]) -> Scores:
    """Compute the scores of a square matrix of counts. Raises DataError when it counts no clip."""
    rows = tuple(tuple(int(cell) for cell in row) for row in matrix)
    count = tuple(sum(row) for row in rows)
    if not sum(count):
        raise DataError(
            message("scores", expected="at least one clip", got="none", do="Check the partitions of the test split.")
        )
    recall = tuple(row[k] / clips if clips else None for k, (row, clips) in enumerate(zip(rows, count)))
    present = [share for share in recall if share is not None]
    correct = sum(row[k] for k, row in enumerate(rows))
    return Scores(confusion=rows, war=correct / sum(count), uar=sum(present) / len(present), recall=recall, count=count)


@dataclass(frozen=True, kw_only=True)
class RankMean:
    """Means of the scores that several ranks would compute, each over its share of the test clips, from 0 to 1.

    Some releases print these (DK-CLIP's: UAR and recalls, two ranks); they differ from the recalls over all test clips.
    recall: per class; a class without clips on a rank counts 0 there. uar: mean of these recalls.
    """

    ranks: int
    uar: float
    recall: tuple[float, ...]


def rank_mean(labels: Sequence[int], predicted: Sequence[int], *, ranks: int, num_classes: int) -> RankMean:
    """Compute the means over `ranks` shares, dealt one clip after the other in the order of the test split."""
    clips = list(zip(labels, predicted, strict=True))
    shares = [_recalls(clips[rank::ranks], num_classes) for rank in range(ranks)]
    recall = tuple(sum(of_class) / ranks for of_class in zip(*shares))
    return RankMean(ranks=ranks, uar=sum(recall) / num_classes, recall=recall)


def _recalls(clips: Sequence[tuple[int, int]], num_classes: int) -> list[float]:
    """Recall per class of (label, predicted) pairs; 0 for a class without clips."""
    counts = [sum(label == k for label, _ in clips) for k in range(num_classes)]
    hits = [sum(label == k == answer for label, answer in clips) for k in range(num_classes)]
    return [hit / count if count else 0.0 for hit, count in zip(hits, counts)]


def total(matrices: Sequence[Scores]) -> Scores:
    """Compute the scores of the sum of several confusion matrices over the same classes; every clip weighs the same."""
    size = len(matrices[0].count)
    cells = [[sum(m.confusion[i][j] for m in matrices) for j in range(size)] for i in range(size)]
    return scores(cells)


def percent(share: float | None) -> str:
    """Format a number from 0 to 1 as percent with two decimals; a dash for None."""
    return "–" if share is None else f"{100 * share:.2f}"
