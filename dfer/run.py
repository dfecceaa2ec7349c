"""Training, cross-validation and evaluation of a configuration: the only place that knows every room."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial

from dfer import folder
from dfer.checkpoint import Checkpoint, Checkpoints
from dfer.config import ConfigProblem
from dfer.data.augment import Augment
from dfer.data.clips import ClipSet
from dfer.data.format import to_json
from dfer.data.loader import Loader
from dfer.data.splits import Split, folds, hold_out, split_of
from dfer.data.store import Store
from dfer.distributed import World, barrier, highest, on_first
from dfer.emotions import Emotions, label_set
from dfer.errors import CheckpointError, UsageError
from dfer.evaluation.evaluator import Evaluation, evaluate
from dfer.evaluation.report import ReportPaths, write_report
from dfer.evaluation.results import (
    FoldResult,
    Protocol,
    fold_result,
    read_result,
    save_predictions,
    save_result,
)
from dfer.initial import START, Initial, initial_model
from dfer.interruption import Stop
from dfer.recognition import ClipBatch, Recognition, Recognizer
from dfer.run_config import RunConfig
from dfer.run_files import CHECKPOINTS, RESULT
from dfer.storage import Folder
from dfer.training import loop
from dfer.training.engine import Engine, build_engine, enough_gpu_memory, inference
from dfer.training.log import RunLog
from dfer.training.optim import group_settings

Forward = Callable[[ClipBatch], Recognition]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The clips of one fold. `select` is what chooses the checkpoint: validation or test clips, or None."""

    store: Store
    split: Split
    num_folds: int
    emotions: Emotions
    train: ClipSet
    test: ClipSet
    select: ClipSet | None
    validation: str


def open_clips(config: RunConfig) -> Clips:
    """Open the shards and form the fold. Raises DataError or ConfigProblem when they do not fit the configuration."""
    emotions, store = label_set(config.data.classes), config.data.store()
    partitions = store.manifest.partitions()
    split = split_of(partitions, config.fold)
    train = ClipSet.open(store, split.train, emotions=emotions)
    test = ClipSet.open(store, split.test, emotions=emotions)
    select, validation = (test if config.select == "best_on_test" else None), ""
    if config.select == "best_on_val":
        kept, held = hold_out(train.keys, train.subjects, share=config.val_share, seed=config.seed)
        validation = f"{len(held)} of {len(train)} training clips held out"
        train, select = train.select(kept), train.select(held)
    return Clips(
        store=store, split=split, num_folds=len(folds(partitions)), emotions=emotions, train=train, test=test,
        select=select, validation=validation,
    )  # fmt: skip


@enough_gpu_memory()
def train(config: RunConfig, world: World, stop: Stop | None = None) -> FoldResult:
    """Train one fold and evaluate the selected checkpoint; continues an existing run folder of the same configuration.

    Call it on all ranks inside `dfer.distributed.process_group`. A finished run is returned as it is. Another copy that
    is at work in the folder is fenced off.

    Raises:
        StoppedError: on all ranks, when `stop` was requested on any; all is saved.
        FencedError: on all ranks, when a newer copy took the folder over.
        GpuMemoryError: on the rank whose GPU is too small.
    """
    home, stop = Folder(config.run, what="run"), stop or Stop()
    finished = on_first(lambda: home.size(RESULT) is not None, world)
    folder.check(home, config, world)
    if finished:
        result = _trained_result(config)
        folder.write(home, config, world, finished=True)
        return result
    clips = open_clips(config)
    checkpoints = Checkpoints(home, world=world, config=config.checkpoint)
    latest = checkpoints.latest()
    if latest:
        _refuse_other_shards(config, clips.store, latest.state.get("manifest_sha256"))
    initial = _initial(config, clips, world, resumed=latest)
    recognizer = initial.model
    loader = train_loader(config, clips, world)
    engine = build_engine(
        config.engine, recognizer, optim=config.optim, world=world, global_batch=config.batch,
        micro_batch=config.share(world), key_of=clips.train.keys.__getitem__,
    )  # fmt: skip
    with closing(engine):
        folder.write(home, config, world, notes=initial.notes)
        latest = checkpoints.start(latest)
        start, best = loop.resume(engine, latest, steps_per_epoch=loader.steps_per_epoch)
        if latest:
            latest.close()
        total = loader.steps_per_epoch * config.epochs
        augment = Augment(config.data.augment, config.seed)
        with RunLog(
            home, world=world, total_steps=total, start_step=start.global_step, every=config.log_every,
            check=checkpoints.may_write,
        ) as log:  # fmt: skip
            loop.train(
                engine, loader=loader, prepare=lambda batch, epoch: augment(batch.to(world.device), epoch),
                schedule=config.schedule, log=log, checkpoints=checkpoints, epochs=config.epochs,
                evaluation=_evaluation(config, clips, engine, world), start=start, best=best,
                extra_state=_facts(initial, clips, config), stop=stop, record_clips=config.record_clips,
            )  # fmt: skip
        chosen = selected_checkpoint(config, checkpoints)
        if config.select != "last":
            engine.load_weights(chosen.weights())
        chosen.close()
        return _report_test(config, clips, engine.forward, chosen, initial, world, checkpoints=checkpoints, stop=stop)


