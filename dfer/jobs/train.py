"""Training, cross-validation and evaluation of a configuration: the only place that knows every room."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from dfer.config import ConfigProblem
from dfer.data.augment import Augment
from dfer.data.clips import ClipSet
from dfer.data.loader import Loader
from dfer.data.splits import Split, folds, hold_out, split_of
from dfer.distributed import World, barrier, gather_objects, highest, on_first
from dfer.emotions import Emotions, label_set
from dfer.errors import CheckpointError, DeniedError, UsageError, message
from dfer.evaluation.evaluator import Evaluation, evaluate
from dfer.evaluation.results import (
    ELSEWHERE,
    FoldResult,
    file_of,
    fold_result,
    read_result,
    save_predictions,
    save_result,
)
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import (
    Training,
    changes_of,
    load_checkpoint,
    manifest_hash,
    now,
    protocol_of,
    refuse_result_alone,
    selected_checkpoint,
    source_of,
    state_facts,
)
from dfer.jobs.initial import Initial, initial_model
from dfer.jobs.parts import known_folds
from dfer.models.files import is_released
from dfer.recognition import ClipBatch, Recognition
from dfer.report.write import ReportPaths, write_report
from dfer.run import folder
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import CONFIG, RESULTS, finished, is_trained
from dfer.storage import Folder
from dfer.store.shards import Store
from dfer.training import loop
from dfer.training.build import build_engine
from dfer.training.engine import Engine
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

    Call it on all ranks inside `dfer.distributed.process_group`. A finished run is returned as it is, unless `epochs`
    was raised. Another copy that is at work in the folder is fenced off.

    Raises:
        StoppedError: on all ranks, when `stop` was requested on any; all is saved.
        FencedError: on all ranks, when a newer copy took the folder over.
        GpuMemoryError: on the rank whose GPU is too small.
    """
    home, stop = Folder(config.run, what="run"), stop or Stop()
    is_finished = on_first(lambda: finished(home, config.epochs), world)
    on_first(lambda: folder.check(home, config), world)
    if is_finished:
        result = _trained_result(config)
        on_first(lambda: folder.write(home, config, world, finished=True), world)
        return result
    clips = open_clips(config)
    checkpoints = Checkpoints(home, world=world, config=config.checkpoint)
    loader = train_loader(config, clips, world)
    _refuse_little_memory([loader, *(_eval_loader(config, part, world) for part in (clips.select, clips.test) if part)])
    latest = _latest(config, clips, checkpoints, world)
    initial = _initial(config, clips, world, resumed=latest)
    recognizer = initial.model
    engine = build_engine(
        config.engine, recognizer, optim=config.optim, world=world, global_batch=config.batch,
        micro_batch=config.share(world), key_of=clips.train.keys.__getitem__, seed=config.seed)  # fmt: skip
    with closing(engine):
        recorded = on_first(lambda: folder.recorded(home), world)
        on_first(lambda: folder.write(home, config, world, notes=initial.notes), world)
        latest = checkpoints.start(latest)
        start, best = loop.resume(engine, latest, steps_per_epoch=loader.steps_per_epoch)
        changed = changes_of(config, latest, recorded)
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
                extra_state=state_facts(initial, clips.store, clips.emotions, config, changed), stop=stop,
                record_clips=config.record_clips,
            )  # fmt: skip
        chosen = selected_checkpoint(config, checkpoints)
        if config.select != "last":
            engine.load_weights(chosen.weights())
        chosen.close()
        return _report_test(
            config, clips, engine.forward, chosen, initial, world, checkpoints=checkpoints, stop=stop,
            training=Training(epochs=config.epochs, complete=True, changed=changed),
        )  # fmt: skip


def _latest(config: RunConfig, clips: Clips, checkpoints: Checkpoints, world: World) -> Checkpoint | None:
    """What training goes on from. Raises CheckpointError for other shards, or a result whose checkpoints are gone."""
    latest = checkpoints.latest()
    if latest:
        _refuse_other_shards(config, clips.store, latest.state.get("manifest_sha256"))
    else:
        on_first(lambda: refuse_result_alone(Folder(config.run)), world)
    return latest


