"""The contents of a report: read the folds of a run folder, check that they are comparable, average and pool them.

A table may only hold results with the same data set, class list, method, number of epochs, selection rule, protocol,
shard folder and configuration; other results are refused, naming the folds that differ. A fold whose training is not
complete is left out and named.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.choices import LEAKS_LABEL
from dfer.config import ConfigProblem, from_plain
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import FoldResult, Published
from dfer.evaluation.scores import Scores, total
from dfer.report.folds import SEED_FOLDER, Fold, fold_folders, incomplete, read_fold
from dfer.report.mixture import refuse_mixture
from dfer.report.tested import ReportIntervals, Tested, intervals_of
from dfer.run.layout import RESULT, finished
from dfer.storage import Folder

LEAK_NOTE = (
    f"{LEAKS_LABEL}: the model was given the true label of every test clip. These numbers say nothing about "
    "recognition and compare with no other method's."
)

Curve = list[tuple[float, float]]
"""Pairs (step, value), ordered by step."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; values are fractions from 0 to 1."""

    recall: tuple[float | None, ...]
    uar: float | None
    war: float | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Scores of a variant, further logits of the method: mean over folds and seeds, deviation over folds, and scores of
    the summed counts."""

    mean: Row
    std: Row | None
    pooled: Scores


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means and deviations over folds. covered: number of folds that every seed has; only these are used below.

    mean: over folds and seeds. std: deviation over folds of the means over seeds. by_seed: means over folds for each
    seed, empty if folds were not repeated; seed_std: their deviation. A deviation of fewer than two values is None.
    """

    covered: int
    mean: Row
    std: Row | None
    by_seed: dict[int, Row]
    seed_std: Row | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the tables and pages show.

    folds: by seed and number. repeated: whether the folds were trained with several seeds, each in its own folder.
    missing: names of the parts without a result; incomplete: those of them with an evaluation from before the end of
    training. means: over folds and seeds. variants: by name. curves: by metric, then name of the part. homes, others:
    folders, and second results by file, by name of the part.
    """

    name: str
    folds: tuple[FoldResult, ...]
    repeated: bool
    missing: tuple[str, ...]
    incomplete: tuple[str, ...] = ()
    means: Means
    pooled: Scores
    variants: dict[str, Variant]
    published: Published | None
    notes: tuple[str, ...]
    config: str
    environments: dict[str, str]
    curves: dict[str, dict[str, Curve]]
    intervals: ReportIntervals
    homes: dict[str, Folder]
    others: dict[str, Mapping[str, FoldResult]]

    @property
    def first(self) -> FoldResult:
        """Any fold, to read values that are equal in all folds."""
        return self.folds[0]

    @property
    def num_folds(self) -> int:
        return self.first.num_folds

    @property
    def seeds(self) -> list[int]:
        return sorted({fold.seed for fold in self.folds})

    @property
    def mean(self) -> Row:
        return self.means.mean

    @property
    def std(self) -> Row | None:
        return self.means.std

    @property
    def warning(self) -> str:
        """What must stand beside every number of ours: LEAKS LABEL, or nothing."""
        return self.first.protocol.warning

    @property
    def coverage(self) -> str:
        """Describe the folds covered: `5 of 5 folds`, or the kind of single split; and the number of repetitions."""
        covered = "fixed split" if self.num_folds == 1 else f"{self.means.covered} of {self.num_folds} folds"
        return f"{covered}, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}" if self.repeated else covered

    def part_of(self, fold: FoldResult) -> str:
        """Return the name of the part with this result."""
        return part_name(fold, repeated=self.repeated)


def part_name(fold: FoldResult, *, repeated: bool) -> str:
    """Return `fold_3`, or `seed_2/fold_3` in a cross-validation with several seeds."""
    return f"seed_{fold.seed}/fold_{fold.fold}" if repeated else f"fold_{fold.fold}"


def label(part: str) -> str:
    """Format the name of a part for readers: `seed 2, fold 3`."""
    return part.replace("_", " ").replace("/", ", ")


def summarise(run_folder: Folder, kind: type) -> Report:
    """Read a run folder, or the fold_* folders of a cross-validation, into a Report.

    kind: dataclass of their configurations, whose fields declare which keys may differ between folds.

    Raises:
        CheckpointError: there are no results yet, a file is damaged, or the folds are not comparable.
    """
    folders = fold_folders(run_folder) or {run_folder.name: run_folder}
    complete = {name: finished(folder) for name, folder in folders.items()}
    done = [read_fold(name, folder, kind) for name, folder in folders.items() if complete[name]]
    between = [found for name, folder in folders.items() if not complete[name] and (found := incomplete(folder))]
    if not done:
        do = "Finish the run, then ask for the report."
        got = "; ".join(_progress(result) for _, result in between) or "none"
        expected = f"a {RESULT} of a complete training in the run or in fold_*/"
        raise CheckpointError(message(run_folder, expected=expected, got=got, do=do))
    refuse_mixture(run_folder, done)
    folds = tuple(fold.result for fold in done)
    seeds = [
        *dict.fromkeys(
            int(match[1])
            for name in folders
            if (match := SEED_FOLDER.fullmatch(name.partition("/")[0])) and "/" in name
        )
    ]
    means = means_of(folds, seeds)
    homes = {part_name(fold.result, repeated=bool(seeds)): fold.home for fold in done}
    begun = _missing(folds, seeds)
    later = sorted({seed for fold in done for seed in _planned_seeds(fold)} - {*seeds}) if seeds else []
    missing = (*begun, *(f"seed_{seed}/fold_{k}" for seed in later for k in range(1, folds[0].num_folds + 1)))
    published, left_out = _agreed_published(done)
    evaluated = {part_name(result, repeated=bool(seeds)) for _, result in between}
    return Report(
        name=(run_folder.local.resolve() if run_folder.local else run_folder).name,
        folds=folds,
        repeated=bool(seeds),
        missing=missing,
        incomplete=tuple(name for name in missing if name in evaluated),
        means=means,
        pooled=total([fold.scores for fold in folds]),
        variants={name: _variant(name, folds, seeds) for name in folds[0].variants},
        published=None if folds[0].generated else published,
        notes=(
            *_incomplete_notes(between),
            *[f"No result yet for seed {seed}: the means leave it out." for seed in later],
            *left_out,
            *_notes(done, begun, means, published),
            *_change_notes(done),
        ),
        config=done[0].config_text,
        environments=_environments(done),
        curves=_curves(done, repeated=bool(seeds)),
        intervals=intervals_of(Tested("run", "", dict.fromkeys(homes, RESULT), dict(zip(homes, folds)), homes)),
        homes=homes,
        others={part_name(fold.result, repeated=bool(seeds)): fold.others for fold in done},
    )


def _planned_seeds(fold: Fold) -> list[int]:
    """Return the seeds of the cross-validation that trained a fold, as its configuration records them."""
    listed = fold.config.get("seeds")
    return [seed for seed in listed if isinstance(seed, int)] if isinstance(listed, list) else []


def _missing(folds: Sequence[FoldResult], seeds: Sequence[int]) -> tuple[str, ...]:
    there = {part_name(fold, repeated=bool(seeds)) for fold in folds}
    numbers = range(1, folds[0].num_folds + 1)
    names = [f"seed_{seed}/fold_{k}" for seed in seeds for k in numbers] if seeds else [f"fold_{k}" for k in numbers]
    return tuple(name for name in names if name not in there)


def _variant(name: str, folds: Sequence[FoldResult], seeds: Sequence[int]) -> Variant:
    means = means_of(folds, seeds, lambda fold: fold.variants[name])
    return Variant(mean=means.mean, std=means.std, pooled=total([fold.variants[name] for fold in folds]))


def means_of(
    folds: Sequence[FoldResult], seeds: Sequence[int], of: Callable[[FoldResult], Scores] = lambda fold: fold.scores
) -> Means:
    """Average over the folds that every seed has, so that the means of seeds, and of folds, cover the same clips.

    seeds: of the repetitions, empty if folds were not repeated. of: returns the scores of a fold to average.
    """
    tables = [[fold for fold in folds if fold.seed == seed] for seed in seeds] if seeds else [[*folds]]
    common = set.intersection(*({fold.fold for fold in table} for table in tables))
    if not common:
        nothing = Row(recall=(None,) * len(folds[0].classes), uar=None, war=None)
        return Means(covered=0, mean=nothing, std=None, by_seed={}, seed_std=None)
    rows = [[of(fold) for fold in table if fold.fold in common] for table in tables]
    by_fold = [average(repeats) for repeats in zip(*rows, strict=True)]
    by_seed = {seed: average(row) for seed, row in zip(seeds, rows)}
    return Means(
        covered=len(common),
        mean=average(by_fold),
        std=deviation(by_fold),
        by_seed=by_seed,
        seed_std=deviation([*by_seed.values()]),
    )


def average(folds: Sequence[Scores | Row]) -> Row:
    """Average over folds or seeds; the recall of a class only over those with test clips of the class."""
    return _over(folds, statistics.fmean, at_least=1)


def deviation(folds: Sequence[Scores | Row]) -> Row | None:
    """Compute the sample standard deviation (n - 1) over folds or seeds; None with fewer than two."""
    return _over(folds, statistics.stdev, at_least=2) if len(folds) > 1 else None


def _over(folds: Sequence[Scores | Row], function: Any, *, at_least: int) -> Row:
    def of(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return function(there) if len(there) >= at_least else None

    columns = zip(*(fold.recall for fold in folds))
    return Row(
        recall=tuple(of(column) for column in columns),
        uar=of([fold.uar for fold in folds]),
        war=of([fold.war for fold in folds]),
    )


def _name(fold: Fold) -> str:
    """Return the name of a fold for a note; it comes from the result, since a single run's folder may have any name."""
    return label(part_name(fold.result, repeated="/" in fold.name)).capitalize()


