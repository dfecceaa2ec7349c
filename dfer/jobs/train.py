"""Train one fold of a configuration and evaluate the selected checkpoint."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from dfer.choices import LEAKS_LABEL
from dfer.data.augment import Augment
from dfer.data.mix import Mix
from dfer.distributed import World, on_first
from dfer.errors import UsageError
from dfer.evaluation.results import (
    FoldResult,
    read_result,
)
from dfer.inference import enough_gpu_memory
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import initial_of, last_of, raise_stop, report_test, score
from dfer.jobs.facts import (
    Training,
    changes_of,
    refuse_other_texts,
    refuse_result_alone,
    selected_checkpoint,
    state_facts,
)
from dfer.jobs.features import with_features
from dfer.jobs.fold_data import (
    FoldData,
    clips_of_rows,
    eval_loader,
    open_fold,
    refuse_little_memory,
    refuse_other_shards,
    train_loader,
    training_rows,
)
from dfer.jobs.initial import Initial
from dfer.jobs.targets import mix_of
from dfer.recognition import PADDING, Batch, ClipBatch, FeatureBatch
from dfer.run import folder
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import finished
from dfer.storage import Folder
from dfer.training import loop
from dfer.training.build import build_engine
from dfer.training.engine import Engine
from dfer.training.log import RunLog


@enough_gpu_memory()
def train(config: RunConfig, world: World, stop: Stop | None = None) -> FoldResult:
    """Train one fold and evaluate the selected checkpoint; resumes an existing run folder of the same configuration.

    COLLECTIVE: all ranks call it inside `dfer.distributed.process_group`. For a finished run, the stored result is
    returned, unless `epochs` was raised. Another copy that is running in the folder is fenced off.

    Raises:
        StoppedError: on all ranks, if `stop` was requested on any; everything is saved.
        FencedError: on all ranks, if a newer copy took over the folder.
        GpuMemoryError: on the rank whose GPU memory is too small.
    """
    home, stop = Folder(config.run, what="run"), stop or Stop()
    is_finished = on_first(lambda: finished(home, config.epochs), world)
    on_first(lambda: folder.check(home, config), world)
    if is_finished:
        result = _trained_result(config)
        on_first(lambda: folder.write(home, config, world, finished=True), world)
        return result
    clips = open_fold(config)
    checkpoints = Checkpoints(home, world=world, config=config.checkpoint)
    train_loader(config, clips, world)  # raises for an impossible batch before features are computed
    latest = _latest(config, clips, checkpoints, world)
    mix = mix_of(config, clips, world)  # as well for votes that the shards lack
    clips = with_features(config, clips, world, begun=latest, stop=stop)
    loader = train_loader(config, clips, world)
    parts = [part for part in (clips.select, clips.test) if part]
    refuse_little_memory([loader, *(eval_loader(config, clips, part, world) for part in parts)])
    initial = initial_of(config, clips, world, resumed=latest)
    with closing(_engine(config, initial, clips, world)) as engine:
        loop.check_layout(engine, latest)
        recorded = on_first(lambda: folder.recorded(home), world)
        on_first(lambda: folder.write(home, config, world, notes=initial.notes), world)
        latest = checkpoints.start(latest)
        start, best = loop.resume(engine, latest, steps_per_epoch=loader.steps_per_epoch)
        changed = changes_of(config, latest, recorded)
        if latest:
            latest.close()
        steps = loader.steps_per_epoch * config.epochs
        with _log(config, initial, checkpoints, world, steps=steps, start=start.global_step) as log:
            summary = loop.train(
                engine,
                loader=loader,
                prepare=_prepare(config, mix, world),
                schedule=config.schedule,
                log=log,
                checkpoints=checkpoints,
                epochs=config.epochs,
                evaluation=_evaluation(config, clips, engine, world),
                start=start,
                best=best,
                extra_state=state_facts(initial, clips, config, changed),
                stop=stop,
                clips_of=_clips_of(config, clips),
            )
        stopped = summary.epochs if summary.stopped_early else 0
        training = Training(epochs=config.epochs, complete=True, stopped=stopped, changed=changed)
        return _tested(config, clips, engine, checkpoints, initial, world, stop=stop, training=training)


def _log(
    config: RunConfig, initial: Initial, checkpoints: Checkpoints, world: World, *, steps: int, start: int
) -> RunLog:
    return RunLog(
        Folder(config.run, what="run"),
        world=world,
        total_steps=steps,
        start_step=start,
        every=config.log_every,
        check=checkpoints.may_write,
        warning=LEAKS_LABEL if initial.model.leaks_label else "",
    )


def _engine(config: RunConfig, initial: Initial, clips: FoldData, world: World) -> Engine:
    return build_engine(
        config.engine,
        initial.model,
        optim=config.optim,
        world=world,
        global_batch=config.batch,
        micro_batch=config.share(world),
        key_of=training_rows(config, clips).keys.__getitem__,
        seed=config.seed,
        mixes=config.data.mix.mixes,
        ema=config.ema,
    )


def _tested(
    config: RunConfig,
    clips: FoldData,
    engine: Engine,
    checkpoints: Checkpoints,
    initial: Initial,
    world: World,
    *,
    stop: Stop,
    training: Training,
) -> FoldResult:
    """Evaluate the selected checkpoint on the test clips; the last one too, if the rule may choose another. COLLECTIVE.

    The engine holds the weights of the last step, which are not those that are evaluated where these are averages.
    """
    newest = checkpoints.latest()
    chosen, last = selected_checkpoint(config, checkpoints, newest), None
    if newest and config.select != "last":
        if config.ema is not None:
            engine.load_weights(newest.evaluated())
        found = score(config, clips, clips.test, engine.forward, world, between=lambda: raise_stop(stop))
        last = last_of(found, newest)
    if config.select != "last" or config.ema is not None:
        engine.load_weights(chosen.evaluated())
    chosen.close()
    return report_test(
        config,
        clips,
        engine.forward,
        chosen,
        initial,
        world,
        checkpoints=checkpoints,
        stop=stop,
        training=training,
        last=last,
    )


def _latest(config: RunConfig, clips: FoldData, checkpoints: Checkpoints, world: World) -> Checkpoint | None:
    """Open the checkpoint from which training resumes; None if it starts from the beginning.

    Raises:
        CheckpointError: shards or class texts differ, or there is a result but no checkpoint.
    """
    latest = checkpoints.latest()
    if latest:
        refuse_other_shards(config, clips.store, latest.state.get("manifest_sha256"))
        refuse_other_texts(config, clips.emotions, latest.state)
    else:
        on_first(lambda: refuse_result_alone(Folder(config.run)), world)
    return latest


def _clips_of(config: RunConfig, clips: FoldData) -> Callable[[Sequence[int]], list[int]] | None:
    """Return what gives the training clips of rows, for the record of every step; None if none is wanted."""
    if not config.record_clips:
        return None
    of_rows = clips_of_rows(config, clips)
    return lambda rows: [PADDING if row == PADDING else int(of_rows[row]) for row in rows]


def _prepare(config: RunConfig, mix: Mix, world: World) -> Callable[[Batch, int], Batch]:
    """Return a function that moves a batch to the device, augments frames there and sets targets. Features are not
    augmented: they were computed from unaugmented frames."""
    augment = Augment(config.data.augment, config.seed)

    def prepare(batch: Batch, epoch: int) -> Batch:
        moved = batch.to(world.device)
        if isinstance(moved, ClipBatch):
            return mix(augment(moved, epoch), epoch)
        return mix(moved, epoch) if isinstance(moved, FeatureBatch) else moved

    return prepare


def _trained_result(config: RunConfig) -> FoldResult:
    home = Folder(config.run)
    result = read_result(home)
    if result.step == 0:
        raise UsageError(
            f"{home}: expected a training run, got the evaluation of a model that was not trained here. "
            "Choose another folder with run=FOLDER."
        )
    refuse_other_shards(config, config.data.store(), result.manifest_sha256)
    return result


def _evaluation(config: RunConfig, clips: FoldData, engine: Engine, world: World) -> loop.Evaluation | None:
    part = clips.select or (clips.test if config.eval_every else None)
    if part is None:
        return None
    run = partial(score, config, clips, part, engine.forward, world)

    def metrics(between: Callable[[], None]) -> dict[str, float]:
        found = run(between=between).scores
        return {"war": found.war, "uar": found.uar}

    return loop.Evaluation(
        run=metrics,
        every_epochs=config.eval_every or 1,
        select=config.select,
        split="validation" if config.select == "best_on_val" else "test",
        early_stop=config.early_stop,
    )