def _initial(config: RunConfig, clips: Clips, world: World, *, resumed: Checkpoint | None) -> Initial:
    sha256 = manifest_hash(clips.store)
    initial = initial_model(config, clips.emotions, world, manifest_sha256=sha256, resumed=resumed)
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
    found = manifest_hash(store)
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
    if on_first(lambda: home.exists(CONFIG), world):
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


@enough_gpu_memory()
def evaluate_run(config: RunConfig, world: World, *, trained: bool, out: Folder | None = None) -> FoldResult:
    """Evaluate a run's selected checkpoint again, or (trained=False) the configured weights as they are.

    out: where a trained run's results go instead of the run, to which nothing is written then.
    A training that is not complete may be at work meanwhile: nothing of it is written to, and the result has a file of
    its own, which does not end the run.

    Raises:
        DeniedError: the results cannot be written there; known before the evaluation where that is on a disk.
        CheckpointError: the configuration or the shards are not those the run was started with.
        UsageError: untrained weights are to be evaluated into the folder of a training run.
    """
    home = Folder(config.run, what="run")
    if not trained and on_first(lambda: is_trained(home), world):
        raise UsageError(
            f"{home}: expected a folder for a model that is not trained here, got a training run. "
            f"Evaluate that with `dfer evaluate {home}`, or choose another folder with run=FOLDER."
        )
    on_first(lambda: folder.check(home, config), world)
    if trained:
        on_first(lambda: _check_target(home, out), world)
    clips = open_clips(config)
    training, chosen = Training(epochs=0, complete=True), None
    if trained:
        checkpoints = Checkpoints(home, world=world)
        newest = checkpoints.latest()
        chosen = selected_checkpoint(config, checkpoints, newest)
        training = Training.at(newest or chosen, epochs=config.epochs)
        _refuse_other_shards(config, clips.store, chosen.state.get("manifest_sha256"))
    initial = _initial(config, clips, world, resumed=chosen)
    recognizer = initial.model
    if chosen:
        load_checkpoint(recognizer, chosen)
    set_tf32(config.engine.tf32)
    _refuse_little_memory([_eval_loader(config, clips.test, world)])
    forward = inference(recognizer, precision=config.engine.precision, device=world.device)
    if not trained:
        on_first(lambda: folder.write(home, config, world, notes=initial.notes), world)
    return _report_test(config, clips, forward, chosen, initial, world, training=training, out=out)


def _check_target(home: Folder, out: Folder | None) -> None:
    """Raises UsageError where `out` is a run folder, DeniedError where the results cannot be written."""
    if out and out.exists(CONFIG):
        do = "Choose another one with --out FOLDER."
        raise UsageError(message(out, expected="a folder that is no run's", got="a run folder", do=do))
    try:
        ((out or home) / RESULTS).check_writable()
    except DeniedError as error:
        raise DeniedError(f"{error} {ELSEWHERE.format(command=f'dfer evaluate {home}')}") from error


def describe(config: RunConfig, world: World) -> str:
    """What `train` would do: clips, parameters by group, steps. Reads manifest and indexes, trains nothing."""
    clips = open_clips(config)
    initial = initial_model(config, clips.emotions, World(), manifest_sha256=manifest_hash(clips.store))
    recognizer = initial.model
    loader = train_loader(config, clips, world)
    sizes = {name: sum(p.numel() for p in group.params) for name, group in recognizer.param_groups().items()}
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
    if config.batch % world.size:
        below = config.batch // world.size * world.size
        fitting = " or ".join(str(batch) for batch in (below, below + world.size) if batch)
        raise ConfigProblem(
            f"batch: expected a multiple of {world.size} ranks, got {config.batch}. Set batch to {fitting}"
        )
    return Loader(
        clips.train, config.data, world=world, seed=config.seed, train=True, global_batch=config.batch,
        micro_batch=config.share(world),
    )  # fmt: skip


