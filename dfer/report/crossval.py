"""What a report says, before it is drawn: folds read from a run folder, checked to be alike, averaged and pooled.

Only results of one data set, class list, method, number of epochs, selection rule, protocol, shard folder and
configuration share a table; anything else is refused with the folds that differ. A fold whose training is not complete
is left out and named.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import FoldResult, Published, read_result
from dfer.evaluation.scores import Scores, total
from dfer.report.recorded import Recorded, read_recorded
from dfer.run.changes import computed, noted
from dfer.run.layout import RESULT, evaluations, finished
from dfer.storage import Folder
from dfer.yaml_text import YamlProblem, parse

FOLD_FOLDER = re.compile(r"fold_([0-9]{1,3})")
MAX_CONFIG_BYTES = 2**20
PER_FOLD_KEYS = ("fold", "seed")
"""Configuration keys that may differ between the folds of one table besides the free ones and those whose
change results note; seeds are named in it, the others in a note where they differ."""

Curve = list[tuple[float, float]]
"""(step, value), in the order of the steps."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, as shares from 0 to 1."""

    recall: tuple[float | None, ...]
    uar: float | None
    war: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several folds in one: mean and deviation over them (None with fewer than two), and the sum of their counts."""

    mean: Row
    std: Row | None
    pooled: Scores


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the tables and pages show. std is None with fewer than two folds; curves by metric, then fold.

    missing: folds without a result; incomplete: those of them whose training has been evaluated before its end.
    variants: of the method's other answers, by name.
    """

    name: str
    folds: tuple[FoldResult, ...]
    missing: tuple[int, ...]
    incomplete: tuple[int, ...] = ()
    mean: Row
    std: Row | None
    pooled: Scores
    variants: dict[str, Summary]
    published: Published | None
    notes: tuple[str, ...]
    config: str
    environments: dict[str, str]
    curves: dict[str, dict[int, Curve]]

    @property
    def first(self) -> FoldResult:
        """Any fold, for what all folds share."""
        return self.folds[0]

    @property
    def num_folds(self) -> int:
        return self.first.num_folds

    @property
    def seeds(self) -> list[int]:
        return sorted({fold.seed for fold in self.folds})

    @property
    def coverage(self) -> str:
        """`5 of 5 folds`, or which kind of single split it is."""
        return "fixed split" if self.num_folds == 1 else f"{len(self.folds)} of {self.num_folds} folds"


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """One fold's folder as read."""

    name: str
    result: FoldResult
    config: Mapping[str, Any]
    config_text: str
    environment: str
    recorded: Recorded
    computed: Mapping[str, Any]
    noted: Mapping[str, Any]


def summarise(run_folder: Folder, kind: type) -> Report:
    """Read a run folder, or the fold_* folders of a cross-validation, into a Report.

    kind: dataclass of their configurations, whose keys say what may differ between folds.

    Raises:
        CheckpointError: no results yet, a damaged file, or folds that must not stand in one table.
    """
    folders = fold_folders(run_folder) or [run_folder]
    complete = [finished(folder) for folder in folders]
    done = [_read_fold(folder, kind) for folder, is_done in zip(folders, complete) if is_done]
    between = [found for folder, is_done in zip(folders, complete) if not is_done and (found := _incomplete(folder))]
    if not done:
        do = "Finish the run, then ask for the report."
        got = "; ".join(_progress(result) for _, result in between) or "none"
        expected = f"a {RESULT} of a complete training in the run or in fold_*/"
        raise CheckpointError(message(run_folder, expected=expected, got=got, do=do))
    _refuse_mixture(run_folder, done)
    done.sort(key=lambda fold: fold.result.fold)
    folds = tuple(fold.result for fold in done)
    missing = tuple(sorted(set(range(1, folds[0].num_folds + 1)) - {fold.fold for fold in folds}))
    published = _agreed_published(done)
    return Report(
        name=(run_folder.local.resolve() if run_folder.local else run_folder).name,
        folds=folds,
        missing=missing,
        incomplete=tuple(sorted({result.fold for _, result in between} & {*missing})),
        mean=average(folds),
        std=deviation(folds),
        pooled=total([fold.scores for fold in folds]),
        variants={name: _summary([fold.variants[name] for fold in folds]) for name in folds[0].variants},
        published=None if folds[0].generated else published,
        notes=(*_incomplete_notes(between), *_notes(done, missing, published), *_change_notes(done)),
        config=done[0].config_text,
        environments=_environments(done),
        curves=_curves(done),
    )


def fold_folders(run_folder: Folder) -> list[Folder]:
    """fold_1, fold_2, ... of a cross-validation run, by number."""
    found = [FOLD_FOLDER.fullmatch(name) for name in run_folder.folders()]
    return [run_folder / match[0] for match in sorted((m for m in found if m), key=lambda m: int(m[1]))]