def _initial(config: RunConfig, clips: Clips, world: World, *, resumed: Checkpoint | None) -> Initial:
    manifest_sha256 = _manifest_hash(clips.store)
    initial = initial_model(config, clips.emotions, world, manifest_sha256=manifest_sha256, resumed=resumed)
    initial.tell(world)
    return initial


def _trained_result(config: RunConfig) -> FoldResult:
    home = Folder(config.run)
    result = read_result(home)
    if result.step == 0:
        raise UsageError(
            f"{home}: expected a training run, got the evaluation of a model that was not trained here. "
            "Choose another folder with run=FOLDER."
        )
    _refuse_other_shards(config, Store(config.data.shards), result.manifest_sha256)
    return result


def _refuse_other_shards(config: RunConfig, store: Store, trained_on: str | None) -> None:
    """Raises CheckpointError when the shards are not those of the training; they may lie elsewhere."""
    found = _manifest_hash(store)
    if trained_on not in (None, found):
        raise CheckpointError(
            f"{config.run}: expected the shards it was started with, manifest sha256 {str(trained_on)[:12]}..., "
            f"got {found[:12]}... in {config.data.shards}. "
            "Set data.shards to those, or start a new run with run=FOLDER."
        )


def crossval(
    config: RunConfig, world: World, *, only: Sequence[int] = (), stop: Stop | None = None
) -> ReportPaths | None:
    """All folds one after another, each in `run`/fold_k, then the report (on the first rank). Continues where it was.

    only: train just these folds; the report then says which are missing.
    """
    known = known_folds(config)
    wanted = sorted(set(only)) or known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigProblem(f"folds: expected some of {', '.join(map(str, known))}, got {unknown[0]}. Correct --folds")
    home = Folder(config.run, what="run")
    if on_first(lambda: home.exists(folder.CONFIG), world):
        raise UsageError(
            f"{config.run}: expected a folder for {len(known)} folds, got the run of a single one. "
            "Choose another one with run=FOLDER."
        )
    for number in wanted:
        if world.is_first:
            print(f"== fold {number} of {len(known)}", flush=True)
        train(replace(config, fold=number, run=str(home / f"fold_{number}")), world, stop)
        barrier()
    return write_report(home) if world.is_first else None


def known_folds(config: RunConfig) -> list[int]:
    """The folds the shards give."""
    return list(folds(Store(config.data.shards).manifest.partitions()))