def _progress(result: FoldResult) -> str:
    """Describe the progress of a training at its evaluation."""
    if result.complete:
        return f"fold {result.fold} finished with {result.epochs} epochs, and more are configured now"
    return f"fold {result.fold} at epoch {result.epoch} of {result.epochs}"


def _incomplete_notes(between: Sequence[tuple[str, FoldResult]]) -> list[str]:
    return [f"Training incomplete, left out: {_progress(result)} ({where})." for where, result in between]


def _change_notes(done: Sequence[Fold]) -> list[str]:
    """Write the notes on configuration keys that changed during a run, and on those that differ between folds."""
    notes = [
        f"{_name(fold)} went on with {', '.join(map(str, fold.result.changed))}."
        for fold in done
        if fold.result.changed
    ]
    for key in dict.fromkeys(key for fold in done for key in fold.noted):
        values = {fold.name: fold.noted.get(key) for fold in done}
        if len({*map(repr, values.values())}) > 1:
            listed = ", ".join(f"{value} ({name})" for name, value in values.items())
            notes.append(f"The folds differ in {key}: {listed}.")
    layouts = {fold.name: fold.result.layout for fold in done}
    if len({*layouts.values()}) > 1:
        listed = ", ".join(f"{layout or 'not recorded'} ({name})" for name, layout in layouts.items())
        why = "clips of a micro-batch depend on each other in this training"
        notes.append(f"The folds differ in processes or micro-batch: {listed}; {why}.")
    return notes