def _eval_loader(config: RunConfig, part: ClipSet, world: World) -> Loader:
    return Loader(
        part, config.data, world=world, seed=config.seed, train=False, global_batch=config.eval_batch * world.size,
        micro_batch=config.eval_batch,
    )  # fmt: skip


def _refuse_little_memory(loaders: Sequence[Loader]) -> None:
    """Raises UsageError on all ranks when the shared memory of any rank's host is too small for the data workers."""
    lacks = [text for texts in gather_objects([loader.lack_of_memory() for loader in loaders]) for text in texts]
    if problem := next(filter(None, lacks), ""):
        raise UsageError(problem)


def _evaluation(config: RunConfig, clips: Clips, engine: Engine, world: World) -> loop.Evaluation | None:
    part = clips.select or (clips.test if config.eval_every else None)
    if part is None:
        return None
    run = partial(_score, config, part, clips.emotions, engine.forward, world)

    def metrics(between: Callable[[], None]) -> dict[str, float]:
        found = run(between=between).scores
        return {"war": found.war, "uar": found.uar}

    return loop.Evaluation(
        run=metrics, every_epochs=config.eval_every or 1, select=config.select,
        split="validation" if config.select == "best_on_val" else "test",
    )  # fmt: skip


def _score(
    config: RunConfig, part: ClipSet, emotions: Emotions, forward: Forward, world: World, *, predictions: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:  # fmt: skip
    loader = _eval_loader(config, part, world)
    return evaluate(
        forward, loader.epoch(0), num_classes=len(emotions), expected=len(part), device=world.device, keys=part.keys,
        predictions=predictions, between=between,
    )  # fmt: skip


def _report_test(
    config: RunConfig, clips: Clips, forward: Forward, chosen: Checkpoint | None, initial: Initial, world: World,
    *, training: Training, checkpoints: Checkpoints | None = None, stop: Stop | None = None,
    out: Folder | None = None,
) -> FoldResult:  # fmt: skip
    """checkpoints, stop: of a training run, which may be fenced off or stopped during this evaluation too. out: where
    the results go instead of the run."""

    def between() -> None:
        if stop and highest([stop.requested])[0]:
            raise loop.stopped(stop, at="the evaluation of the test clips")

    found = _score(config, clips.test, clips.emotions, forward, world, predictions=True, between=between)
    home = out or Folder(config.run)
    position = chosen.state["training"] if chosen else {"epoch": 0}
    # The authors of a released checkpoint chose it on the test clips, whatever our configuration says of its own runs.
    untrained = initial.selection or ("best_on_test" if is_released(config.model) else config.select)
    selection = config.select if chosen else untrained
    result = fold_result(
        found.scores, dataset=clips.store.manifest.dataset, method=config.model.name, fold=clips.split.fold,
        num_folds=clips.num_folds, train_partitions=clips.split.train, test_partitions=clips.split.test,
        validation=clips.validation, classes=clips.emotions.names, selection=selection,
        step=chosen.step if chosen else 0, epoch=position["epoch"], epochs=training.epochs,
        complete=training.complete, changed=training.changed, seed=config.seed,
        protocol=protocol_of(config, initial.model),
        checkpoint=f"step_{chosen.step:08d}" if chosen else source_of(config),
        manifest_sha256=manifest_hash(clips.store), finished=now(), seconds=round(found.seconds, 2),
        generated=clips.store.manifest.generated, excluded=len(clips.store.manifest.excluded),
        start=initial.start,
    )  # fmt: skip

    def write() -> None:
        assert found.predictions is not None
        if checkpoints:
            checkpoints.may_write()
        save_predictions(
            found.predictions, home, keys=clips.test.keys, classes=clips.emotions.names, beside=file_of(result)
        )
        save_result(result, home)

    on_first(write, world)
    return result