@enough_gpu_memory()
def evaluate_run(config: RunConfig, world: World, *, trained: bool) -> FoldResult:
    """Evaluate a run's selected checkpoint again, or (trained=False) the configured weights as they are.

    Raises:
        CheckpointError: the configuration or the shards are not those the run was started with.
        UsageError: untrained weights are to be evaluated into the folder of a training run.
    """
    home = Folder(config.run, what="run")
    if not trained and on_first(lambda: home.exists(CHECKPOINTS), world):
        raise UsageError(
            f"{home}: expected a folder for a model that is not trained here, got a training run. "
            f"Evaluate that with `dfer evaluate {home}`, or choose another folder with run=FOLDER."
        )
    folder.check(home, config, world)
    clips = open_clips(config)
    chosen = selected_checkpoint(config, Checkpoints(home, world=world)) if trained else None
    if chosen:
        _refuse_other_shards(config, clips.store, chosen.state.get("manifest_sha256"))
    initial = _initial(config, clips, world, resumed=chosen)
    recognizer = initial.model
    if chosen:
        load_checkpoint(recognizer, chosen)
    forward = inference(recognizer, precision=config.engine.precision, device=world.device)
    if not trained:
        folder.write(home, config, world, notes=initial.notes)
    return _report_test(config, clips, forward, chosen, initial, world)