def _agreed_published(done: Sequence[Fold]) -> tuple[Published | None, list[str]]:
    """Return the published numbers if they are the same in all folds and describe all of them, else None; and a note
    why they are left out. They may be added to the configuration when a run is resumed."""
    first, *others = [_published(fold) for fold in done]
    why = next(("the configurations of the folds name different ones" for other in others if other != first), "")
    if first is not None and not why:
        why = next(filter(None, (_undescribed(first, fold) for fold in done)), "")
    return (None, [f"Published numbers are left out: {why}."]) if why else (first, [])


def _undescribed(published: Published, fold: Fold) -> str:
    """Say why the numbers of a row of a published table do not describe a fold; empty if they do, and for numbers of
    the user's own, which name no data set."""
    result, model = fold.result, fold.config.get("model")
    start = model.get("start") if isinstance(model, Mapping) else None
    if not published.dataset or result.generated:
        return ""
    if published.dataset != result.dataset:
        return f"they hold for {published.dataset}, the test clips are of {result.dataset}"
    if start is not None and (result.epochs or published.selection == "none"):
        return f"their row has no model.start, this run began from {start}"
    if start is None and not result.epochs and published.selection != "none":
        return "they are of a training, these weights were not trained"
    return _other_layout(fold)


def _other_layout(fold: Fold) -> str:
    """Say in which layout a row was trained and a fold was not, where layouts decide what a training computes. The
    rows' trainings took a whole batch on one device."""
    result, batch = fold.result, fold.config.get("batch")
    if not result.layout or (result.processes, result.micro_batch) == (1, batch):
        return ""
    return f"their row took the batch of {batch} whole on 1 process, this run on {result.layout}"


