"""Evaluate a run's selected checkpoint, or weights that were not trained here."""

import sys
from collections.abc import Callable
from dataclasses import replace

from dfer.data.clips import ClipSet
from dfer.distributed import World, highest, on_first
from dfer.emotions import emotions_of
from dfer.errors import DeniedError, UsageError, message, without_secrets
from dfer.evaluation.evaluator import Evaluation, evaluate
from dfer.evaluation.results import (
    ELSEWHERE,
    FoldResult,
    LastResult,
    file_of,
    fold_result,
    read_result,
    save_predictions,
    save_result,
)
from dfer.evaluation.scores import RankMean, rank_mean
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import (
    Training,
    layout_of,
    load_checkpoint,
    now,
    protocol_of,
    refuse_other_texts,
    selected_checkpoint,
    source_of,
    votes_of,
)
from dfer.jobs.features import with_features
from dfer.jobs.fold_data import (
    FoldData,
    eval_loader,
    joined_of,
    manifest_hash,
    open_fold,
    open_other,
    refuse_little_memory,
    refuse_other_shards,
)
from dfer.jobs.initial import Initial, classes_of, has_classes_of_saved, initial_model, refuse_drawn
from dfer.jobs.other import Other, is_elsewhere, is_elsewhere_untrained, other_of, other_of_untrained, own_config
from dfer.jobs.seen import remark_of
from dfer.recognition import Batch, Recognition
from dfer.run import folder
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import CONFIG, OWNER, RESULTS, finished, is_evaluated, is_trained
from dfer.storage import Folder
from dfer.text_files import write_text
from dfer.training import loop

Forward = Callable[[Batch], Recognition]


def initial_of(config: RunConfig, clips: FoldData, world: World, *, resumed: Checkpoint | None) -> Initial:
    """Build the model with its initial weights, or one that `resumed` will be loaded into. COLLECTIVE.

    The first rank prints where the weights come from, and whether they may have seen the test clips.
    """
    initial = initial_model(config, clips, world, resumed=resumed)
    if initial.sets:
        remark = remark_of(clips.store, initial.sets, protocol=config.data.protocol, fold=config.fold)
        initial = replace(initial, remark=remark)
    initial.tell(world)
    return initial


def evaluate_part(config: RunConfig, world: World, stop: Stop) -> FoldResult:
    """Evaluate a method that trains nothing on one fold; returns a finished part's result as it is. COLLECTIVE.

    Raises:
        CheckpointError: the configuration or the shards are not those of the part.
        StoppedError: on all ranks, if `stop` was requested on any; the same command evaluates the part anew.
    """
    home = Folder(config.run, what="run")
    if not on_first(lambda: finished(home), world):
        return evaluate_run(config, world, trained=False, stop=stop)
    on_first(lambda: folder.check(home, config), world)
    result = read_result(home)
    refuse_other_shards(config, config.data.store(), result.manifest_sha256)
    return result


@enough_gpu_memory()
def evaluate_run(
    config: RunConfig,
    world: World,
    *,
    trained: bool,
    out: Folder | None = None,
    stop: Stop | None = None,
    shuffle_frames: bool = False,
) -> FoldResult:
    """Evaluate a run's selected checkpoint again, or (trained=False) the configured weights as they are.

    out: folder for the results; nothing is then written to the run itself. stop: honoured between two batches.
    shuffle_frames: put the frames of each clip into a random order.
    An incomplete training may be running at the same time: none of its files is changed, and the result goes into a
    separate file, which does not mark the run as finished. So does the result on other shards, of another protocol or
    with other frames than the run's own (`dfer.jobs.other`).

    Raises:
        DeniedError: the results cannot be written there; on a disk this is checked before the evaluation.
        CheckpointError: the configuration is not the one the run was started with, or the run was trained on some of
            the clips.
        UsageError: the folder holds a training run, but the weights to evaluate were not trained here; or these are to
            be evaluated with shuffled frames before they have a result.
    """
    home = Folder(config.run, what="run")
    if trained:
        return _evaluate_trained(config, home, world, out=out, shuffle_frames=shuffle_frames)
    return _evaluate_untrained(config, home, world, out=out, stop=stop, shuffle_frames=shuffle_frames)


