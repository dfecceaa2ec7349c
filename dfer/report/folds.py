"""Read the folds of a run folder for its report: results, configuration, environment, recorded metrics.

RUN                 a single run
RUN/fold_3          a fold of a cross-validation
RUN/seed_2/fold_3   a fold of a cross-validation with several seeds
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.errors import CheckpointError, message
from dfer.evaluation.results import FoldResult, read_result
from dfer.report.recorded import Recorded, read_recorded
from dfer.run.changes import computed, noted
from dfer.run.layout import RESULT, evaluations, others
from dfer.storage import Folder
from dfer.yaml_text import YamlProblem, parse

FOLD_FOLDER, SEED_FOLDER = re.compile(r"fold_([0-9]{1,3})"), re.compile(r"seed_([0-9]{1,9})")
MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The contents of one fold's folder. name: its path below the run folder, `seed_2/fold_3`. computed, noted: keys of
    its configuration, in two groups as `dfer.run.changes` divides them. others: second results of the same weights, by
    file; stale: files of second results of other checkpoints."""

    name: str
    result: FoldResult
    config: Mapping[str, Any]
    config_text: str
    environment: str
    recorded: Recorded
    computed: Mapping[str, Any]
    noted: Mapping[str, Any]
    home: Folder
    others: Mapping[str, FoldResult]
    stale: tuple[str, ...]


def fold_folders(run_folder: Folder) -> dict[str, Folder]:
    """Find the folders of a cross-validation's folds by name, ordered by seed and fold; empty for a single run.

    Raises:
        CheckpointError: the folder holds both `fold_*` and `seed_*/fold_*`.
    """
    below = run_folder.folders()
    single, seeds = _numbered(FOLD_FOLDER, below), _numbered(SEED_FOLDER, below)
    repeated = [f"{seed}/{fold}" for seed in seeds for fold in _numbered(FOLD_FOLDER, (run_folder / seed).folders())]
    if single and repeated:
        do = "Move the folds of one seed into a folder seed_NUMBER of their own, or into another run folder."
        got = f"{single[0]} beside {repeated[0]}"
        raise CheckpointError(message(run_folder, expected="folds of one seed or of several", got=got, do=do))
    return {name: run_folder / name for name in (*single, *repeated)}


def _numbered(pattern: re.Pattern[str], names: Sequence[str]) -> list[str]:
    found = [match for match in map(pattern.fullmatch, names) if match]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def read_fold(name: str, folder: Folder, kind: type) -> Fold:
    """Read a fold whose training is complete. kind: dataclass of its configuration.

    Raises:
        CheckpointError: the result is that of another fold or seed.
    """
    result = read_result(folder)
    repeat, _, own = name.rpartition("/")
    for match, what, number in (
        (FOLD_FOLDER.fullmatch(own), "fold", result.fold),
        (SEED_FOLDER.fullmatch(repeat), "seed", result.seed),
    ):
        if match and int(match[1]) != number:
            do = "Rename the folder back to its original name."
            expected = f"the result of {what} {int(match[1])}"
            raise CheckpointError(message(folder.where(RESULT), expected=expected, got=f"{what} {number}", do=do))
    config, text = _read_config(folder, "config.yaml")
    beside = {name: read_result(folder, name) for name in others(folder)}
    return Fold(
        name=name,
        result=result,
        config=config,
        config_text=text,
        environment=_read_environment(folder, "environment.json"),
        recorded=read_recorded(folder, "metrics.jsonl"),
        computed=computed(kind, config),
        noted=noted(kind, config),
        home=folder,
        others={name: found for name, found in beside.items() if found.step == result.step and found.complete},
        stale=tuple(name for name, found in beside.items() if found.step != result.step),
    )


def incomplete(folder: Folder) -> tuple[str, FoldResult] | None:
    """Read the latest evaluation of an incomplete training; returns its file and the result, None if there is none.

    If `epochs` of a finished run was raised, the run's earlier result counts as such an evaluation.
    """
    names = [*evaluations(folder), *([RESULT] if folder.size(RESULT) is not None else [])]
    found = [(folder.where(name), read_result(folder, name)) for name in names]
    return max(found, key=lambda each: each[1].step, default=None)


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
