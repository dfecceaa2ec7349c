"""Features of a frozen tower as a job of their own: independent parts compute what `data.features` names, for all folds
of a training; the conclusion writes its manifest. A training with the same configuration then finds them.

    dfer-launch slurm methods/linear_probe sets/dfew job=features workers=8 data.features=FOLDER

The run folder is that of the training with `_features` behind it, unless `run=FOLDER` is given; it holds the files of
`dfer.jobs.pieces` and the launcher's records. Imports no torch before a part runs or is checked.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.config import ConfigProblem
from dfer.data.clips import emotions_for
from dfer.errors import CheckpointError, UsageError, message
from dfer.jobs import crossval
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.parts import Part
from dfer.jobs.pieces import (
    Plan,
    Progress,
    agree,
    check_workers,
    forget,
    mark_done,
    mark_of,
    marks,
    read_plan,
    refuse_other,
    sha256_of_keys,
    share,
    worker_parts,
)
from dfer.run.layout import CONFIG
from dfer.storage import Folder

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop
    from dfer.jobs.features import Work

grouped = False
Config = RunConfig
SUFFIX = "_features"


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> RunConfig:
    """Load the configuration of the training. Raises ConfigProblem, also if it names no `data.features`."""
    found = load_run(files, overrides)
    check_workers(found.workers)
    if found.data.features is None:
        do = "Set data.features=FOLDER_OR_URL, as in the training that will read them."
        raise ConfigProblem(message("data.features", expected="where to store the features", got="nothing", do=do))
    if not any(text.startswith("run=") for text in overrides):
        found = replace(found, run=found.run.rstrip("/") + SUFFIX)
    return replace(found, seed=found.seeds[0] if found.seeds else found.seed, seeds=())


def absolute(config: RunConfig) -> RunConfig:
    """Make paths absolute, also those of the model's files."""
    return crossval.absolute(config)


def shared(config: RunConfig) -> dict[str, str]:
    """Return the URLs of the shards and of the features."""
    return {**crossval.shared(config), "data.features": str(config.data.features)}


def parts(config: RunConfig) -> list[Part]:
    """`worker_1` ... `worker_N`."""
    return worker_parts(config.run, config.workers)


def check(config: RunConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect what would stop the parts.

    Raises:
        UsageError: the run folder is a training's. CheckpointError: the tower's weights are missing, or the run folder
            was begun with other features. DataError, StorageError: the shards cannot be read.
    """
    home = Folder(config.run, what="run")
    if home.exists(CONFIG):
        do = "Choose another one with run=FOLDER."
        raise UsageError(message(home, expected="a folder for this job", got="a training run", do=do))
    work = _work(config)
    refuse_other(home, _plan(config, work))
    home.check_writable()
    if not work.stands:
        from dfer.jobs.features import refuse_missing_weights

        refuse_missing_weights(config)
        work.home.check_writable()


def done(config: RunConfig, part: Part) -> bool:
    """Whether a part has computed its features. Raises CheckpointError, StorageError."""
    return mark_of(part, read_plan(Folder(config.run, what="run")), of=config.workers) is not None


def run(config: RunConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Compute the features of a part's clips that are not stored yet.

    Raises:
        CheckpointError: the job was begun with other features. DataError: a clip cannot be read. StorageError.
        StoppedError: a stop was requested; complete shards are kept.
    """
    from dfer.data.features import MANIFEST, standing_shards
    from dfer.distributed import World
    from dfer.jobs.features import encode_shards

    work = _work(config)
    plan = _plan(config, work)
    agree(Folder(config.run, what="run"), plan)
    mine = share(len(work.grid), part, of=config.workers)
    clips, facts = sum(len(work.grid[number]) for number in mine), {}
    standing = [*standing_shards(work.home, work.keys, only=mine)]
    todo = [number for number in mine if number not in standing]
    if todo:
        work.home.remove(MANIFEST)  # of shards of which some were lost or damaged since
    left = sum(len(work.grid[number]) for number in todo)
    progress = Progress(part, what="features", total=clips, standing=clips - left)
    if todo:
        _, facts["origin"] = encode_shards(config, work, todo, World(), stop, tell=progress.add)
    progress.end()
    mark_done(part, plan, of=config.workers, **facts)
    return f"{part.name}: {clips:,} clips in {len(mine)} shards, {len(standing)} of them stored before"


def conclude(config: RunConfig) -> str:
    """Write the manifest over the shards of all parts.

    Raises:
        CheckpointError: a part is not done, or a shard is missing or damaged; the same command then computes it again.
    """
    from dfer.data.features import standing_shards

    home, work = Folder(config.run, what="run"), _work(config)
    found = marks(home, parts(config), _plan(config, work))
    if not work.stands:
        shards = standing_shards(work.home, work.keys)
        missing = len(work.grid) - len(shards)
        if missing:
            forget(home, parts(config))
            expected, got = f"{len(work.grid)} whole shards", f"{missing} missing or damaged"
            raise CheckpointError(message(work.home, expected=expected, got=got, do="The same command makes them."))
        origins = [str(mark["origin"]) for mark in found if "origin" in mark]
        work.commit(shards, origin=origins[0] if origins else _origin(config, work))
    return f"{work.home}: features of {len(work.clips):,} clips; a training with the same configuration reads them"


def _work(config: RunConfig) -> "Work":
    from dfer.jobs.features import key_of, work_of
    from dfer.jobs.fold_data import manifest_hash

    store = config.data.store()
    emotions = emotions_for(config.data.classes, store.manifest)
    return work_of(config, store, emotions, key_of(config, manifest_hash(store)))


def _plan(config: RunConfig, work: "Work") -> Plan:
    return Plan(
        depends={**work.key, "batch": work.grid.batch},
        clips=len(work.clips),
        pieces=len(work.grid),
        keys_sha256=sha256_of_keys(work.clips.keys),
    )


def _origin(config: RunConfig, work: "Work") -> str:
    """Return the source of the tower's weights, in words, where every part found all of its shards."""
    from dfer.models.build import build

    return build(config.model, work.emotions, num_frames=config.data.frames, seed=config.seed).origin or ""
