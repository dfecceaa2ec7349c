"""Features of a frozen image tower. All ranks of the first run that needs them compute and store them; later runs and
other folds read them."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.features import (
    FeatureManifest,
    FeatureSet,
    FeatureShard,
    name_of,
    read_manifest,
    standing_shards,
    write_manifest,
    write_shard,
)
from dfer.data.loader import Loader
from dfer.distributed import World, gather_objects, highest, on_first
from dfer.emotions import Emotions, canonical_name
from dfer.errors import CheckpointError, DataError, message
from dfer.inference import encoder, set_tf32
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import SAMPLED
from dfer.jobs.fold_data import FEATURES, FoldData, manifest_hash, refuse_little_memory
from dfer.jobs.initial import refuse_trained_copy
from dfer.jobs.pieces import TELL_S, Grid
from dfer.models.build import build, refuse_normalisation
from dfer.models.config_towers import TowersConfig
from dfer.models.files import SHA256, file_id, files, is_tag
from dfer.recognition import PADDING, ClipBatch
from dfer.run.checkpoints import Checkpoint
from dfer.storage import Folder
from dfer.store.shards import Shards
from dfer.training.loop import stopped

Encode = Callable[[ClipBatch], Mapping[str, Tensor]]
"""From a batch on the device to features by name, [B ...]."""


def with_features(
    config: RunConfig, clips: FoldData, world: World, *, begun: Checkpoint | None, stop: Stop | None = None
) -> FoldData:
    """Add the features to the fold if the configuration asks for them; computes those that are not stored. COLLECTIVE.

    begun: the checkpoint from which the run resumes, if any.

    Raises:
        CheckpointError: both the features and the tower's weights are missing, or the run began with other features.
        DataError: a clip cannot be read, or the features are damaged.
        StoppedError: on all ranks; complete shards are kept and not computed again.
    """
    if config.data.features is None:
        _refuse_other_features(config, begun, now="")
        return clips
    key = on_first(lambda: key_of(config, manifest_hash(clips.store)), world)
    home = on_first(lambda: find(config, key), world)
    _refuse_other_features(config, begun, now=home.name if home is not None else name_of(key))
    if home is None:
        home = _compute(config, clips, key, world, stop or Stop())
    found = FeatureSet.open(home)
    if found is None:
        raise DataError(message(home, expected="features", got="none, as they were removed", do="Start again."))
    return replace(clips, features=found)


def with_stored_features(config: RunConfig, clips: FoldData) -> tuple[FoldData, list[str]]:
    """Add the features to the fold if they are stored; returns also a line saying whether they are. Computes none."""
    if config.data.features is None:
        return clips, []
    home = find(config, key_of(config, manifest_hash(clips.store)))
    if home is None:
        return clips, [f"features: computed first, into {config.data.features}"]
    return replace(clips, features=FeatureSet.open(home)), [f"features: read from {home}"]


def key_of(config: RunConfig, manifest_sha256: str) -> dict[str, Any]:
    """Collect everything the features depend on, as plain values without nulls."""
    data, frozen = config.data, config.model.frozen_tower
    assert frozen is not None, "refused by RunConfig"
    named, towers = files(config.model), frozen.towers
    key: dict[str, Any] = {
        "manifest_sha256": manifest_sha256,
        "arch": file_id(towers.arch) if "towers.arch" in named else towers.arch,
        "image_size": towers.image_size,
        "frames": data.frames,
        "sampling": data.train_frames + SAMPLED[data.sampling],
        "size": data.size,
        "view": data.augment.test_words(data.size, 1) or "whole frame",
        "normalisation": frozen.normalisation,
        "precision": config.engine.precision + (", tf32" if config.engine.tf32 else ""),
    }
    key["weights"] = weights_id(towers, config.seed)
    return {name: value for name, value in key.items() if value is not None}


def weights_id(towers: TowersConfig, seed: int) -> Any:
    """Identify the weights of towers: a tag, a file, or the seed of random ones."""
    if towers.pretrained is None:
        return f"drawn from seed {seed}"
    return f"tag {towers.pretrained}" if is_tag(towers.arch, towers.pretrained) else file_id(towers.pretrained)


def find(config: RunConfig, key: Mapping[str, Any]) -> Folder | None:
    """Find the folder of these features; None if none are stored.

    If the file of weights is missing, features made with a file of the same name are taken.

    Raises:
        CheckpointError: there are features of several files of that name.
    """
    return find_in(Folder(str(config.data.features), what="data.features"), key)


def find_in(root: Folder, key: Mapping[str, Any], *, what: str = "model.towers.pretrained") -> Folder | None:
    """As `find`, below any folder. what: key of the configuration that names the weights, for the message."""
    home = root / name_of(key)
    if read_manifest(home) is not None:
        return home
    if not any(isinstance(value, Mapping) and SHA256 not in value for value in key.values()):
        return None  # no file is missing, so the stored features have another key
    alike = [home for home, manifest in _stored(root) if _fits(manifest.key, key)]
    if len(alike) > 1:
        expected, got = "features of one file of weights of that name", f"{len(alike)}"
        do = f"Put the file back at {what}."
        raise CheckpointError(message(root, expected=expected, got=got, do=do))
    return alike[0] if alike else None


def _stored(root: Folder) -> Iterator[tuple[Folder, FeatureManifest]]:
    for name in root.folders():
        manifest = read_manifest(root / name)
        if manifest is not None:
            yield root / name, manifest


def _fits(stored: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether the keys are equal, apart from the hashes of missing files."""

    def same(theirs: Any, ours: Any) -> bool:
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            return all(theirs.get(name) == value for name, value in ours.items())
        return bool(theirs == ours)

    return stored.keys() == key.keys() and all(same(stored[name], value) for name, value in key.items())