def _evaluate_untrained(
    config: RunConfig, home: Folder, world: World, *, out: Folder | None, stop: Stop | None, shuffle_frames: bool
) -> FoldResult:
    if on_first(lambda: is_trained(home), world):
        raise UsageError(
            f"{home}: expected a folder for a model that is not trained here, got a training run. "
            f"Evaluate that with `dfer evaluate {home}`, or choose another folder with run=FOLDER."
        )
    first = on_first(lambda: read_result(home) if is_evaluated(home) else None, world)
    if shuffle_frames and first is None:
        do = f"Evaluate the weights as they are first, then: dfer evaluate {home} --shuffle-frames."
        raise UsageError(message("--shuffle-frames", expected="a run with a result", got="none", do=do))
    if out:
        on_first(lambda: _check_target(home, out), world)
    other, clips = _untrained_clips(config, home, world, first, shuffle_frames=shuffle_frames)
    clips = with_features(config, clips, world, begun=None, stop=stop)
    initial = initial_of(config, clips, world, resumed=None)
    refuse_drawn(config, initial)
    eval_loader(config, clips, clips.test, world, shuffle_frames=shuffle_frames)  # refuses features
    forward = _forward(config, clips, initial, world)
    if out is None and other is None:
        on_first(lambda: folder.write(home, config, world, notes=initial.notes), world)
    training = Training(epochs=0, complete=True)
    return report_test(config, clips, forward, None, initial, world, training=training, out=out, stop=stop, other=other)


def _untrained_clips(
    config: RunConfig, home: Folder, world: World, first: FoldResult | None, *, shuffle_frames: bool
) -> tuple[Other | None, FoldData]:
    """Open the clips to test, and say how they differ from those of the first result, if there is one."""
    partial = on_first(lambda: has_classes_of_saved(config), world)
    if first is None:
        on_first(lambda: folder.check(home, config), world)
        return None, open_fold(config, partial=partial)
    own, changes = on_first(lambda: own_config(config, home), world)
    on_first(lambda: folder.check(home, own), world)
    elsewhere = is_elsewhere_untrained(config, first)
    if {*changes} == {"fold"} and not elsewhere:
        on_first(lambda: folder.check(home, config), world)  # raises: every fold of a protocol has a run of its own
    if not (elsewhere or changes or shuffle_frames):
        return None, open_fold(config, partial=partial)
    clips = open_other(config, emotions_of(first.classes))
    return other_of_untrained(own, clips, first, elsewhere=elsewhere, changes=changes, shuffled=shuffle_frames), clips


def _evaluate_trained(
    config: RunConfig, home: Folder, world: World, *, out: Folder | None, shuffle_frames: bool
) -> FoldResult:
    own, changes = on_first(lambda: own_config(config, home), world)
    on_first(lambda: folder.check(home, own), world)
    on_first(lambda: _check_target(home, out), world)
    checkpoints = Checkpoints(home, world=world)
    newest = checkpoints.latest()
    chosen = selected_checkpoint(own, checkpoints, newest)
    training = Training.at(newest or chosen, config)
    elsewhere = is_elsewhere(config, chosen)
    if {*changes} == {"fold"} and not elsewhere:
        on_first(lambda: folder.check(home, config), world)  # raises: every fold of a protocol has a run of its own
    other = None
    if elsewhere or changes or shuffle_frames:
        clips = open_other(config, emotions_of(classes_of(chosen.state, str(chosen.folder))))
        other = on_first(lambda: other_of(own, clips, chosen, changes=changes, shuffled=shuffle_frames), world)
    else:
        clips = open_fold(config)
    refuse_other_texts(config, clips.emotions, chosen.state)
    clips = with_features(config, clips, world, begun=None if elsewhere or changes else chosen)
    initial = initial_of(config, clips, world, resumed=chosen)
    eval_loader(config, clips, clips.test, world, shuffle_frames=shuffle_frames)  # refuses features
    last = None
    if newest and training.complete and config.select != "last" and other is None:
        load_checkpoint(initial.model, checkpoints.at(newest.step))
        forward = _forward(config, clips, initial, world)
        last = last_of(score(config, clips, clips.test, forward, world), newest)
    load_checkpoint(initial.model, chosen)
    forward = _forward(config, clips, initial, world)
    return report_test(
        config, clips, forward, chosen, initial, world, training=training, out=out, last=last, other=other
    )


def _forward(config: RunConfig, clips: FoldData, initial: Initial, world: World) -> Forward:
    """Prepare the forward pass over the test clips."""
    set_tf32(config.engine.tf32)
    refuse_little_memory([eval_loader(config, clips, clips.test, world)])
    return inference(initial.model, precision=config.engine.precision, device=world.device)


def last_of(found: Evaluation, newest: Checkpoint) -> LastResult:
    """Make the entry of a result for the last checkpoint."""
    return LastResult(step=newest.step, epoch=newest.state["training"]["epoch"], scores=found.scores)


