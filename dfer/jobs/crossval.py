"""Cross-validation as a job: one part per fold, or per seed and fold; its conclusion is the report.

    RUN/fold_3          with one seed
    RUN/seed_2/fold_3   with several

Imports no torch before a part runs.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.data.clips import class_numbers, emotions_for
from dfer.data.splits import folds
from dfer.errors import UsageError, message
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.parts import Part, absolute_places, chosen
from dfer.models.files import check_files, files, trains_nothing
from dfer.run import folder
from dfer.run.layout import CONFIG, committed, finished
from dfer.storage import Folder

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

grouped = True
Config = RunConfig


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> RunConfig:
    """Load the configuration of a training. Raises ConfigProblem."""
    return load_run(files, overrides)


def absolute(config: RunConfig) -> RunConfig:
    """Make paths absolute, also those of the model's files."""
    return absolute_places(config, {f"model.{key}": path for key, path in files(config.model).items()})


def shared(config: RunConfig) -> dict[str, str]:
    """Return the URL of the shards."""
    return {"data.shards": config.data.shards, **{f"data.join[{n}]": url for n, url in enumerate(config.data.join)}}


def parts(config: RunConfig) -> list[Part]:
    """List all folds of the shards, for every seed. Raises DataError, StorageError if the shards cannot be read, and
    UsageError if they do not have the classes."""
    home, names = config.run.rstrip("/"), [f"fold_{number}" for number in known_folds(config)]
    if len(config.seeds) > 1:
        names = [f"seed_{seed}/{name}" for seed in config.seeds for name in names]
    return [Part(name=name, run=f"{home}/{name}") for name in names]


def known_folds(config: RunConfig) -> list[int]:
    """List the numbers of the shards' folds. Raises DataError, StorageError if the shards cannot be read, ConfigProblem
    and UsageError if they do not have the protocol or the classes, or sets of `data.join` do not go together."""
    store = config.data.store()
    class_numbers(store, emotions_for(config.data.classes, store.manifest), partial=trains_nothing(config.model))
    return list(folds(store.manifest, config.data.protocol))


def config_of_part(config: RunConfig, part: Part) -> RunConfig:
    """Return the configuration of one fold, with its own folder, fold and seed; it records all seeds, for reports."""
    pieces = [piece.partition("_") for piece in part.name.split("/")]
    own = {key: int(number) for key, _, number in pieces}
    seed = own.get("seed", config.seeds[0] if config.seeds else config.seed)
    return replace(config, run=part.run, fold=own["fold"], seed=seed)


def check(config: RunConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect, before any process starts, what would stop these folds on a host.

    Raises:
        UsageError: the batch is not divisible by the processes, or the folder holds something else.
        CheckpointError: a fold was begun with another configuration, or a file of weights is missing.
        StorageError: the run folder cannot be reached.
    """
    for size in worlds:
        _check_batch(config, size)
    refuse_other_layout(config, parts)
    homes = {part: Folder(part.run, what="run") for part in parts}
    for part, home in homes.items():
        if home.exists(CONFIG):
            folder.check(home, config_of_part(config, part))
    begun = all(finished(home, config.epochs) or committed(home) for home in homes.values())
    # With `data.features`, the tower's weights are not needed if the features are stored, which is checked on reading.
    check_files(config.model, weights=not begun and config.data.features is None)


def _check_batch(config: RunConfig, size: int) -> None:
    if config.batch % size and not trains_nothing(config.model):
        below = max(size, config.batch // size * size)
        do = f"Set batch={below}, or other numbers of nodes or processes."
        raise UsageError(message("batch", expected=f"a multiple of {size} processes", got=str(config.batch), do=do))


def refuse_other_layout(config: RunConfig, parts: Sequence[Part]) -> None:
    """Raise UsageError if the folder holds a single run, or folds without seeds while these parts have seeds, or the
    reverse: one report cannot cover both."""
    home = Folder(config.run, what="run")
    if home.exists(CONFIG):
        expected, do = "a folder for all parts", "Choose another one with run=FOLDER."
        raise UsageError(message(home, expected=expected, got="the run of a single one", do=do))
    foreign = re.compile("fold_[0-9]+" if "/" in parts[0].name else "seed_[0-9]+")
    other = next(filter(foreign.fullmatch, home.folders()), None)
    if other is not None:
        do = "Choose another one with run=FOLDER, or move the folds of one seed into a folder seed_NUMBER."
        raise UsageError(message(home, expected=f"folders like {parts[0].name}", got=other, do=do))


def done(config: RunConfig, part: Part) -> bool:
    """Whether a fold's training is complete. Raises CheckpointError, StorageError if its result cannot be read."""
    return finished(Folder(part.run, what="run"), config.epochs)


def run(config: RunConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Train one fold and evaluate it, on all ranks; a method that trains nothing is only evaluated. Raises what
    `dfer.jobs.train.train` and `dfer.jobs.evaluate.evaluate_part` do."""
    from dfer.jobs.evaluate import evaluate_part
    from dfer.jobs.train import train

    assert world is not None, "folds are grouped"
    work = evaluate_part if trains_nothing(config.model) else train
    result = work(config_of_part(config, part), world, stop)
    return f"{part.name}: {result.line}"


def conclude(config: RunConfig) -> str:
    """Write the report over the finished folds; returns its table. Raises CheckpointError, StorageError."""
    from dfer.report.write import write_report

    home = Folder(config.run, what="run")
    return write_report(home, RunConfig).text


def crossval(config: RunConfig, world: "World", *, only: Sequence[str] = (), stop: "Stop | None" = None) -> str:
    """Run all parts in sequence in these processes, then write the report; the first rank returns its table. Resumes an
    interrupted cross-validation.

    only: names of the parts to train; the report then says which are missing.
    """
    from dfer.distributed import barrier, on_first
    from dfer.interruption import Stop

    wanted = chosen(parts(config), only)
    on_first(lambda: refuse_other_layout(config, wanted), world)
    for number, part in enumerate(wanted, start=1):
        if world.is_first:
            print(f"== {part.name} ({number} of {len(wanted)})", flush=True)
        run(config, part, world, stop or Stop())
        barrier()
    return conclude(config) if world.is_first else ""