def _refuse_other_features(config: RunConfig, begun: Checkpoint | None, *, now: str) -> None:
    """Raise CheckpointError if the run began with frames, or with other features than these."""
    then = str(begun.state.get(FEATURES, "")) if begun is not None else now
    if then != now:
        was, got = (f"features {name}" if name else "frames" for name in (then, now))
        do = "Restore data.features and the settings that decide the features, or start a new run with run=FOLDER."
        raise CheckpointError(message(config.run, expected=f"{was}, as it was started with", got=got, do=do))


# --- computing them


@dataclass(frozen=True, kw_only=True)
class Work:
    """The features to compute and store in `home`. key: all that they depend on. clips: all clips of the shards. grid:
    how they are divided into shards and batches, so that any number of processes makes the same bytes."""

    home: Folder
    key: dict[str, Any]
    emotions: Emotions
    clips: ClipSet
    grid: Grid

    @cached_property
    def keys(self) -> list[list[str]]:
        """The keys of the clips of each shard."""
        keys = self.clips.keys
        return [keys[piece.start : piece.stop] for piece in self.grid]

    @property
    def stands(self) -> bool:
        """Whether all features are stored."""
        return read_manifest(self.home) is not None

    def commit(self, shards: Mapping[int, FeatureShard], *, origin: str) -> None:
        """Write the manifest, unless another process has written it. That one's shards have other names or the same
        bytes. shards: all of them by number. origin: source of the tower's weights, in words."""
        if not self.stands:
            write_manifest(self.home, self.key, [shard for _, shard in sorted(shards.items())], origin=origin)


def work_of(config: RunConfig, store: Shards, emotions: Emotions, key: Mapping[str, Any]) -> Work:
    """List the clips whose features are stored: all labelled ones of the shards, for all folds. key: of `key_of`.
    emotions: the classes of the run, for its model; the features are not limited to them, since the key does not depend
    on them. Raises DataError, StorageError."""
    every = Emotions(names=tuple(dict.fromkeys(canonical_name(name) for name in store.manifest.classes)))
    clips = ClipSet.open(store, store.manifest.partitions(), emotions=every)
    home = Folder(str(config.data.features), what="data.features") / name_of(key)
    grid = Grid.of(len(clips), batch=config.eval_batch)
    return Work(home=home, key=dict(key), emotions=emotions, clips=clips, grid=grid)


def refuse_missing_weights(config: RunConfig) -> None:
    """Raise CheckpointError if the tower's weights are missing, or are not the ones that their run evaluates;
    ConfigProblem if they were trained with another normalisation."""
    refuse_normalisation(config.model)
    _refuse_missing_files(config, Folder(str(config.data.features), what="data.features"))
    refuse_trained_copy(config)


def _compute(config: RunConfig, clips: FoldData, key: Mapping[str, Any], world: World, stop: Stop) -> Folder:
    """Compute and store the features of all clips of the shards, for all folds. COLLECTIVE."""
    work = work_of(config, clips.store, clips.emotions, key)
    on_first(lambda: refuse_missing_weights(config), world)
    on_first(work.home.check_writable, world)
    standing = on_first(lambda: standing_shards(work.home, work.keys), world)
    todo = [number for number in range(len(work.grid)) if number not in standing]
    progress = Progress(work.home, total=len(work.clips), done=sum(s.rows for s in standing.values()), world=world)
    # Every rank does about as many clips as the first, which tells.
    mine, origin = encode_shards(
        config, work, todo[world.rank :: world.size], world, stop, tell=lambda rows: progress.add(rows * world.size)
    )
    written = {number: shard for rank in gather_objects(mine) for number, shard in rank.items()}
    on_first(lambda: work.commit({**standing, **written}, origin=origin), world)
    progress.end()
    return work.home


