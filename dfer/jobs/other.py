"""A run on other clips than its own test clips, or on these seen otherwise: other shards, another protocol,
another number of frames, frames in a random order. Such a result has a file of its own; it is never the run's result.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import Any

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import UNTRAINED, FoldResult, TrainedOn
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import JOINED, PARTITIONS
from dfer.jobs.fold_data import FoldData, manifest_hash
from dfer.jobs.seen import DATA, recorded_sets, seen
from dfer.jobs.seen import TESTED as TESTED_SHA256
from dfer.models.saved import TrainedSet
from dfer.run import folder
from dfer.run.checkpoints import Checkpoint
from dfer.run.layout import RESULT, other_name, result_values
from dfer.storage import Folder

TESTED = ("fold", "data.protocol", "data.frames", "data.size", "data.sampling", "data.views")
"""Keys of which a second evaluation may change the value: they say which clips are tested, and how these are seen."""


@dataclass(frozen=True, kw_only=True)
class Other:
    """How an evaluation differs from the run's own. parts: of the result's file name. trained: the data of the training
    if the test clips are others than the run's own. partitions, joined: what the run was trained on, as in
    FoldResult."""

    parts: tuple[str, ...]
    shuffled: bool
    trained: TrainedOn | None
    partitions: tuple[str, ...]
    joined: tuple[str, ...]

    def file(self, *, step: int, complete: bool) -> str:
        """Return the name of the result's file, relative to the run."""
        return other_name([*self.parts, *([] if complete else [f"step_{step:08d}"])])


def own_config(config: RunConfig, home: Folder) -> tuple[RunConfig, dict[str, Any]]:
    """Return the configuration with the run's own values of the keys TESTED, and the values that differ from those."""
    recorded, plain = folder.recorded(home), to_plain(config)
    with suppress(ConfigProblem):  # keys of later versions get their defaults
        recorded = to_plain(from_plain(RunConfig, recorded))
    differ = {}
    for name in TESTED:
        *above, key = name.split(".")
        before, now = (reduce(lambda tree, part: tree.get(part, {}), above, tree) for tree in (recorded, plain))
        if key in before and key in now and before[key] != now[key]:
            differ[name], now[key] = now[key], before[key]
    return (from_plain(RunConfig, plain) if differ else config), differ


def _word(value: Any) -> str:
    """Format a value for the name of a file."""
    if isinstance(value, Mapping):
        return "_".join(f"{key}_{_word(each)}" for key, each in value.items())
    return str(value)


def is_elsewhere(config: RunConfig, chosen: Checkpoint) -> bool:
    """Whether the shards are others than those of the training."""
    return _tested_on(chosen.state) not in ("", manifest_hash(config.data.tested_store()))


def _tested_on(state: Mapping[str, Any]) -> str:
    """Return the hash of the manifest of the run's own test clips; empty if a checkpoint does not say."""
    data = state.get(DATA)
    found = data.get(TESTED_SHA256) if isinstance(data, Mapping) else None
    return str(found or state.get("manifest_sha256") or "")


def other_of(
    own: RunConfig,
    clips: FoldData,
    chosen: Checkpoint,
    *,
    changes: Mapping[str, Any],
    shuffled: bool,
) -> Other:
    """Describe a second evaluation. own: the configuration of the training. clips: the clips to test.

    Raises:
        CheckpointError: the run was trained on some of the clips.
    """
    found, state = manifest_hash(clips.store), chosen.state
    trained_sha = str(state.get("manifest_sha256") or found)
    dataset, generated, partitions, joined = _data_of(state, Folder(own.run, what="run"))
    trained = TrainedOn(
        dataset=" + ".join((dataset, *joined)),
        generated=generated,
        protocol=own.data.protocol,
        fold=own.fold,
        manifest_sha256=trained_sha,
    )
    elsewhere = _tested_on(state) not in ("", found)
    _refuse_seen(own, _sets_of(own, chosen, found if not elsewhere else ""), clips)
    first = _First(trained=trained, partitions=partitions, joined=joined)
    return _other(first, clips, elsewhere=elsewhere, changes=changes, shuffled=shuffled)


