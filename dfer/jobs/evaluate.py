"""Evaluate a run's selected checkpoint, or weights that were not trained here."""

from collections.abc import Callable

from dfer.data.clips import ClipSet
from dfer.distributed import World, highest, on_first
from dfer.errors import DeniedError, UsageError, message
from dfer.evaluation.evaluator import Evaluation, evaluate
from dfer.evaluation.results import (
    ELSEWHERE,
    FoldResult,
    file_of,
    fold_result,
    save_predictions,
    save_result,
)
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import (
    Training,
    load_checkpoint,
    now,
    protocol_of,
    refuse_other_texts,
    selected_checkpoint,
    source_of,
)
from dfer.jobs.features import with_features
from dfer.jobs.fold_data import (
    FoldData,
    eval_loader,
    manifest_hash,
    open_fold,
    refuse_little_memory,
    refuse_other_shards,
)
from dfer.jobs.initial import Initial, initial_model, refuse_drawn
from dfer.recognition import Batch, Recognition
from dfer.run import folder
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import CONFIG, RESULTS, is_trained
from dfer.storage import Folder
from dfer.training import loop

Forward = Callable[[Batch], Recognition]


def initial_of(config: RunConfig, clips: FoldData, world: World, *, resumed: Checkpoint | None) -> Initial:
    """Build the model with its initial weights, or one that `resumed` will be loaded into. COLLECTIVE.

    The first rank prints where the weights come from.
    """
    initial = initial_model(config, clips, world, resumed=resumed)
    initial.tell(world)
    return initial


@enough_gpu_memory()
def evaluate_run(config: RunConfig, world: World, *, trained: bool, out: Folder | None = None) -> FoldResult:
    """Evaluate a run's selected checkpoint again, or (trained=False) the configured weights as they are.

    out: folder for the results of a trained run; nothing is then written to the run itself.
    An incomplete training may be running at the same time: none of its files is changed, and the result goes into a
    separate file, which does not mark the run as finished.

    Raises:
        DeniedError: the results cannot be written there; on a disk this is checked before the evaluation.
        CheckpointError: the configuration or the shards are not those the run was started with.
        UsageError: the folder holds a training run, but the weights to evaluate were not trained here.
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
    clips = open_fold(config)
    training, chosen = Training(epochs=0, complete=True), None
    if trained:
        checkpoints = Checkpoints(home, world=world)
        newest = checkpoints.latest()
        chosen = selected_checkpoint(config, checkpoints, newest)
        training = Training.at(newest or chosen, config)
        refuse_other_shards(config, clips.store, chosen.state.get("manifest_sha256"))
        refuse_other_texts(config, clips.emotions, chosen.state)
    clips = with_features(config, clips, world, begun=chosen)
    initial = initial_of(config, clips, world, resumed=chosen)
    recognizer = initial.model
    refuse_drawn(config, initial)
    if chosen:
        load_checkpoint(recognizer, chosen)
    set_tf32(config.engine.tf32)
    refuse_little_memory([eval_loader(config, clips, clips.test, world)])
    forward = inference(recognizer, precision=config.engine.precision, device=world.device)
    if not trained:
        on_first(lambda: folder.write(home, config, world, notes=initial.notes), world)
    return report_test(config, clips, forward, chosen, initial, world, training=training, out=out)


def _check_target(home: Folder, out: Folder | None) -> None:
    """Raise UsageError if `out` is a run folder, DeniedError if the results cannot be written."""
    if out and out.exists(CONFIG):
        do = "Choose another one with --out FOLDER."
        raise UsageError(message(out, expected="a folder that is no run's", got="a run folder", do=do))
    try:
        ((out or home) / RESULTS).check_writable()
    except DeniedError as error:
        raise DeniedError(f"{error} {ELSEWHERE.format(command=f'dfer evaluate {home}')}") from error


def score(
    config: RunConfig,
    clips: FoldData,
    part: ClipSet,
    forward: Forward,
    world: World,
    *,
    predictions: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a subset of the fold on all ranks, every clip once. COLLECTIVE."""
    loader = eval_loader(config, clips, part, world)
    return evaluate(
        forward,
        loader.epoch(0),
        num_classes=len(clips.emotions),
        expected=len(part),
        device=world.device,
        keys=part.keys,
        predictions=predictions,
        between=between,
    )


def report_test(
    config: RunConfig,
    clips: FoldData,
    forward: Forward,
    chosen: Checkpoint | None,
    initial: Initial,
    world: World,
    *,
    training: Training,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
    out: Folder | None = None,
) -> FoldResult:
    """Evaluate the test clips and write the result. COLLECTIVE.

    checkpoints, stop: given by a training run, which may be fenced off or stopped during this evaluation too. out:
    folder for the results instead of the run folder.
    """

    def between() -> None:
        if stop and highest([stop.requested])[0]:
            raise loop.stopped(stop, at="the evaluation of the test clips")

    found = score(config, clips, clips.test, forward, world, predictions=True, between=between)
    home = out or Folder(config.run)
    result = _result(config, clips, found, chosen, initial, training)

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


def _result(
    config: RunConfig,
    clips: FoldData,
    found: Evaluation,
    chosen: Checkpoint | None,
    initial: Initial,
    training: Training,
) -> FoldResult:
    position = chosen.state["training"] if chosen else {"epoch": 0}
    selection = config.select if chosen else initial.selection or config.select
    return fold_result(
        found.scores,
        dataset=clips.store.manifest.dataset,
        method=config.model.name,
        fold=clips.number,
        num_folds=clips.num_folds,
        train_partitions=clips.fold.train.names,
        test_partitions=clips.fold.test.names,
        validation=clips.validation,
        classes=clips.emotions.names,
        selection=selection,
        step=chosen.step if chosen else 0,
        epoch=position["epoch"],
        epochs=training.epochs,
        complete=training.complete,
        stopped=training.stopped,
        changed=training.changed,
        seed=config.seed,
        protocol=protocol_of(config, initial.model),
        checkpoint=f"step_{chosen.step:08d}" if chosen else source_of(config),
        manifest_sha256=manifest_hash(clips.store),
        finished=now(),
        seconds=round(found.seconds, 2),
        generated=clips.store.manifest.generated,
        excluded=len(clips.store.manifest.excluded),
        start=initial.start,
        variants=found.variants,
    )
