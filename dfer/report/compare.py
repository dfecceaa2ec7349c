"""One table over runs: methods, sets, and what stands beside a run's result; tests between runs on the same clips.

Published numbers are rows of their own and are never mixed with ours. Runs that are not alike in what decides a score
share a table here, unlike in a report, but every difference is named under it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfer.errors import UsageError, message
from dfer.evaluation.results import UNTRAINED, FoldResult, Published
from dfer.evaluation.statistics import Calibration, Intervals, McNemar, intervals, mcnemar, strata_of
from dfer.report.beside import beside, means, own_of, rank_means, seen_as
from dfer.report.crossval import Report, Row, summarise
from dfer.report.tested import Kind, Outcomes, Tested
from dfer.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table. run: name of the run; name: what distinguishes these results from the run's own. mean, std:
    over folds and seeds. intervals: of the mean over folds; None if they cannot be computed. ranks: number of ranks and
    the scores as these would have computed them, which some papers print."""

    run: str
    tested: Tested
    mean: Row
    std: Row | None
    coverage: str
    intervals: Intervals | None
    calibration: Calibration | None
    published: Published | None
    ranks: tuple[int, Row] | None = None

    @property
    def kind(self) -> Kind:
        return self.tested.kind

    @property
    def label(self) -> str:
        """Name of the row: the run, what distinguishes the results, and the warning of their protocol if it has one."""
        warning = getattr(self.first.protocol, "warning", "")
        return ", ".join(text for text in (self.run, self.tested.name, warning) if text)

    @property
    def first(self) -> FoldResult:
        return self.tested.first

    @property
    def seeds(self) -> list[int]:
        """Seeds of the results."""
        return sorted({result.seed for result in self.tested.results.values()})


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A row without a result yet. dataset: name of the set's shards, such as `dfew`; classes: those that are tested,
    empty for any. warning: such as LEAKS LABEL."""

    label: str
    dataset: str
    published: Published | None
    classes: tuple[str, ...] = ()
    warning: str = ""

    def belongs(self, data: str, classes: Sequence[str]) -> bool:
        """Whether the row's results would be on these data with these classes, in any order."""
        same = not self.classes or not classes or {*self.classes} == {*classes}
        return self.dataset.casefold() == data.casefold() and same


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows on the same clips. difference: second minus first, with a paired bootstrap interval; test: McNemar's, of
    the first seed of each. folds: on which both were tested."""

    first: str
    second: str
    folds: tuple[int, ...]
    clips: int
    difference: Intervals
    test: McNemar


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one data set and class list. alike: what decides a score and is the same in all runs, in a sentence;
    unlike: what they differ in, a sentence each. notes: such as why two rows have no test between them."""

    data: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    pending: tuple[Pending, ...]
    pairs: tuple[Pair, ...]
    alike: str
    unlike: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """UAR and WAR of one row of the matrix on one data set. warning: such as LEAKS LABEL."""

    uar: float | None
    war: float | None
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a comparison shows. matrix: (run, data it was trained on) -> data it was tested on -> scores; of
    runs that were tested on other data too."""

    tables: tuple[Table, ...]
    matrix: Mapping[tuple[str, str], Mapping[str, Cell]]


def compare(runs: Sequence[Folder], kind: type, *, pending: Sequence[Pending] = ()) -> Comparison:
    """Read runs and compare them. kind: dataclass of their configurations.

    Raises:
        CheckpointError: a run has no result yet, or a file is damaged.
        UsageError: there is nothing to compare, or a run is named twice.
    """
    if not runs and not pending:
        do = "Name run folders, or rows with --rows or --set."
        raise UsageError(message("compare", expected="at least one run or row", got="none", do=do))
    names = distinct([run.url.rstrip("/") for run in runs])
    entries = [entry for name, run in zip(names, runs) for entry in _entries(name, summarise(run, kind))]
    groups: dict[tuple[str, tuple[str, ...]], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.first.data, entry.first.classes), []).append(entry)
    tables = [_table(data, classes, rows, pending) for (data, classes), rows in groups.items()]
    waiting = [row for row in pending if not any(row.belongs(*group) for group in groups)]
    alone = dict.fromkeys((row.dataset, row.classes) for row in waiting)
    tables += [_alone(dataset, classes, waiting) for dataset, classes in alone]
    return Comparison(tables=tuple(tables), matrix=_matrix(entries))


def distinct(urls: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart, by whole names of folders.

    Raises:
        UsageError: a path is given twice.
    """
    twice = next((url for url in urls if urls.count(url) > 1), None)
    if twice is not None:
        raise UsageError(message("compare", expected="every run once", got=f"{twice} twice", do="Leave one out."))
    parts = [url.split("/") for url in urls]
    size = 1
    while len({*(end := ["/".join(part[-size:]) for part in parts])}) < len(urls):
        size += 1
    return end if urls else []


