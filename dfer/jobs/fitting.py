"""Fit one projection head: to stored pairs of features, or to what both models give for pictures.

Letters: B pairs of this rank, N pairs, C colours, H height, W width, S student features, D teacher features.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.config import ConfigProblem, to_plain
from dfer.data.features import FeatureLoader, FeatureSet
from dfer.data.plan import Plan
from dfer.data.sampling import clip_rng
from dfer.distributed import World, gather_rows, on_first
from dfer.errors import CheckpointError, DferError, message
from dfer.inference import enough_gpu_memory
from dfer.interruption import Stop
from dfer.jobs.fit import HEAD, RESULT, FitConfig, line_of, read_fit
from dfer.jobs.fit_measures import TRAINED, FitLog, counted, measured, measured_on, split, train_accuracy
from dfer.jobs.pair_data import (
    Pairs,
    Source,
    check_descriptions,
    check_tower,
    differences,
    find_pairs,
    key_of,
    open_source,
    stored_home,
)
from dfer.jobs.pairs import PairsConfig
from dfer.jobs.parts import absolute_path
from dfer.models.head_file import MadeFor, settings_sha256, write_head
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.recognition import PADDING, BadClip, Batch, ClipBatch, FeatureBatch
from dfer.run import folder
from dfer.run.checkpoint_files import MAX_JSON_BYTES, STATE
from dfer.run.checkpoints import Checkpoints
from dfer.run.layout import CHECKPOINTS, committed, note_progress
from dfer.storage import Folder
from dfer.training import loop
from dfer.training.build import build_engine
from dfer.training.engine import Engine

H = TypeVar("H", bound=ProjectionHead)
ROWS = 2048
"""Rows of features that are scaled at once."""
KEY = "pairs"
"""Entry of a checkpoint's state: what the pairs depend on, which is compared when a fit goes on."""


def check_parts(parts: Sequence[FitConfig]) -> None:
    """Detect what would stop fits; reads no features. The pictures of parts with the same pairs are listed once.

    Raises:
        DataError, CheckpointError, UsageError: pairs that cannot be used, or others than a part was begun with.
    """
    known: dict[PairsConfig, Source] = {}
    for config in parts:
        home = Folder(config.run, what="run")
        begun, result = _begun(home), read_fit(home)
        done = result is not None and result["epochs"] >= config.epochs
        try:
            source = known.setdefault(config.pairs, known.get(config.pairs) or open_source(config.pairs))
        except DferError:
            if done and _made_there(result, config):  # a result stands without its pictures
                continue
            raise
        if begun is not None:
            _refuse_other_pairs(home, begun, key_of(config.pairs, source))
        if not done:
            _check_pairs(config, source)


def _begun(home: Folder) -> Any:
    """Return what the pairs of a fit depended on, by its result or its newest checkpoint; None if there is neither."""
    result, names = read_fit(home), committed(home)
    if result is not None or not names:
        return result and result.get("key")
    text = (home / CHECKPOINTS / str(names[0])).read(STATE, most=MAX_JSON_BYTES)
    try:
        return json.loads(text or b"{}").get(KEY)
    except (ValueError, AttributeError, RecursionError):
        return None  # damaged; resuming takes an older one and compares that


def _made_there(result: Mapping[str, Any] | None, config: FitConfig) -> bool:
    """Whether a result is of the pictures in this place."""
    then = ((result or {}).get("settings") or {}).get("pairs") or {}
    return bool(absolute_path(then.get("shards") or then.get("pictures") or "") == absolute_path(config.pairs.source))


