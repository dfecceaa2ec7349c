"""Which data sets weights were trained on, also those of the weights that they began from, and which test clips that
training has seen.

A checkpoint's state and a saved model's origin list the sets one by one: the manifest of a joint training is the
manifest of no folder, so its hash would find none of them again.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dfer.config import ConfigProblem, from_plain
from dfer.data.clips import keys_of
from dfer.data.splits import fold_of, folds
from dfer.errors import CheckpointError, message
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import manifest_hash
from dfer.models.saved import Origin, TrainedSet
from dfer.store.format import Subset
from dfer.store.joined import JoinedStore, number_of, protocol_of
from dfer.store.shards import Shards

DATA, SETS, TESTED = "data", "sets", "tested_sha256"
"""Keys of a checkpoint's state: the data of the training; in it, the list of TrainedSet, and the manifest of the test
clips' shards."""


FAMILIES = (frozenset({"ckplus", "ckplus48"}), frozenset({"fer2013", "ferplus"}))
"""Data sets that show the same pictures under the same keys."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Test clips that a training has seen. keys: of these. by: the set it was trained on. train: that set's training
    clips."""

    keys: set[str]
    by: TrainedSet
    train: Subset


def sets_of(config: RunConfig, store: Shards, begun: Iterable[TrainedSet] = ()) -> tuple[TrainedSet, ...]:
    """List what a run trains on. begun: what the weights that it begins from were trained on."""
    fold = str(config.fold)
    stores = store.stores if isinstance(store, JoinedStore) else [store]
    protocols = [protocol_of(each.manifest, config.data.protocol) for each in stores]
    own = [
        TrainedSet(
            dataset=each.manifest.dataset,
            generated=each.manifest.generated,
            manifest_sha256=manifest_hash(each),
            protocol=protocol,
            fold=int(number_of(each.manifest, protocol, fold) or fold),
        )
        for each, protocol in zip(stores, protocols)
    ]
    return tuple(dict.fromkeys([*own, *begun]))


def plain_sets(sets: Iterable[TrainedSet]) -> list[dict[str, Any]]:
    """Return the sets as a checkpoint's state holds them."""
    return [asdict(each) for each in sets]


def recorded_sets(state: Mapping[str, Any], where: object) -> tuple[TrainedSet, ...] | None:
    """Read from a checkpoint's state what it was trained on; None for older versions, which list no sets.

    Raises:
        CheckpointError: the list is damaged.
    """
    data = state.get(DATA)
    if not isinstance(data, Mapping) or SETS not in data:
        return None
    try:
        return tuple(from_plain(TrainedSet, each) for each in data[SETS])
    except (ConfigProblem, TypeError) as problem:
        do = "Use another checkpoint of the run."
        expected = "the data sets of the training in the checkpoint's state"
        raise CheckpointError(message(where, expected=expected, got=f"others ({problem})", do=do)) from problem


def sets_in(state: Mapping[str, Any], where: object, *, protocol: str, fold: int | None) -> tuple[TrainedSet, ...]:
    """As `recorded_sets`; of older versions the one set of the run. protocol, fold: of the run. Raises
    CheckpointError."""
    found = recorded_sets(state, where)
    if found is not None:
        return found
    data = state.get(DATA)
    known = data if isinstance(data, Mapping) else {}
    return (
        TrainedSet(
            dataset=str(known.get("dataset") or ""),
            generated=str(known.get("generated") or ""),
            manifest_sha256=str(known.get(TESTED) or state.get("manifest_sha256") or ""),
            protocol=protocol,
            fold=fold,
        ),
    )


def sets_of_saved(origin: Origin) -> tuple[TrainedSet, ...]:
    """Return what a saved model was trained on."""
    if not origin.trained:
        return ()
    protocol = origin.protocol or "published"
    one = TrainedSet(
        dataset=origin.dataset,
        generated=origin.generated,
        manifest_sha256=origin.manifest_sha256,
        protocol=protocol,
        fold=origin.fold,
    )
    return origin.sets or (one,)


def seen(store: Shards, sets: Iterable[TrainedSet], tested: Collection[str]) -> Seen | None:
    """Find the test clips of these shards that a training has seen, by their keys; None if there are none. A set is
    recognised by its name, that of another set of its family, or the hash of its manifest. Cannot tell for shards that
    lack the training's protocol.

    tested: keys of the test clips.
    """
    manifest, sha256 = store.manifest, manifest_hash(store)
    for each in sets:
        number = _number(store, each)
        if number is None or not (_is_related(store, each) or each.manifest_sha256 == sha256):
            continue
        train = fold_of(manifest, each.protocol, int(number)).train
        if keys := keys_of(store, train) & {*tested}:
            return Seen(keys=keys, by=each, train=train)
    return None


def remark_of(store: Shards, sets: Iterable[TrainedSet], *, protocol: str, fold: int) -> str:
    """Say that a training may have seen test clips of a fold: it was on these data, in a fold that is not known, and
    some fold trains on them. Empty if none may have."""
    tested = store.stores[0] if isinstance(store, JoinedStore) else store
    unknown = [each for each in sets if _is_related(tested, each) and _number(tested, each) is None]
    if not unknown:
        return ""
    manifest, keys = tested.manifest, keys_of(tested, fold_of(tested.manifest, protocol, fold).test)
    every = (fold for name in manifest.protocols for fold in folds(manifest, name).values())
    if not any(keys_of(tested, fold.train) & keys for fold in every):
        return ""
    return f"test clips may have been trained on: the weights were trained on {unknown[0].dataset}, fold unknown"


def _is_related(store: Shards, trained: TrainedSet) -> bool:
    """Whether the shards are of the set of a training, or of one with the same pictures and keys."""
    names = {trained.dataset, store.manifest.dataset}
    related = len(names) == 1 or any(names <= family for family in FAMILIES)
    return related and trained.generated == store.manifest.generated


def _number(store: Shards, trained: TrainedSet) -> str | None:
    """The fold of a training in the shards' protocol of its name; None if it is not known."""
    return number_of(store.manifest, trained.protocol, str(trained.fold)) if trained.fold is not None else None
