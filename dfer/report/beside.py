"""What stands beside a run's own results: its last checkpoints, and second results of the same weights."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    return Tested("run", "", dict.fromkeys(results, RESULT), results, report.homes)


def beside(report: Report) -> list[Tested]:
    """Return what stands beside the run's own results: the last checkpoints, if all folds have them, and second results
    of the same weights, those of equal data and views together."""
    found = []
    if all(fold.last for fold in report.folds):
        results = {report.part_of(fold): _last(fold) for fold in report.folds}
        found.append(Tested("last", "last checkpoint", {}, results, report.homes))
    groups = [group for alike in _alike(report) for group in _rows(report, alike)]
    for group, name in zip(groups, _names(report.first, groups)):
        files = {part: each.file for part, each in group.items()}
        found.append(Tested("other", name, files, {part: each.result for part, each in group.items()}, report.homes))
    return found


@dataclass(frozen=True, kw_only=True)
class _Second:
    """A second result. part: the weights' fold; file: the result's."""

    part: str
    file: str
    result: FoldResult


def _alike(report: Report) -> list[list[_Second]]:
    """Group second results by what they were tested on and how, whatever their files are named: older versions named
    the tested fold only where it was another one than the training's."""
    found: dict[Any, list[_Second]] = {}
    for part, others in report.others.items():
        for file, result in others.items():
            facts: Any = (result.data, result.manifest_sha256, result.split, seen_as(result))
            if result.trained is None:
                facts = (seen_as(result), file)
            found.setdefault(facts, []).append(_Second(part=part, file=file, result=result))
    return sorted(found.values(), key=lambda each: _order(report.first, each[0]))


def seen_as(result: FoldResult) -> tuple[int, int, str, str, bool]:
    """Return what the model saw of a test clip: results that are alike in it differ in the clips alone."""
    shown = result.protocol
    return shown.num_frames, shown.size, shown.views, shown.presentation, shown.shuffled


def _order(own: FoldResult, each: _Second) -> tuple[bool, str, bool, str]:
    """Sort the same clips first, then by data, what is seen as in the run before variants of it."""
    result = each.result
    return result.trained is not None, result.data, seen_as(result) != seen_as(own), each.file


def _rows(report: Report, group: Sequence[_Second]) -> list[dict[str, _Second]]:
    """Divide results on one test set into rows of one result a part. Where parts were tested on several folds, those on
    the folds of the parts' own numbers are a row, and those on any other fold; of two on one fold the later counts."""
    latest: dict[tuple[str, int], _Second] = {}
    for each in sorted(group, key=lambda each: each.result.finished):
        latest[each.part, each.result.fold] = each
    places = [*report.homes]
    rest = [latest[key] for key in sorted(latest, key=lambda key: (places.index(key[0]), key[1]))]
    if len({each.part for each in rest}) == len(rest):
        return [{each.part: each for each in rest}]
    numbers = {report.part_of(fold): fold.fold for fold in report.folds}
    own = {each.part: each for each in rest if each.result.fold == numbers[each.part]}
    if len(own) < len(numbers):
        own = {}
    rest = [each for each in rest if own.get(each.part) is not each]
    folds = sorted({each.result.fold for each in rest})
    return [
        *([own] if own else []),
        *({each.part: each for each in rest if each.result.fold == fold} for fold in folds),
    ]


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
        rank_mean=None,
        last=None,
        variants={},
    )


def _names(own: FoldResult, groups: Sequence[Mapping[str, _Second]]) -> list[str]:
    """Describe second results so that no two have one name: where the words are not enough, by the tested folds, then
    by the shards."""
    firsts = [next(iter(group.values())) for group in groups]
    names = [name_of(each.result, each.file, own) for each in firsts]
    folds = [", ".join(map(str, sorted({each.result.fold for each in group.values()}))) for group in groups]
    for more in (
        [f"fold{'s' if ',' in each else ''} {each}" for each in folds],
        [f"manifest {each.result.manifest_sha256[:8]}" for each in firsts],
    ):
        known: dict[str, set[str]] = {}
        for name, word in zip(names, more):
            known.setdefault(name, set()).add(word)
        names = [f"{name}; {word}" if len(known[name]) > 1 else name for name, word in zip(names, more)]
    return names


def name_of(result: FoldResult, file: str, own: FoldResult) -> str:
    """Describe a second result: `on ferv39k`, `frames shuffled`, or what its file is named after. own: a result of the
    run's own, from whose views a result on other data may differ too."""
    words = []
    if result.trained is not None:
        words.append(f"on {result.data}")
        if (result.data, result.split) != (own.data, own.split) and result.split not in ("", "published"):
            words.append(f"protocol {result.split}")
        words += differences(result, own)
    if result.protocol.shuffled:
        words.append("frames shuffled")
    return "; ".join(words) or file.rpartition("other-")[2].removesuffix(".json").replace("_", " ")


def differences(result: FoldResult, own: FoldResult) -> list[str]:
    """Name what is seen otherwise than in the run's own results, but for the order of frames."""
    now, before = result.protocol, own.protocol
    words = [
        (now.num_frames, before.num_frames, f"{now.num_frames} frames"),
        (now.size, before.size, f"{now.size} px"),
        (now.views, before.views, now.views),
        (now.presentation, before.presentation, now.presentation or "plain"),
    ]
    return [word for one, other, word in words if one != other]