def other_of_untrained(
    own: RunConfig, clips: FoldData, result: FoldResult, *, elsewhere: bool, changes: Mapping[str, Any], shuffled: bool
) -> Other:
    """Describe a second evaluation of weights that were not trained here. own: the configuration of the first one;
    result: its result. clips: the clips to test; what the weights have seen is checked where they are read."""
    trained = TrainedOn(
        dataset=UNTRAINED,
        protocol=own.data.protocol,
        fold=own.fold,
        manifest_sha256=result.manifest_sha256 or manifest_hash(clips.store),
    )
    first = _First(trained=trained, partitions=result.train_partitions, joined=result.joined)
    return _other(first, clips, elsewhere=elsewhere, changes=changes, shuffled=shuffled)


def is_elsewhere_untrained(config: RunConfig, result: FoldResult) -> bool:
    """Whether the shards are others than those of the first evaluation of weights that were not trained here."""
    store = config.data.tested_store()
    if config.data.join:  # the result has the hash of all folders
        return store.manifest.dataset != result.dataset
    return result.manifest_sha256 not in (None, manifest_hash(store))


@dataclass(frozen=True, kw_only=True)
class _First:
    """The data of the first evaluation, as in FoldResult. trained: the data of the training."""

    trained: TrainedOn
    partitions: tuple[str, ...]
    joined: tuple[str, ...]


def _other(first: _First, clips: FoldData, *, elsewhere: bool, changes: Mapping[str, Any], shuffled: bool) -> Other:
    parts = [f"{clips.store.manifest.dataset}_{manifest_hash(clips.store)[:8]}"] if elsewhere else []
    others = elsewhere or "fold" in changes or "data.protocol" in changes
    always = {"fold": clips.number, "data.protocol": first.trained.protocol} if others else {}
    named = {**always, **changes}  # all folds of a run that are tested on one split get one name
    parts += [f"{key.rpartition('.')[2]}_{_word(value)}" for key, value in named.items()]
    return Other(
        parts=(*parts, *(["shuffled"] if shuffled else [])),
        shuffled=shuffled,
        trained=first.trained if others else None,
        partitions=first.partitions if others else clips.fold.train.names,
        joined=first.joined,
    )


def _sets_of(own: RunConfig, chosen: Checkpoint, sha256: str) -> list[TrainedSet]:
    """Return what the run was trained on. sha256: of the manifest where the shards are the run's own."""
    listed = recorded_sets(chosen.state, chosen.folder)
    if listed is not None:
        return [*listed]
    dataset, generated, *_ = _data_of(chosen.state, Folder(own.run, what="run"))
    protocol, fold = own.data.protocol, own.fold
    return [TrainedSet(dataset=dataset, generated=generated, manifest_sha256=sha256, protocol=protocol, fold=fold)]


def _data_of(state: Mapping[str, Any], home: Folder) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """Return data set, generator, partitions and further data sets of the training from the checkpoint's state; of
    checkpoints of older versions from the run's result."""
    plain = state.get(DATA)
    found: Mapping[str, Any] = plain if isinstance(plain, Mapping) else result_values(home, RESULT) or {}
    partitions, joined = (
        tuple(map(str, names)) if isinstance(names := found.get(key), list) else () for key in (PARTITIONS, JOINED)
    )
    return str(found.get("dataset") or "unknown data"), str(found.get("generated") or ""), partitions, joined


def _refuse_seen(own: RunConfig, sets: Sequence[TrainedSet], clips: FoldData) -> None:
    """Raise CheckpointError if a test clip is one of the training clips of any of the sets."""
    found = seen(clips.store, sets, clips.test.keys)
    if found is not None:
        tested = f"{len(clips.test)} clips of {', '.join(clips.fold.test.names)}"
        raise CheckpointError(
            message(
                own.run,
                expected="test clips that the run was not trained on",
                got=f"{len(found.keys)} of the {tested} that it was trained on ({', '.join(sorted(found.keys)[:3])})",
                do=f"Test on what fold {found.by.fold} of `{found.by.protocol}` leaves out.",
            )
        )