def load_checkpoint(recognizer: Recognizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a recognizer, and close it. Raises CheckpointError when the names differ."""
    weights, own = checkpoint.weights(), recognizer.state_dict()
    checkpoint.close()
    odd = sorted(weights.keys() ^ own.keys())
    odd = odd or sorted(name for name in own if own[name].shape != weights[name].shape)
    if odd:
        raise CheckpointError(
            f"{checkpoint.folder}: expected the weights of this model, got others ({', '.join(odd[:4])}). "
            "Evaluate it with the configuration it was trained with."
        )
    recognizer.load_state_dict(weights)


def describe(config: RunConfig, world: World) -> str:
    """What `train` would do: clips, parameters by group, steps. Reads manifest and indexes, trains nothing."""
    clips = open_clips(config)
    initial = initial_model(config, clips.emotions, World(), manifest_sha256=_manifest_hash(clips.store))
    recognizer = initial.model
    loader = train_loader(config, clips, world)
    sizes = {name: sum(p.numel() for p in group) for name, group in recognizer.param_groups().items()}
    rates = {setting.name: setting.lr for setting in group_settings(config.optim, recognizer)}
    frozen = sum(p.numel() for p in recognizer.parameters() if not p.requires_grad)
    lines = [f"fold {clips.split.fold} of {clips.num_folds}: trains on {', '.join(clips.split.train)}"]
    for name, part in (("train", clips.train), ("select", clips.select), ("test", clips.test)):
        if part is not None:
            counts = ", ".join(f"{e} {n}" for e, n in zip(clips.emotions.names, part.counts))
            lines.append(f"{name:>8}: {len(part)} clips ({counts})")
    lines += [f"{name:>8}: {count:,} parameters, lr {rates.get(name)}" for name, count in sizes.items()]
    lines.append(f"  frozen: {frozen:,} parameters")
    steps = loader.steps_per_epoch
    lines.append(
        f"   steps: {steps} an epoch, {steps * config.epochs} in all, {loader.accumulation} micro-batches each"
    )
    return "\n".join([*lines, *(f" weights: {note}" for note in initial.notes or ())])


def train_loader(config: RunConfig, clips: Clips, world: World) -> Loader:
    """The loader of the training clips. Raises ConfigProblem when the batch does not divide by the world."""
    if config.micro_batch is None and config.batch % world.size:
        below = config.batch // world.size * world.size
        fitting = " or ".join(str(batch) for batch in (below, below + world.size) if batch)
        raise ConfigProblem(
            f"batch: expected a multiple of {world.size} ranks, got {config.batch}. Set batch to {fitting}"
        )
    return Loader(
        clips.train, config.data, world=world, seed=config.seed, train=True, global_batch=config.batch,
        micro_batch=config.share(world),
    )  # fmt: skip


def _evaluation(config: RunConfig, clips: Clips, engine: Engine, world: World) -> loop.Evaluation | None:
    part = clips.select or (clips.test if config.eval_every else None)
    if part is None:
        return None
    run = partial(_score, config, part, clips.emotions, engine.forward, world)

    def metrics(between: Callable[[], None]) -> dict[str, float]:
        found = run(between=between).scores
        return {"war": found.war, "uar": found.uar}

    return loop.Evaluation(run=metrics, every_epochs=config.eval_every or 1, select=config.select)


def _score(
    config: RunConfig, part: ClipSet, emotions: Emotions, forward: Forward, world: World, *, predictions: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:  # fmt: skip
    loader = Loader(
        part, config.data, world=world, seed=config.seed, train=False, global_batch=config.eval_batch * world.size,
        micro_batch=config.eval_batch,
    )  # fmt: skip
    return evaluate(
        forward, loader.epoch(0), num_classes=len(emotions), expected=len(part), device=world.device, keys=part.keys,
        predictions=predictions, between=between,
    )  # fmt: skip


def _report_test(
    config: RunConfig, clips: Clips, forward: Forward, chosen: Checkpoint | None, initial: Initial, world: World,
    *, checkpoints: Checkpoints | None = None, stop: Stop | None = None,
) -> FoldResult:  # fmt: skip
    """checkpoints, stop: of a training run, which may be fenced off or stopped during this evaluation too."""

    def between() -> None:
        if stop and highest([stop.requested], world)[0]:
            raise loop.stopped(stop, at="the evaluation of the test clips")

    found = _score(config, clips.test, clips.emotions, forward, world, predictions=True, between=between)
    home = Folder(config.run)
    position = chosen.state["training"] if chosen else {"epoch": 0}
    # The authors of a released checkpoint chose it on the test clips, whatever our configuration says of its own runs.
    untrained = initial.selection or ("best_on_test" if config.model.released else config.select)
    selection = config.select if chosen else untrained
    result = fold_result(
        found.scores, dataset=clips.store.manifest.dataset, method=config.model.name, fold=clips.split.fold,
        num_folds=clips.num_folds, train_partitions=clips.split.train, test_partitions=clips.split.test,
        validation=clips.validation, classes=clips.emotions.names, selection=selection,
        step=chosen.step if chosen else 0, epoch=position["epoch"], seed=config.seed,
        protocol=_protocol(config, initial.model), checkpoint=f"step_{chosen.step:08d}" if chosen else _source(config),
        manifest_sha256=_manifest_hash(clips.store), finished=_now(), seconds=round(found.seconds, 2),
        generated=clips.store.manifest.generated, excluded=len(clips.store.manifest.excluded),
        start=initial.start,
    )  # fmt: skip

    def write() -> None:
        assert found.predictions is not None
        if checkpoints:
            checkpoints.may_write()
        save_predictions(found.predictions, home, keys=clips.test.keys, classes=clips.emotions.names)
        save_result(result, home)

    on_first(write, world)
    return result


def selected_checkpoint(config: RunConfig, checkpoints: Checkpoints) -> Checkpoint:
    """The checkpoint the selection rule names. Raises CheckpointError when training left none."""
    found = checkpoints.latest() if config.select == "last" else checkpoints.best()
    if found is None:
        raise CheckpointError(
            f"{checkpoints.folder}: expected a checkpoint selected by `{config.select}`, got none. "
            "Train first: dfer train CONFIG"
        )
    return found


def _protocol(config: RunConfig, model: Recognizer) -> Protocol:
    augment = config.data.augment
    words = [
        f"random resized crop of {augment.min_area:.0%} to 100 %" if augment.crop else "",
        f"flip {augment.flip}" if augment.flip else "",
        f"brightness 1 +- {augment.brightness}" if augment.brightness else "",
        f"rotation +- {augment.rotation} degrees, nearest pixel" if augment.rotation else "",
    ]
    return Protocol(
        num_frames=config.data.frames, size=config.data.size, normalisation=model.normalisation,
        augment=", ".join(word for word in words if word) or "none",
    )  # fmt: skip


def _facts(initial: Initial, clips: Clips, config: RunConfig) -> dict[str, object]:
    """What a checkpoint must say of itself to be used without its run folder."""
    return {
        "model": asdict(config.model), "classes": list(clips.emotions.names), "num_frames": config.data.frames,
        "size": config.data.size, "normalisation": initial.model.normalisation, "seed": config.seed,
        "manifest_sha256": _manifest_hash(clips.store), START: initial.start,
    }  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _source(config: RunConfig) -> str:
    return config.model.start or config.model.released or config.model.towers.pretrained or "random weights"


def _manifest_hash(store: Store) -> str:
    return hashlib.sha256(to_json(store.manifest)).hexdigest()
