"""What stands beside a run's own results: its last checkpoints, and second results of the same weights."""

from collections.abc import Collection
from dataclasses import replace

from dfer.evaluation.results import FoldResult
from dfer.report.crossval import Report, Row, average, deviation
from dfer.report.tested import Tested
from dfer.run.layout import RESULT


def means(tested: Tested) -> tuple[Row, Row | None]:
    """Return mean and deviation over all results."""
    found = [each.scores for each in tested.results.values()]
    return average(found), deviation(found)


def rank_means(results: Collection[FoldResult]) -> tuple[int, Row] | None:
    """Average over results UAR and recalls as ranks would have computed them, and WAR.

    Returns the number of ranks and the means; None unless every result has them, of as many ranks.
    """
    found = [result.rank_mean for result in results if result.rank_mean is not None]
    if not found or len(found) < len(results) or len({mean.ranks for mean in found}) != 1:
        return None
    recall = tuple(sum(of_class) / len(found) for of_class in zip(*(mean.recall for mean in found)))
    uar, war = (sum(values) / len(found) for values in ([m.uar for m in found], [r.war for r in results]))
    return found[0].ranks, Row(recall=recall, uar=uar, war=war)


def own_of(report: Report) -> Tested:
    """Return the run's own results."""
    results = {report.part_of(fold): fold for fold in report.folds}
    return Tested("run", "", RESULT, results, report.homes)


def beside(report: Report) -> list[Tested]:
    """Return what stands beside the run's own results: the last checkpoints, if all folds have them, and second results
    of the same weights."""
    found = []
    if all(fold.last for fold in report.folds):
        results = {report.part_of(fold): _last(fold) for fold in report.folds}
        found.append(Tested("last", "last checkpoint", "", results, report.homes))
    for file in sorted({file for others in report.others.values() for file in others}):
        results = {part: others[file] for part, others in report.others.items() if file in others}
        found.append(Tested("other", name_of(next(iter(results.values())), file), file, results, report.homes))
    return found


def _last(fold: FoldResult) -> FoldResult:
    """Return the result of the last checkpoint in the form of a fold's own."""
    assert fold.last is not None
    found, last = fold.last.scores, fold.last
    return replace(
        fold,
        confusion=found.confusion,
        war=found.war,
        uar=found.uar,
        recall=found.recall,
        selection="last",
        step=last.step,
        epoch=last.epoch,
        checkpoint=f"step_{last.step:08d}",
        last=None,
        variants={},
    )


def name_of(result: FoldResult, file: str) -> str:
    """Describe a second result: `on ferv39k`, `frames shuffled`, or what its file is named after."""
    words = []
    if result.trained is not None:
        words.append(f"on {result.data}")
    if result.protocol.shuffled:
        words.append("frames shuffled")
    return "; ".join(words) or file.rpartition("other-")[2].removesuffix(".json").replace("_", " ")
