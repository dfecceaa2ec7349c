"""The clips of one fold and the loaders over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dfer.config import ConfigProblem
from dfer.data.balance import Balance
from dfer.data.clips import ClipSet, emotions_for, fold_clips
from dfer.data.features import FeatureLoader, FeatureSet, name_of
from dfer.data.loader import Loader
from dfer.data.plan import Plan
from dfer.data.splits import fold_of, folds, hold_out, refuse_overlap
from dfer.distributed import World, gather_objects
from dfer.emotions import Emotions
from dfer.errors import CheckpointError, DataError, UsageError, message
from dfer.jobs.config import RunConfig
from dfer.models.config import ContrastiveConfig
from dfer.models.prompts import layout
from dfer.models.texts import class_prompts
from dfer.models.towers import context_length
from dfer.store.format import Fold, manifest_sha256
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


def open_fold(config: RunConfig, *, partial: bool = False) -> FoldData:
    """Open the shards and form the fold. partial: the shards may lack some of the classes that `data.classes` lists.
    Raises DataError, UsageError if they do not match the configuration."""
    store, protocol = config.data.store(), config.data.protocol
    emotions = emotions_for(config.data.classes, store.manifest)
    fold = fold_of(store.manifest, protocol, config.fold)
    clips = fold_clips(store, fold, emotions=emotions, partial=partial)
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
    return manifest_sha256(store.manifest)


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
        config,
        clips,
        training_rows(config, clips),
        world,
        train=True,
        global_batch=config.batch,
        micro_batch=config.share(world),
    )


def training_rows(config: RunConfig, clips: FoldData) -> ClipSet:
    """Return the training clips as `Batch.index` numbers them: with `data.balance`, a clip that an epoch may take
    several times has as many rows."""
    return clips.train.select(clips_of_rows(config, clips))


def clips_of_rows(config: RunConfig, clips: FoldData) -> NDArray[np.int64]:
    """Return the training clip of every row of `training_rows`."""
    balance = _balance(config, clips)
    return np.arange(len(clips.train)) if balance is None else balance.rows()


def _balance(config: RunConfig, clips: FoldData) -> Balance | None:
    power = config.data.balance
    return Balance(labels=clips.train.labels, power=power) if power else None


def training_texts(config: RunConfig, clips: ClipSet, emotions: Emotions) -> list[str] | None:
    """Return the text of every training clip; None for a method that is trained without.

    Raises:
        DataError: clips without a text of their own, where the configuration asks for one.
    """
    model = config.model
    if not isinstance(model, ContrastiveConfig):
        return None
    classes = [texts[0] for texts in class_prompts(emotions, model.text)]
    of_class = [classes[label] for label in clips.labels]
    if model.text_from == "class":
        return of_class
    own = clips.texts
    bare = [key for key, text in zip(clips.keys, own) if not text]
    if bare and model.text_from == "caption":
        expected, got = f"a text for each of {len(own)} training clips", f"{len(bare)} without ({', '.join(bare[:3])})"
        do = "Set model.text_from=caption_or_class or class, or build the shards with captions."
        raise DataError(message(clips.store.url, expected=expected, got=got, do=do))
    return [text or other for text, other in zip(own, of_class)]


def _tokens(config: RunConfig, clips: FoldData) -> Tensor | None:
    """Encode the texts of the rows of `training_rows`, int32 [R L]; each different text once."""
    texts, towers = training_texts(config, clips.train, clips.emotions), config.model.towers
    if not texts or towers is None:
        return None
    different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    length = context_length(towers)
    rows = layout(list(different), num_contexts=0, position="end", context_length=length, truncate=True).tokens
    of_clip = np.array([different[text] for text in texts])
    return rows.int()[of_clip[clips_of_rows(config, clips)]]


def eval_loader(
    config: RunConfig, clips: FoldData, part: ClipSet, world: World, *, shuffle_frames: bool = False
) -> Loader | FeatureLoader:
    """Make the loader that reads each clip of a subset of the fold once, for evaluation. `eval_batch` counts rows: a
    batch has as many clips as have room in it with all their views, at least one. shuffle_frames: in a random order of
    the frames of each clip.

    Raises:
        UsageError: features are read, whose frames have no order to change.
    """
    if shuffle_frames and clips.features is not None:
        do = "Evaluate a run that was trained on frames."
        raise UsageError(message("--shuffle-frames", expected="frames", got="features of them", do=do))
    each = max(1, config.eval_batch // config.data.num_views)
    return _loader(
        config,
        clips,
        part,
        world,
        train=False,
        global_batch=each * world.size,
        micro_batch=each,
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
    balance = _balance(config, clips) if train else None
    if clips.features is None:
        return Loader(
            part,
            config.data,
            balance=balance,
            world=world,
            seed=config.seed,
            train=train,
            global_batch=global_batch,
            micro_batch=micro_batch,
            text=_tokens(config, clips) if train else None,
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
        balance=balance,
    )
    return FeatureLoader(clips.features.select(part.keys, labels=part.labels), plan)


def refuse_little_memory(loaders: Sequence[Loader | FeatureLoader]) -> None:
    """Raise UsageError on all ranks if the shared memory of any host is too small for the data workers. COLLECTIVE."""
    lacks = [text for texts in gather_objects([loader.lack_of_memory() for loader in loaders]) for text in texts]
    if problem := next(filter(None, lacks), ""):
        raise UsageError(problem)