def _published(fold: Fold) -> Published | None:
    plain = fold.config.get("published")
    if plain is None:
        return None
    try:
        return from_plain(Published, plain, "published")
    except ConfigProblem as problem:
        raise CheckpointError(f"{fold.name}/config.yaml: {problem}") from problem


def _notes(done: Sequence[Fold], missing: Sequence[str], means: Means, published: Published | None) -> list[str]:
    first, notes = done[0].result, []
    if first.protocol.leaks_label:
        notes.append(LEAK_NOTE)
    notes += [f"{_name(fold)}: {fold.result.remark}." for fold in done if fold.result.remark]
    if missing:
        every = ", those that every seed has" if len(means.by_seed) > 1 or not means.covered else ""
        cover = f"means cover {means.covered} of {first.num_folds} folds{every}"
        notes.append(f"No result yet for {', '.join(map(label, missing))}: {cover}.")
    for fold in done:
        empty = [fold.result.classes[k] for k in fold.result.scores.empty_classes]
        if empty:
            where = _name(fold) if first.num_folds > 1 else "The test split"
            notes.append(f"{where} has no test clips of {', '.join(empty)}: UAR averages over the other classes.")
    if first.excluded:
        clips, are = ("1 clip", "is") if first.excluded == 1 else (f"{first.excluded} clips", "are")
        notes.append(f"{clips} of the split files {are} not in the shards; `dfer-shards show` names them.")
    if published and first.generated:
        notes.append(f"Published numbers are left out: they hold for {first.dataset} itself, these are {first.data}.")
    elif published and published.unlike(first):
        notes.append(
            f"Not like for like: the published numbers stand for selection {published.selection}, "
            f"ours for {first.selection}."
        )
    if any(fold.recorded.damaged for fold in done):
        lines = ", ".join(f"{fold.name}: {fold.recorded.damaged}" for fold in done if fold.recorded.damaged)
        notes.append(f"Lines of metrics.jsonl that could not be read and are missing from the curves: {lines}.")
    if stale := [fold.home.where(name) for fold in done for name in fold.stale]:
        notes.append(f"Second results of other checkpoints are left out: {', '.join(stale)}.")
    cut = ", ".join(fold.name for fold in done if fold.recorded.cut)
    if cut:
        notes.append(f"The curves leave out the end of metrics.jsonl, which is longer than a report takes: {cut}.")
    return notes


def _environments(done: Sequence[Fold]) -> dict[str, str]:
    """Map names of folds to their environment text; folds with equal texts share an entry."""
    names: dict[str, list[str]] = {}
    for fold in done:
        if fold.environment:
            names.setdefault(fold.environment, []).append(fold.name)
    return {", ".join(folds): text for text, folds in names.items()}


def _curves(done: Sequence[Fold], *, repeated: bool) -> dict[str, dict[str, Curve]]:
    """Return the curves by metric, such as `train/lr/image`, and name of the part."""
    found: dict[str, dict[str, Curve]] = {}
    for fold in done:
        for key, points in fold.recorded.points.items():
            found.setdefault(key, {})[part_name(fold.result, repeated=repeated)] = sorted(points.items())
    return dict(sorted(found.items()))