def _check_target(home: Folder, out: Folder | None) -> None:
    """Raise UsageError if `out` is a run folder or has results of another run, DeniedError if the results cannot be
    written."""
    if out and out.exists(CONFIG):
        do = "Choose another one with --out FOLDER."
        raise UsageError(message(out, expected="a folder other than a run folder", got="a run folder", do=do))
    if out and any(name.endswith(".json") for name in (out / RESULTS).names()):
        owner, do = out.text(OWNER) or "a run that is not recorded", "Choose another one with --out FOLDER."
        if owner != _address(home):
            expected, got = f"a folder without results, or with those of {home}", f"results of {owner}"
            raise UsageError(message(out, expected=expected, got=got, do=do))
    try:
        ((out or home) / RESULTS).check_writable()
    except DeniedError as error:
        raise DeniedError(f"{error} {ELSEWHERE.format(command=f'dfer evaluate {home}')}") from error


def _address(home: Folder) -> str:
    """The address of a run from anywhere on this machine, without credentials."""
    found = str(home.local.resolve()) if home.local is not None else without_secrets(home.url)
    return found.encode("utf-8", "backslashreplace").decode()  # as a file keeps it


def score(
    config: RunConfig,
    clips: FoldData,
    part: ClipSet,
    forward: Forward,
    world: World,
    *,
    predictions: bool = False,
    shuffle_frames: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a subset of the fold on all ranks, every clip once. COLLECTIVE."""
    loader = eval_loader(config, clips, part, world, shuffle_frames=shuffle_frames)
    return evaluate(
        forward,
        loader.epoch(0),
        num_classes=len(clips.emotions),
        expected=len(part),
        views=config.data.num_views,
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
    last: LastResult | None = None,
    other: Other | None = None,
) -> FoldResult:
    """Evaluate the test clips and write the result. COLLECTIVE.

    checkpoints, stop: given by a training run, which may be fenced off or stopped during this evaluation too. out:
    folder for the results instead of the run folder. last: the last checkpoint on the same clips. other: how this
    evaluation differs from the run's own.
    """
    found = score(
        config,
        clips,
        clips.test,
        forward,
        world,
        predictions=True,
        shuffle_frames=other is not None and other.shuffled,
        between=lambda: raise_stop(stop),
    )
    home = out or Folder(config.run)
    result = _result(config, clips, found, chosen, initial, training, last, other)
    name = other.file(step=result.step, complete=result.complete) if other else file_of(result)

    def write() -> None:
        assert found.predictions is not None
        if checkpoints:
            checkpoints.may_write()
        if other:
            print(f"note: a second result of these weights, in {home.where(name)}", file=sys.stderr, flush=True)
        if out:
            write_text(out, OWNER, _address(Folder(config.run)))
        save_predictions(found.predictions, home, keys=clips.test.keys, classes=clips.emotions.names, beside=name)
        save_result(result, home, name=name)

    on_first(write, world)
    return result


def _rank_mean(config: RunConfig, found: Evaluation, num_classes: int) -> RankMean | None:
    """Compute the means over ranks, if they are configured."""
    answers = found.predictions
    if config.rank_mean is None or answers is None:
        return None
    labels, predicted = answers.labels.tolist(), answers.predicted.tolist()
    return rank_mean(labels, predicted, ranks=config.rank_mean, num_classes=num_classes)


def raise_stop(stop: Stop | None) -> None:
    """Raise StoppedError on all ranks if a stop was requested on any. COLLECTIVE."""
    if stop and highest([stop.requested])[0]:
        raise loop.stopped(stop, at="the evaluation of the test clips")


def _result(
    config: RunConfig,
    clips: FoldData,
    found: Evaluation,
    chosen: Checkpoint | None,
    initial: Initial,
    training: Training,
    last: LastResult | None,
    other: Other | None,
) -> FoldResult:
    position = chosen.state["training"] if chosen else {"epoch": 0}
    selection = config.select if chosen else initial.selection or config.select
    layout = layout_of(config, initial.model, chosen)
    return fold_result(
        found.scores,
        dataset=clips.store.manifest.dataset,
        method=config.model.name,
        fold=clips.number,
        num_folds=clips.num_folds,
        train_partitions=other.partitions if other else clips.fold.train.names,
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
        protocol=replace(protocol_of(config, initial.model), shuffled=other is not None and other.shuffled),
        checkpoint=f"step_{chosen.step:08d}" if chosen else source_of(config),
        manifest_sha256=manifest_hash(clips.store),
        finished=now(),
        seconds=round(found.seconds, 2),
        generated=clips.store.manifest.generated,
        excluded=len(clips.store.manifest.excluded),
        start=initial.start,
        remark=initial.remark,
        votes=votes_of(chosen.state) if chosen else None,
        variants=found.variants,
        rank_mean=_rank_mean(config, found, len(clips.emotions)),
        last=last,
        trained=other.trained if other else None,
        joined=other.joined if other else joined_of(clips.store),
        split=config.data.protocol,
        overlap=clips.store.manifest.protocols[config.data.protocol].overlap,
        processes=layout.ranks if layout else 0,
        micro_batch=layout.micro_batch if layout else 0,
    )