def _refuse_other_pairs(where: object, theirs: Any, ours: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless both keys of pairs are equal, saying in what they differ."""
    plain = json.loads(json.dumps(ours))
    if not isinstance(theirs, Mapping) or not (different := differences(theirs, plain)):
        return
    expected = "; ".join(f"{name}: {then}" for name, (then, _) in different.items())
    got = "; ".join(f"{name}: {now}" for name, (_, now) in different.items())
    do = "Set `pairs` as it was (pictures may have moved, not changed), or start a new fit with run=FOLDER."
    raise CheckpointError(message(where, expected=f"the pairs it was begun with, {expected}", got=got, do=do))


def _check_pairs(config: FitConfig, source: Source) -> None:
    """Raise DataError, CheckpointError, UsageError for pairs that a fit cannot use."""
    if config.on == "features":
        stored_home(config.pairs, source)
    else:
        check_tower(config.pairs)
        check_descriptions(config.pairs, source)
    split(config, source.keys)


class _PictureHead(ProjectionHead):
    """A head that is fitted to what both models give for the pictures of a batch. The models are no part of its state.

    texts: description of each picture, by `Batch.index`.
    """

    models: tuple[Pairs, Sequence[str]]

    def forward(self, batch: ClipBatch) -> dict[str, Tensor]:  # type: ignore[override]
        """Compute as ProjectionHead does, from pictures uint8 [B 1 C H W]. COLLECTIVE."""
        pairs, texts = self.models
        said = [texts[index] if index != PADDING else "" for index in batch.index.tolist()]
        return super().forward(FeatureBatch(index=batch.index, features=pairs.features(batch.frames[:, 0], said)))


class _PictureLoader:
    """Yields a rank's micro-batches of pictures, with the same pictures in the same order as FeatureLoader."""

    def __init__(self, source: Source, rows: Sequence[int], plan: Plan) -> None:
        self._source, self._rows, self._plan = source, rows, plan
        plan.check()
        self.steps_per_epoch, self.accumulation = plan.steps, plan.accumulation
        self.wait_seconds, self.max_bad = 0.0, 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[ClipBatch]:
        """Yield this rank's micro-batches from `start_step` (a global step) to the end of the epoch."""
        order = self._plan.order(epoch)
        ids = [self._plan.ids(order, number) for number in self._plan.numbers(start_step)]
        batches = self._source.batches([[self._rows[at] for at in each] for each in ids])
        while True:
            before = time.monotonic()
            pictures = next(batches, None)
            self.wait_seconds += time.monotonic() - before
            if pictures is None:
                return
            yield ClipBatch(frames=pictures[:, None], index=torch.from_numpy(ids.pop(0).copy()))

    def take_bad(self) -> list[BadClip]:
        """Return an empty list: a picture that cannot be read ends the fit."""
        return []


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What is fitted. held: features on which accuracy is measured. key: what the pairs depend on."""

    learner: ProjectionHead
    loader: loop.Loader
    held: FeatureSet
    key: dict[str, Any]
    origin: str
    prepare: Callable[[Batch, int], Batch]


def _prepared(config: FitConfig, world: World) -> _Fit:
    """Open the pairs and build the head. Raises DataError, CheckpointError, UsageError."""
    return _from_features(config, world) if config.on == "features" else _from_pictures(config, world)


def _from_features(config: FitConfig, world: World) -> _Fit:
    pairs = _unit(find_pairs(config.pairs))
    kept, held = split(config, pairs.keys)
    fitted = pairs if len(kept) == len(pairs) else _rows(pairs, kept)
    learner = _head(ProjectionHead, config, pairs.dims)
    learner.unit_teacher = True
    return _Fit(
        learner=learner,
        loader=FeatureLoader(fitted, _plan(config, len(fitted), world)),
        held=_rows(pairs, held),
        key=pairs.key,
        origin=pairs.origin,
        prepare=lambda batch, _: batch.to(world.device),
    )


def _unit(pairs: FeatureSet) -> FeatureSet:
    """Scale the teacher's features to unit vectors, once instead of in every step; in place where they are fp32."""
    features = dict(pairs.features)
    rows = features[TEACHER] = features[TEACHER].float()
    for at in range(0, len(rows), ROWS):
        rows[at : at + ROWS] = F.normalize(rows[at : at + ROWS], dim=-1)
    return replace(pairs, features=features)


def _from_pictures(config: FitConfig, world: World) -> _Fit:
    source = open_source(config.pairs)
    check_descriptions(config.pairs, source)
    kept, held = split(config, source.keys)
    pairs = Pairs(config.pairs, world.device)
    size = config.pairs.batch
    cut = [held[at : at + size] for at in range(0, len(held), size)]
    with _seeded(config.seed, world.device):  # a teacher with dropout draws
        measured = pairs.joined(list(pairs.encoded(source, cut)))
    learner = _head(_PictureHead, config, {name: value.shape[1] for name, value in measured.items()})
    learner.models = pairs, [source.texts[at] or "" for at in kept]
    return _Fit(
        learner=learner,
        loader=_PictureLoader(source, kept, _plan(config, len(kept), world)),
        held=FeatureSet(features=measured, keys=[source.keys[at] for at in held]),
        key=key_of(config.pairs, source),
        origin=pairs.origin,
        prepare=partial(_flipped, config, world),
    )


def _flipped(config: FitConfig, world: World, batch: Batch, epoch: int) -> Batch:
    """Mirror some pictures; the draws depend only on (seed, epoch, picture)."""
    moved = batch.to(world.device)
    if not config.flip or not isinstance(moved, ClipBatch):
        return moved
    drawn = [clip_rng(config.seed, epoch, index).random() < config.flip for index in batch.index.clamp(min=0).tolist()]
    mirrored = torch.tensor(drawn, device=moved.frames.device)[:, None, None, None, None]
    return replace(moved, frames=torch.where(mirrored, moved.frames.flip(-1), moved.frames))


def _rows(pairs: FeatureSet, rows: Sequence[int]) -> FeatureSet:
    features = {name: value[torch.tensor(rows)] for name, value in pairs.features.items()}
    return replace(pairs, features=features, keys=[pairs.keys[row] for row in rows])


def _plan(config: FitConfig, pairs: int, world: World) -> Plan:
    if config.batch % world.size:
        do = "Set another batch, or start other numbers of processes."
        raise ConfigProblem(
            message("batch", expected=f"a multiple of {world.size} ranks", got=str(config.batch), do=do)
        )
    return Plan(
        shard_of=np.zeros(pairs, np.int64),
        world=world,
        seed=config.seed,
        train=True,
        global_batch=config.batch,
        micro_batch=config.batch // world.size,
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from the seed within the block; the caller's random state is put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _head(kind: type[H], config: FitConfig, dims: dict[str, int]) -> H:
    """Draw the head from the seed, as PyTorch's Linear does."""
    with _seeded(config.seed, torch.device("cpu")):
        return kind(config.head, student=dims[STUDENT], teacher=dims[TEACHER], gather=gather_rows)


@enough_gpu_memory()
def fit(config: FitConfig, world: World, stop: Stop) -> dict[str, Any]:
    """Fit a head, or resume; returns its result as plain values. COLLECTIVE.

    Raises:
        StoppedError: on all ranks; everything is saved. CheckpointError: the folder holds another fit, or one of other
            pairs. DataError.
    """
    home = Folder(config.run, what="run")
    before = on_first(lambda: read_fit(home), world)
    on_first(lambda: folder.check(home, config), world)
    if before is not None and before["epochs"] >= config.epochs:
        on_first(lambda: check_parts([config]), world)
        on_first(lambda: note_progress(home, step=before["steps"], complete=True), world)
        return before
    found = _prepared(config, world)
    checkpoints = Checkpoints(home, world=world, config=config.checkpoint)
    latest = checkpoints.latest()
    if latest is not None:
        _refuse_other_pairs(home, latest.state.get(KEY), found.key)
    with closing(_engine(config, found.learner, world)) as engine:
        loop.check_layout(engine, latest)
        on_first(lambda: folder.write(home, config, world, notes=[found.origin]), world)
        on_first(lambda: note_progress(home, step=0, complete=False), world)
        start, best = loop.resume(engine, checkpoints.start(latest), steps_per_epoch=found.loader.steps_per_epoch)
        state = {KEY: found.key, TRAINED: counted(latest.state) if latest is not None else None}
        steps, began = found.loader.steps_per_epoch * config.epochs, time.monotonic()
        log = FitLog(
            home,
            learner=found.learner,
            state=state,
            world=world,
            total_steps=steps,
            start_step=start.global_step,
            every=config.log_every,
            check=checkpoints.may_write,
        )
        with log:
            summary = loop.train(
                engine,
                loader=found.loader,
                prepare=found.prepare,
                schedule=config.schedule,
                log=log,
                checkpoints=checkpoints,
                epochs=config.epochs,
                evaluation=_evaluation(config, found, engine, world),
                start=start,
                best=best,
                extra_state=state,
                stop=stop,
            )
        weight = engine.weights().get("mlp.weight")
        scores = measured(weight, found.held, config, world)
    result = _result(config, found, summary, scores, train_accuracy(state), began)
    on_first(lambda: _write(home, config, found, weight, result), world)
    return result


def _result(
    config: FitConfig, found: _Fit, summary: loop.Summary, scores: dict[str, float], trained: float | None, began: float
) -> dict[str, Any]:
    """Collect a fit's result. trained: accuracy in the steps of the last epoch. began: monotonic time of the start."""
    return {
        "epochs": summary.epochs,
        "steps": summary.step,
        **scores,
        "train_accuracy": trained,
        "of": measured_on(config, len(found.held)),
        "seconds": round(time.monotonic() - began, 2),
        "pairs": len(found.held) if config.val_share else None,
        "settings": to_plain(config),
        "key": found.key,
    }


def _engine(config: FitConfig, learner: ProjectionHead, world: World) -> Engine:
    return build_engine(
        config.engine,
        learner,
        optim=config.optim,
        world=world,
        global_batch=config.batch,
        micro_batch=config.batch // world.size,
        seed=config.seed,
    )


def _evaluation(config: FitConfig, found: _Fit, engine: Engine, world: World) -> loop.Evaluation | None:
    if config.eval_every is None:
        return None

    def run(between: Callable[[], None]) -> dict[str, float]:
        between()
        return measured(engine.weights().get("mlp.weight"), found.held, config, world)

    split: loop.Split = "validation" if config.val_share else "train"
    return loop.Evaluation(run=run, every_epochs=config.eval_every, metric="accuracy", split=split)


def _write(home: Folder, config: FitConfig, found: _Fit, weight: Tensor | None, result: dict[str, Any]) -> None:
    """Write the head, then the result, which marks the part as done."""
    assert weight is not None, "the first rank has the weights"
    facts, clip = _facts(config, found, result), _made_for(config, found)
    write_head(home / HEAD, weight.float().cpu(), facts=facts, pairs=found.key, clip=clip)
    home.write(RESULT, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    note_progress(home, step=result["steps"], complete=True)


def _made_for(config: FitConfig, found: _Fit) -> MadeFor:
    towers = config.pairs.towers
    arch = Path(towers.arch).name if towers.arch.endswith(".json") else towers.arch
    return MadeFor(arch=arch, settings=settings_sha256(towers), weights=found.key["clip"]["weights"])


def _facts(config: FitConfig, found: _Fit, result: dict[str, Any]) -> dict[str, str]:
    """What the head's card says, by heading."""
    clip, teacher = found.key["clip"], found.key["teacher"]
    return {
        "CLIP": ", ".join(f"{name} {value}" for name, value in clip.items()),
        "Teacher": ", ".join(f"{name} {value}" for name, value in teacher.items()),
        "Weights": found.origin,
        "Pictures": f"{config.pairs.source}, sha256 {found.key['source_sha256']}, without labels",
        "Fit": f"{result['steps']} steps of {config.batch} pairs, {config.epochs} epochs, temperature "
        f"{config.head.temperature}, seed {config.seed}, on {config.on}",
        "Result": line_of(result),
    }