def encode_shards(
    config: RunConfig, work: Work, mine: Sequence[int], world: World, stop: Stop, *, tell: Callable[[int], None]
) -> tuple[dict[int, FeatureShard], str]:
    """Compute and write this rank's shards; returns them by number, and the source of the tower's weights in words.
    COLLECTIVE. tell: called after every batch with its number of clips.

    Raises:
        StoppedError: on all ranks; complete shards are kept. DataError: a clip cannot be read. StorageError.
    """
    set_tf32(config.engine.tf32)
    model = build(config.model, work.emotions, num_frames=config.data.frames, seed=config.seed)
    encode = encoder(model, precision=config.engine.precision, device=world.device)
    writer = Writer(work.home, [(number, work.keys[number]) for number in mine])
    clips = work.clips.select([at for number in mine for at in work.grid[number]])
    batches = clip_batches(clips, config.data, work.grid.batch, world, seed=config.seed)
    write_rows(in_step(batches, len(clips), work.grid.batch), encode, writer, world, stop, tell=tell)
    return writer.written, model.origin or ""


def _refuse_missing_files(config: RunConfig, root: Folder) -> None:
    for name, path in files(config.model).items():
        if not Path(path).is_file():
            expected, do = f"this file, or features made with it in {root}", "Put it back, or correct data.features."
            raise CheckpointError(message(f"model.{name}={path}", expected=expected, got="neither", do=do))


def clip_batches(clips: ClipSet, data: DataConfig, batch: int, world: World, *, seed: int) -> Iterator[ClipBatch]:
    """Yield this rank's clips as a test sees them. COLLECTIVE. Raises UsageError if shared memory is too small."""
    alone = World(local_rank=world.local_rank, local_size=world.local_size)
    loader = Loader(clips, data, world=alone, seed=seed, train=False, global_batch=batch, micro_batch=batch)
    refuse_little_memory([loader] if len(clips) else [])
    return loader.epoch(0) if len(clips) else iter(())


def in_step(batches: Iterator[ClipBatch], rows: int, batch: int) -> Iterator[ClipBatch | None]:
    """Yield this rank's batches, then None until the rank with the most has finished. COLLECTIVE. rows, batch: how many
    rows there are, and in each batch but the last."""
    rounds = highest([-(-rows // batch)])[0]
    return (next(batches, None) for _ in range(rounds))


def write_rows(
    batches: Iterator[ClipBatch | None],
    encode: Encode,
    writer: "Writer",
    world: World,
    stop: Stop,
    *,
    tell: Callable[[int], None],
) -> None:
    """Compute the features of batches of `in_step` and write the shards that they complete. COLLECTIVE. tell: called
    after every batch with its number of rows. Raises as `encode_shards`."""
    for batch in batches:
        if batch is not None:
            counts = batch.index != PADDING
            made = encode(batch.to(world.device))
            writer.add({name: value[counts.to(value.device)].cpu() for name, value in made.items()})
        if highest([stop.requested])[0]:
            raise stopped(stop, at=f"the features in {writer.home}")
        tell(len(batch.index) if batch is not None else 0)


class Writer:
    """Collects the features of clips, in batches of any size, and divides them into shards."""

    def __init__(self, home: Folder, wanted: list[tuple[int, list[str]]]) -> None:
        self.home, self._wanted = home, wanted[::-1]
        self._rows: dict[str, Tensor] = {}
        self.written: dict[int, FeatureShard] = {}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add rows [B ...] by name, and write every shard that they complete."""
        before = self._rows
        self._rows = {name: torch.cat([before[name], value]) if before else value for name, value in rows.items()}
        while self._wanted and len(next(iter(self._rows.values()))) >= len(self._wanted[-1][1]):
            number, keys = self._wanted.pop()
            full = {name: value[: len(keys)].clone() for name, value in self._rows.items()}
            self._rows = {name: value[len(keys) :] for name, value in self._rows.items()}
            self.written[number] = write_shard(self.home, number, full, keys=keys)


class Progress:
    """Prints progress to the error stream of the first rank."""

    def __init__(self, home: Folder, *, total: int, done: int, world: World) -> None:
        self._total, self._done, self._first, self._tells = total, done, done, world.is_first
        self._began = self._told = time.monotonic()
        self._say(f"{total:,} clips into {home}" + (f", of which {done:,} stand" if done else ""))

    def add(self, clips: int) -> None:
        """Add the number of clips that all ranks have done; prints the sum every TELL_S seconds."""
        self._done = min(self._total, self._done + clips)
        now = time.monotonic()
        if now - self._told >= TELL_S:
            self._told, rate = now, (self._done - self._first) / (now - self._began)
            left = (self._total - self._done) / rate
            self._say(f"{self._done:,} of {self._total:,} clips, {rate:.1f} clips/s, {left:.0f} s left")

    def end(self) -> None:
        """Print the duration."""
        self._say(f"{self._total:,} clips stored, {time.monotonic() - self._began:.1f} s")

    def _say(self, text: str) -> None:
        if self._tells:
            print(f"features: {text}", file=sys.stderr, flush=True)