def _entries(name: str, report: Report) -> list[Entry]:
    """Make the rows of one run: its own result, the last checkpoint, second results."""
    own = own_of(report)
    rows = [_entry(name, own, report, mean=report.mean, std=report.std, coverage=report.coverage)]
    for each in beside(report):
        many = len(each.results)
        whole = each.kind == "last" or many == len(report.folds)
        coverage = report.coverage if whole else f"{many} of {len(report.folds)} results"
        mean, std = means(each)
        rows.append(_entry(name, each, report, mean=mean, std=std, coverage=coverage))
    return rows


def _entry(name: str, tested: Tested, report: Report, *, mean: Row, std: Row | None, coverage: str) -> Entry:
    return Entry(
        run=name,
        tested=tested,
        mean=mean,
        std=std,
        coverage=coverage,
        intervals=tested.intervals(folds=True) if tested.even else None,
        calibration=tested.calibration,
        published=report.published if tested.kind == "run" else None,
        ranks=rank_means(tested.results.values()) if tested.kind == "run" else None,
    )


def _alone(dataset: str, classes: tuple[str, ...], waiting: Sequence[Pending]) -> Table:
    """Make the table of rows without any result, named also by the number of classes where a data set has several."""
    rows = [row for row in waiting if (row.dataset, row.classes) == (dataset, classes)]
    found = _table(dataset, (), [], rows)
    several = len({row.classes for row in waiting if row.dataset == dataset}) > 1
    return replace(found, data=f"{dataset}, {len(classes)} classes") if several else found


def _table(data: str, classes: tuple[str, ...], entries: Sequence[Entry], pending: Sequence[Pending]) -> Table:
    pairs, untested = [], []
    for one, other in itertools.combinations([entry for entry in entries if entry.tested.files], 2):
        if one.run != other.run and one.tested.name != other.tested.name:
            continue  # two differences at once answer no question
        found = pair(one, other)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            untested.append(found)
    return Table(
        data=data,
        classes=classes,
        entries=tuple(entries),
        pending=tuple(row for row in pending if row.belongs(data, classes)),
        pairs=tuple(pairs),
        alike=alike(entries),
        unlike=unlike(entries),
        notes=(*untested, *_selection_notes(entries)),
    )


def pair(one: Entry, other: Entry) -> Pair | str:
    """Compare two rows clip by clip on the folds that both have; or say why they cannot be compared."""
    rows = (one.tested.outcomes, other.tested.outcomes)
    both = f"{one.label} and {other.label}"
    if rows[0] is None or rows[1] is None:
        lacks = ", ".join(entry.label for entry, row in zip((one, other), rows) if row is None)
        return f"No test between {both}: no predictions of the same clips in {lacks}."
    folds = tuple(sorted(rows[0].keys() & rows[1].keys()))
    aligned = {fold: _aligned(rows[0][fold], rows[1][fold]) for fold in folds}
    if not folds or any(order is None for order in aligned.values()):
        return f"No test between {both}: they were tested on different clips."
    strata, firsts = {}, []
    for fold, order in aligned.items():
        left, right = rows[0][fold], rows[1][fold]
        strata[fold] = (left.labels.tolist(), (right.values[order] - left.values).tolist())
        firsts.append((left.first, right.first[order]))
    test = mcnemar(*(np.concatenate(each).tolist() for each in zip(*firsts)))
    clips = sum(len(rows[0][fold].keys) for fold in folds)
    difference = intervals(strata_of(strata), folds=True)
    return Pair(first=one.label, second=other.label, folds=folds, clips=clips, difference=difference, test=test)


def _aligned(one: Outcomes, other: Outcomes) -> np.ndarray | None:
    """Return the places of the first's clips in the second, int64 [N]; None if clips or labels differ."""
    place = {key: row for row, key in enumerate(other.keys)}
    if place.keys() != {*one.keys}:
        return None
    order = np.array([place[key] for key in one.keys], np.int64)
    return order if np.array_equal(other.labels[order], one.labels) else None


FACTS: dict[str, Callable[[Entry], str]] = {
    "selection": lambda entry: entry.first.selection,
    "split protocol": lambda entry: entry.first.split or "not recorded",
    "training and test": lambda entry: _overlap(entry.first),
    "folds": lambda entry: entry.coverage.partition(",")[0],
    "seeds": lambda entry: ", ".join(map(str, entry.seeds)),
    "frames": lambda entry: str(entry.first.protocol.num_frames),
    "size": lambda entry: f"{entry.first.protocol.size} px",
    "views": lambda entry: entry.first.protocol.views,
    "presentation": lambda entry: getattr(entry.first.protocol, "presentation", "") or "plain",
    "input normalisation": lambda entry: entry.first.protocol.normalisation,
    "test clips": lambda entry: f"{entry.tested.pooled.num_clips // max(1, len(entry.seeds)):,}",
    "epochs": lambda entry: str(entry.first.epochs) if entry.first.epochs else "none, the weights as they are",
    "early stop": lambda entry: _stopped(entry),
    "training augmentation": lambda entry: entry.first.protocol.augment,
    "training targets": lambda entry: entry.first.protocol.targets or "labels",
    "weights evaluated": lambda entry: entry.first.protocol.weights or "those of training",
    "training data": lambda entry: _trained_on(entry.first),
    "shards": lambda entry: f"manifest {entry.first.manifest_sha256[:8]}",
    "layout of a step": lambda entry: entry.first.layout or "free",
    "start": lambda entry: "another run" if entry.first.start else "its own",
}
"""What decides a score besides the method, by name."""


