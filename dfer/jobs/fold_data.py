"""The clips of one fold and the loaders over them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dfer.config import ConfigProblem
from dfer.data.clips import ClipSet, emotions_for, fold_clips
from dfer.data.features import FeatureLoader, FeatureSet, name_of
from dfer.data.loader import Loader
from dfer.data.plan import Plan
from dfer.data.splits import fold_of, folds, hold_out, refuse_overlap
from dfer.distributed import World, gather_objects
from dfer.emotions import Emotions
from dfer.errors import CheckpointError, UsageError, message
from dfer.jobs.config import RunConfig
from dfer.store.format import Fold, to_json
from dfer.store.joined import JOINED
from dfer.store.shards import Shards


@dataclass(frozen=True, kw_only=True)
class FoldData:
    """The clips of one fold. select: the clips whose score selects the checkpoint (validation or test clips), or None.
    features: of all clips, if they are read instead of frames."""

    store: Shards
    fold: Fold
    number: int
    num_folds: int
    emotions: Emotions
    train: ClipSet
    test: ClipSet
    select: ClipSet | None
    validation: str
    features: FeatureSet | None = None


def open_fold(config: RunConfig) -> FoldData:
    """Open the shards and form the fold. Raises DataError, UsageError if they do not match the configuration."""
    store, protocol = config.data.store(), config.data.protocol
    emotions = emotions_for(config.data.classes, store.manifest)
    fold = fold_of(store.manifest, protocol, config.fold)
    clips = fold_clips(store, fold, emotions=emotions)
    refuse_overlap(fold, {name: part.keys for name, part in clips.items()})
    train, select, validation = clips["train"], None, ""
    if config.select == "best_on_test":
        select = clips["test"]
    elif config.select == "best_on_val" and fold.validation is not None:
        select = clips["validation"]
        validation = f"the {len(select)} validation clips of the protocol `{protocol}`"
    elif config.select == "best_on_val":
        kept, held = hold_out(train.keys, train.subjects, share=config.val_share, seed=config.seed)
        validation = f"{len(held)} of {len(train)} training clips held out"
        train, select = train.select(kept), train.select(held)
    return FoldData(
        store=store,
        fold=fold,
        number=config.fold,
        num_folds=len(folds(store.manifest, protocol)),
        emotions=emotions,
        train=train,
        test=clips["test"],
        select=select,
        validation=validation,
    )


def open_other(config: RunConfig, emotions: Emotions) -> FoldData:
    """Open the test clips of other shards, or of another protocol, for a run with these classes. Clips of other classes
    are left out; the shards may lack some of the classes. Raises DataError, UsageError."""
    store, protocol = config.data.tested_store(), config.data.protocol
    fold = fold_of(store.manifest, protocol, config.fold)
    test = fold_clips(store, Fold(train=fold.test, test=fold.test), emotions=emotions, partial=True)["test"]
    return FoldData(
        store=store,
        fold=fold,
        number=config.fold,
        num_folds=len(folds(store.manifest, protocol)),
        emotions=emotions,
        train=test.select([]),
        test=test,
        select=None,
        validation="",
    )


def manifest_hash(store: Shards) -> str:
    """Compute the SHA-256 of the shards' manifest in its canonical form."""
    return hashlib.sha256(to_json(store.manifest)).hexdigest()


def joined_of(store: Shards) -> tuple[str, ...]:
    """Return the names of the data sets whose training clips were added to those of the first."""
    return tuple(store.manifest.options.get(JOINED, "").split(", ")[1:])


def refuse_other_shards(config: RunConfig, store: Shards, trained_on: str | None) -> None:
    """Raise CheckpointError if the shards are not those of the training. Their location may differ."""
    found = manifest_hash(store)
    if trained_on not in (None, found):
        raise CheckpointError(
            f"{config.run}: expected the shards it was started with, manifest sha256 {str(trained_on)[:12]}..., "
            f"got {found[:12]}... in {config.data.shards}. "
            "Set data.shards to those, or start a new run with run=FOLDER."
        )


FEATURES = "features"
"""Key of a checkpoint's state: identifies the features that the run reads; empty if it reads frames."""


def features_id(clips: FoldData) -> str:
    """Identify the features that a fold reads; empty if it reads frames."""
    return name_of(clips.features.key) if clips.features is not None else ""


def train_loader(config: RunConfig, clips: FoldData, world: World) -> Loader | FeatureLoader:
    """Make the loader of the training clips. Raises ConfigProblem if the batch is not divisible by the ranks."""
    if config.batch % world.size:
        below = config.batch // world.size * world.size
        fitting = " or ".join(str(batch) for batch in (below, below + world.size) if batch)
        raise ConfigProblem(
            f"batch: expected a multiple of {world.size} ranks, got {config.batch}. Set batch to {fitting}"
        )
    return _loader(
        config, clips, clips.train, world, train=True, global_batch=config.batch, micro_batch=config.share(world)
    )


def eval_loader(
    config: RunConfig, clips: FoldData, part: ClipSet, world: World, *, shuffle_frames: bool = False
) -> Loader | FeatureLoader:
    """Make the loader that reads each clip of a subset of the fold once, for evaluation. shuffle_frames: in a random
    order of the frames of each clip.

    Raises:
        UsageError: features are read, whose frames have no order to change.
    """
    if shuffle_frames and clips.features is not None:
        do = "Evaluate a run that was trained on frames."
        raise UsageError(message("--shuffle-frames", expected="frames", got="features of them", do=do))
    return _loader(
        config,
        clips,
        part,
        world,
        train=False,
        global_batch=config.eval_batch * world.size,
        micro_batch=config.eval_batch,
        shuffle_frames=shuffle_frames,
    )


def _loader(
    config: RunConfig,
    clips: FoldData,
    part: ClipSet,
    world: World,
    *,
    train: bool,
    global_batch: int,
    micro_batch: int,
    shuffle_frames: bool = False,
) -> Loader | FeatureLoader:
    """Make a loader over the features of `part`, if the fold has features, else over its frames. Clips and their order
    are the same."""
    if clips.features is None:
        return Loader(
            part,
            config.data,
            world=world,
            seed=config.seed,
            train=train,
            global_batch=global_batch,
            micro_batch=micro_batch,
            shuffle_frames=shuffle_frames,
        )
    plan = Plan(
        shard_of=part.shard_of,
        world=world,
        seed=config.seed,
        train=train,
        global_batch=global_batch,
        micro_batch=micro_batch,
        partitions=config.data.canonical_partitions,
    )
    return FeatureLoader(clips.features.select(part.keys, labels=part.labels), plan)


def refuse_little_memory(loaders: Sequence[Loader | FeatureLoader]) -> None:
    """Raise UsageError on all ranks if the shared memory of any host is too small for the data workers. COLLECTIVE."""
    lacks = [text for texts in gather_objects([loader.lack_of_memory() for loader in loaders]) for text in texts]
    if problem := next(filter(None, lacks), ""):
        raise UsageError(problem)