def _summary(folds: Sequence[Scores]) -> Summary:
    return Summary(mean=average(folds), std=deviation(folds), pooled=total(folds))


def average(folds: Sequence[FoldResult | Scores]) -> Row:
    """Mean over folds; a class's mean runs over the folds that have test clips of it."""
    return _over(folds, statistics.fmean, at_least=1)


def deviation(folds: Sequence[FoldResult | Scores]) -> Row | None:
    """Sample standard deviation (n - 1) over folds; None with fewer than two."""
    return _over(folds, statistics.stdev, at_least=2) if len(folds) > 1 else None


def _over(folds: Sequence[FoldResult | Scores], function: Any, *, at_least: int) -> Row:
    def of(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return function(there) if len(there) >= at_least else None

    columns = zip(*(fold.recall for fold in folds))
    return Row(
        recall=tuple(of(column) for column in columns),
        uar=of([fold.uar for fold in folds]),
        war=of([fold.war for fold in folds]),
    )


def _read_fold(folder: Folder, kind: type) -> _Fold:
    result = read_result(folder)
    match = FOLD_FOLDER.fullmatch(folder.name)
    if match and int(match[1]) != result.fold:
        do = "Put the folder back under its own name."
        expected = f"the result of fold {int(match[1])}"
        raise CheckpointError(message(folder.where(RESULT), expected=expected, got=f"fold {result.fold}", do=do))
    config, text = _read_config(folder, "config.yaml")
    recorded = read_recorded(folder, "metrics.jsonl")
    environment = _read_environment(folder, "environment.json")
    return _Fold(
        name=folder.name,
        result=result,
        config=config,
        config_text=text,
        environment=environment,
        recorded=recorded,
        computed=computed(kind, config),
        noted=noted(kind, config),
    )


def _incomplete(folder: Folder) -> tuple[str, FoldResult] | None:
    """The latest evaluation of a training that is not complete, and its file; None when there is none.

    Where the epochs of a finished run were raised, it is the result that it had before.
    """
    names = [*evaluations(folder), *([RESULT] if folder.size(RESULT) is not None else [])]
    found = [(folder.where(name), read_result(folder, name)) for name in names]
    return max(found, key=lambda each: each[1].step, default=None)


def _progress(result: FoldResult) -> str:
    """How far a training was when it was evaluated."""
    if result.complete:
        return f"fold {result.fold} finished with {result.epochs} epochs, and more are configured now"
    return f"fold {result.fold} at epoch {result.epoch} of {result.epochs}"


def _incomplete_notes(between: Sequence[tuple[str, FoldResult]]) -> list[str]:
    return [f"Training incomplete, left out: {_progress(result)} ({where})." for where, result in between]


def _change_notes(done: Sequence[_Fold]) -> list[str]:
    """What of the configuration was changed on the way, and in which folds it differs."""
    notes = [
        f"Fold {fold.result.fold} went on with {', '.join(map(str, fold.result.changed))}."
        for fold in done
        if fold.result.changed
    ]
    for key in dict.fromkeys(key for fold in done for key in fold.noted):
        values = {fold.name: fold.noted.get(key) for fold in done}
        if len({*map(repr, values.values())}) > 1:
            listed = ", ".join(f"{value} ({name})" for name, value in values.items())
            notes.append(f"The folds differ in {key}: {listed}.")
    return notes


def _read_config(folder: Folder, name: str) -> tuple[Mapping[str, Any], str]:
    path = folder.where(name)
    try:
        data = folder.read(name, most=MAX_CONFIG_BYTES)
        if data is None:
            raise FileNotFoundError("no such file")
        plain, text = parse(data), data.decode()
    except (OSError, YamlProblem) as error:
        got = f"not valid YAML ({error})" if isinstance(error, YamlProblem) else str(error)
        do = "A result without its configuration cannot be compared; restore the file or run again."
        raise CheckpointError(message(path, expected="the resolved configuration", got=got, do=do)) from error
    if not isinstance(plain, dict):
        do = "Restore the file or run again."
        raise CheckpointError(message(path, expected="a mapping of keys", got=type(plain).__name__, do=do))
    return plain, text


def _read_environment(folder: Folder, name: str) -> str:
    text = (folder.read(name, most=MAX_CONFIG_BYTES) or b"").decode(errors="replace")
    try:
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _refuse_mixture(run_folder: Folder, done: Sequence[_Fold]) -> None:
    facts: dict[str, Callable[[_Fold], str]] = {
        "data set": lambda fold: fold.result.data,
        "class list": lambda fold: ", ".join(fold.result.classes),
        "method": lambda fold: fold.result.method,
        "number of epochs": lambda fold: str(fold.result.epochs),
        "selection rule": lambda fold: fold.result.selection,
        "number of folds": lambda fold: str(fold.result.num_folds),
        "test protocol": lambda fold: json.dumps(to_plain(fold.result.protocol), sort_keys=True),
        "set of variants": lambda fold: ", ".join(sorted(fold.result.variants)) or "none",
        "shard manifest": lambda fold: fold.result.manifest_sha256,
    }
    for what, fact in facts.items():
        _refuse_unlike(run_folder, what, {fold.name: fact(fold) for fold in done})
    reference = _shared_config(done[0])
    for fold in done[1:]:
        mine = _shared_config(fold)
        different = next((key for key in {**reference, **mine} if reference.get(key) != mine.get(key)), None)
        if different is not None:
            values = {f.name: f"{different} = {_shared_config(f).get(different)!r}" for f in (done[0], fold)}
            _refuse_unlike(run_folder, "configuration", values)
    _refuse_shared_partitions(run_folder, done)


def _refuse_unlike(run_folder: Folder, what: str, values: Mapping[str, str]) -> None:
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    if len(groups) > 1:
        got = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
        do = "Unlike results never share a table: run the odd folds again, or report each folder by itself."
        raise CheckpointError(message(run_folder, expected=f"one {what} for all folds", got=got, do=do))


def _refuse_shared_partitions(run_folder: Folder, done: Sequence[_Fold]) -> None:
    owner: dict[str, str] = {}
    for fold in done:
        for partition in fold.result.test_partitions:
            if partition in owner:
                got = f"partition {partition} in {owner[partition]} and {fold.name}"
                expected = "every test partition in one fold, so that pooled counts hold each clip once"
                raise CheckpointError(
                    message(run_folder, expected=expected, got=got, do="Check `fold` in the configurations.")
                )
            owner[partition] = fold.name


def _shared_config(fold: _Fold) -> dict[str, Any]:
    """By dotted key, what all folds of a table must have in common."""
    return {k: v for k, v in fold.computed.items() if k not in PER_FOLD_KEYS and k not in fold.noted}


def _agreed_published(done: Sequence[_Fold]) -> Published | None:
    """The published numbers that all folds name; a configuration may get them between two stretches."""
    first, *others = [_published(fold) for fold in done]
    return first if all(other == first for other in others) else None


def _published(fold: _Fold) -> Published | None:
    plain = fold.config.get("published")
    if plain is None:
        return None
    try:
        return from_plain(Published, plain, "published")
    except ConfigProblem as problem:
        raise CheckpointError(f"{fold.name}/config.yaml: {problem}") from problem


def _notes(done: Sequence[_Fold], missing: Sequence[int], published: Published | None) -> list[str]:
    first, notes = done[0].result, []
    if missing:
        names = ", ".join(f"fold {k}" for k in missing)
        notes.append(f"No result yet for {names}: means cover {len(done)} of {first.num_folds} folds.")
    for fold in done:
        empty = [fold.result.classes[k] for k in fold.result.scores.empty_classes]
        if empty:
            where = f"Fold {fold.result.fold}" if first.num_folds > 1 else "The test split"
            notes.append(f"{where} has no test clips of {', '.join(empty)}: UAR averages over the other classes.")
    if first.excluded:
        clips, are = ("1 clip", "is") if first.excluded == 1 else (f"{first.excluded} clips", "are")
        notes.append(f"{clips} of the split files {are} not in the shards; `dfer-shards show` names them.")
    if published is None and any(fold.config.get("published") for fold in done):
        notes.append("Published numbers are left out: the configurations of the folds name different ones.")
    if published and first.generated:
        notes.append(f"Published numbers are left out: they hold for {first.dataset} itself, these are {first.data}.")
    elif published and published.selection != first.selection:
        notes.append(
            f"Not like for like: the published numbers stand for selection {published.selection}, "
            f"ours for {first.selection}."
        )
    if any(fold.recorded.damaged for fold in done):
        lines = ", ".join(f"{fold.name}: {fold.recorded.damaged}" for fold in done if fold.recorded.damaged)
        notes.append(f"Lines of metrics.jsonl that could not be read and are missing from the curves: {lines}.")
    cut = ", ".join(fold.name for fold in done if fold.recorded.cut)
    if cut:
        notes.append(f"The curves leave out the end of metrics.jsonl, which is longer than a report takes: {cut}.")
    return notes


def _environments(done: Sequence[_Fold]) -> dict[str, str]:
    """Environment text by the folds it belongs to; equal ones once."""
    names: dict[str, list[str]] = {}
    for fold in done:
        if fold.environment:
            names.setdefault(fold.environment, []).append(fold.name)
    return {", ".join(folds): text for text, folds in names.items()}


def _curves(done: Sequence[_Fold]) -> dict[str, dict[int, Curve]]:
    """Numbers by metric, as `train/lr/image`, and fold."""
    found: dict[str, dict[int, Curve]] = {}
    for fold in done:
        for key, points in fold.recorded.points.items():
            found.setdefault(key, {})[fold.result.fold] = sorted(points.items())
    return dict(sorted(found.items()))