def _trained_on(result: FoldResult) -> str:
    """Name the data of the training, which are not those that a second result was tested on."""
    if result.trained is not None:
        return result.trained.data
    return " + ".join((result.data, *result.joined)) if result.epochs else UNTRAINED


def _overlap(result: FoldResult) -> str:
    return result.overlap.words(result.num_folds) if result.overlap else "overlap not recorded"


def _stopped(entry: Entry) -> str:
    every = entry.tested.results.values()
    count = sum(result.stopped > 0 for result in every)
    return f"in {count} of {len(every)} results" if count else "none"


def _by_value(entries: Sequence[Entry]) -> dict[str, dict[str, list[str]]]:
    """Return the rows with each value of each fact; of the runs' own results, if there are some."""
    own = [entry for entry in entries if entry.kind == "run"] or entries
    found: dict[str, dict[str, list[str]]] = {}
    for what, fact in FACTS.items():
        for entry in own:
            found.setdefault(what, {}).setdefault(fact(entry), []).append(entry.label)
    return found


def alike(entries: Sequence[Entry]) -> str:
    """Name the facts in which all runs agree; empty without runs."""
    same = [f"{what} {next(iter(values))}" for what, values in _by_value(entries).items() if len(values) == 1]
    return f"Of all runs: {'; '.join(same)}." if same else ""


def unlike(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Name the facts in which the runs' own results differ, with the runs of each value."""
    found = []
    for what, values in _by_value(entries).items():
        if len(values) > 1:
            listed = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            found.append(f"Not alike in {what}: {listed}.")
    return tuple(found)


def _selection_notes(entries: Sequence[Entry]) -> list[str]:
    return [
        f"{entry.label}: the published numbers stand for selection {entry.published.selection}, ours for "
        f"{entry.first.selection}."
        for entry in entries
        if entry.published is not None and entry.published.unlike(entry.first)
    ]


def _matrix(entries: Sequence[Entry]) -> dict[tuple[str, str], dict[str, Cell]]:
    """Lay out the scores of runs that were tested on other data: trained on x tested on. Only what was seen as in the
    run's own results is shown; of two builds of one set, the one that was tested later."""
    crossed = {entry.run for entry in entries if entry.first.trained is not None}
    own = {entry.run: entry for entry in entries if entry.kind == "run"}
    shown = [
        entry
        for entry in entries
        if entry.run in crossed
        and (entry.kind == "run" or entry.first.trained is not None)
        and seen_as(entry.first) == seen_as(own[entry.run].first)
    ]
    columns = _columns(shown)
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    latest = sorted(zip(shown, columns), key=lambda each: each[0].first.finished, reverse=True)
    for entry, column in sorted(latest, key=lambda each: each[0].kind != "run"):
        row = found.setdefault((entry.run, _trained_on(entry.first)), {})
        cell = Cell(uar=entry.mean.uar, war=entry.mean.war, warning=entry.first.protocol.warning)
        row.setdefault(column, cell)
    order = dict.fromkeys((entry.run, _trained_on(entry.first)) for entry in shown)
    return {key: {name: found[key][name] for name in dict.fromkeys(columns) if name in found[key]} for key in order}


def _columns(entries: Sequence[Entry]) -> list[str]:
    """Name what each row was tested on: the data and, where they are not the same for all rows of these data, the
    protocol, the number of classes with test clips and the number of clips."""
    splits: dict[str, set[str]] = {}
    for entry in entries:
        splits.setdefault(entry.first.data, set()).update({entry.first.split} - {""})
    facts = []
    for entry in entries:
        first, known = entry.first, splits[entry.first.data]
        split = next(iter(known)) if not first.split and len(known) == 1 else first.split
        facts.append((first.data, (split, *_tested_clips(entry))))
    names = []
    for data, each in facts:
        unlike = [len({*values}) > 1 for values in zip(*(other for name, other in facts if name == data))]
        words = (f"protocol {each[0] or 'not recorded'}", f"{each[1]} classes", f"{each[2]:,} clips")
        names.append(", ".join([data, *(word for word, differs in zip(words, unlike) if differs)]))
    return names


def _tested_clips(entry: Entry) -> tuple[int, int]:
    """Count the classes with test clips and the clips; a fold that several parts were tested on counts once."""
    results = [entry.tested.results[parts[0]] for parts in entry.tested.groups.values()]
    counts = [sum(of_class) for of_class in zip(*(result.count for result in results))]
    return sum(map(bool, counts)), sum(counts)
