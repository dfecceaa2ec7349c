"""Export a checkpoint of a run as a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dfer.distributed import World
from dfer.emotions import Emotions, emotions_of
from dfer.errors import CheckpointError, UsageError, message
from dfer.evaluation.results import FoldResult, read_result
from dfer.evaluation.scores import Scores
from dfer.evaluation.statistics import intervals, strata_of_counts
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import Training, protocol_of, refuse_other_texts, selected_checkpoint, source_of, texts_of
from dfer.jobs.initial import classes_of, untrained_model
from dfer.jobs.predict import whole_model
from dfer.jobs.saved import input_of, recipe_of
from dfer.jobs.seen import sets_in
from dfer.models.card import card
from dfer.models.files import trains_nothing
from dfer.models.foreign.weights import refuse_not_finite
from dfer.models.saved import Origin, SavedConfig, Score, TrainedSet, sha256_of
from dfer.models.saving import prepared, save
from dfer.recognition import Recognizer
from dfer.run.checkpoint_files import WEIGHTS
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import RESULT, result_name
from dfer.storage import Folder

Choice = Literal["selected", "last", "best"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A saved model that was written. new: False if OUT held it already."""

    config: SavedConfig
    new: bool


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A run's model with its weights. score: None if these weights were not evaluated on the data of their training.
    elsewhere: the score on other data, in words; empty if there is none."""

    emotions: Emotions
    model: Recognizer
    origin: Origin
    score: Score | None
    elsewhere: str = ""


def export(config: RunConfig, out: Folder, *, choice: Choice = "selected") -> Exported:
    """Write the saved model of a run's checkpoint, or of the weights of a run that trains nothing, whole or not at all.
    Not collective: one process.

    config: of the run in `config.run`. choice: the checkpoint that the run's selection rule chooses, its last, or its
    best one.

    Raises:
        CheckpointError: the run has no such checkpoint, or was not evaluated and trains nothing. UsageError: OUT holds
            something else, or a checkpoint is asked for that does not exist in such a run. StorageError.
    """
    found = _untrained(config, choice) if trains_nothing(config.model) else _trained(config, choice)
    weights = {name: value.detach() for name, value in found.model.state_dict().items()}
    refuse_not_finite(weights, config.run)
    saved = replace(saved_config(config, found.emotions, found.model, found.origin), score=found.score)
    if found.elsewhere:
        saved = replace(saved, words={**saved.words, "score on other data": found.elsewhere})
    written, new = save(out, saved, weights, card=card, own=prepared(config.model)[1])
    return Exported(config=written, new=new)


def _trained(config: RunConfig, choice: Choice) -> _Model:
    chosen = _chosen(config, choice)
    emotions = emotions_of(classes_of(chosen.state, str(chosen.folder)))
    refuse_other_texts(config, emotions, chosen.state)
    assert chosen.files is not None, "this is the only process"
    source_sha256 = sha256_of(chosen.files / WEIGHTS)
    model = whole_model(config, emotions, chosen)
    result, score = _evaluated(config, chosen.step)
    origin = _origin(config, chosen, result, source_sha256, choice, _training(config, chosen, choice))
    return _Model(emotions=emotions, model=model, origin=origin, score=score)


def _untrained(config: RunConfig, choice: Choice) -> _Model:
    """Build the model of a method that trains nothing, with its towers and its head."""
    if choice != "selected":
        expected, got = "none for a method that trains nothing", choice
        raise UsageError(message("--checkpoint", expected=expected, got=got, do="Leave it out."))
    result, score = _evaluated(config, 0)
    if result is None:
        do = "Evaluate it first: dfer evaluate CONFIG run=RUN."
        raise CheckpointError(message(config.run, expected="an evaluated run", got="one without a result", do=do))
    emotions = emotions_of(result.classes)
    initial = untrained_model(config, emotions, World())
    origin = _origin_of_start(config, result, initial.sets)
    found = _Model(emotions=emotions, model=initial.model, origin=origin, score=score)
    if score is None or not origin.trained or (origin.dataset, origin.fold) == (result.dataset, result.fold):
        return found
    said = f"{score.line} on {score.clips:,} test clips of {result.data}, fold {result.fold}"
    return replace(found, score=None, elsewhere=said)


def _origin_of_start(config: RunConfig, result: FoldResult, sets: Sequence[TrainedSet]) -> Origin:
    """Describe where a model that trains nothing comes from. sets: what the weights that it began from were trained on,
    none if they were not trained here: the evaluated data stand in their place then."""
    tested = TrainedSet(
        dataset=result.dataset,
        generated=result.generated,
        manifest_sha256=result.manifest_sha256,
        protocol=config.data.protocol,
        fold=config.fold,
    )
    known = sorted(sets, key=lambda each: not _same_data(each, tested))  # that of the score first
    first = known[0] if known else tested
    return Origin(
        made_by="export",
        source=_name(config),
        source_sha256="",
        dataset=first.dataset,
        generated=first.generated,
        protocol=first.protocol,
        fold=first.fold,
        manifest_sha256=first.manifest_sha256,
        sets=tuple(known),
        selection=result.selection if known else None,
        step=0,
        epoch=0,
        trained=bool(known),
    )


def _same_data(one: TrainedSet, other: TrainedSet) -> bool:
    """Whether two sets are the same fold of the same data, from whatever shards."""
    return replace(one, manifest_sha256="") == replace(other, manifest_sha256="")


def saved_config(config: RunConfig, emotions: Emotions, model: Recognizer, origin: Origin) -> SavedConfig:
    """Describe a model as a saved model stores it; what is known of its files is added when they are written."""
    texts = texts_of(config, emotions)
    return SavedConfig(
        model=prepared(config.model)[0],
        classes=emotions.names,
        texts=tuple(one if isinstance(one, str) else tuple(one) for one in texts) if texts is not None else None,
        normalisation=model.normalisation,
        data=input_of(config, emotions.names),
        recipe=recipe_of(config),
        words=_words(config, model, origin),
        sha256="",
        bytes=0,
        origin=origin,
    )


def _words(config: RunConfig, model: Recognizer, origin: Origin) -> dict[str, str]:
    """Rows of the card: how clips are seen, and how the training went, which of an imported file is not known."""
    seen = protocol_of(config, model)
    words = {"test clips": f"recipe `{config.data.augment.name}`: {seen.views}", "captions": seen.presentation}
    if origin.made_by == "export" and origin.step:
        words["training clips"] = f"recipe `{config.data.augment.name}`: {seen.augment}"
        words["targets"] = seen.targets or "labels"
        words["evaluated weights"] = seen.weights or "those of the training"
    elif origin.made_by == "export":
        words["initial weights"] = f"`{Path(source_of(config)).name}`"
    return {name: text for name, text in words.items() if text}


def _chosen(config: RunConfig, choice: Choice) -> Checkpoint:
    checkpoints = Checkpoints(Folder(config.run, what="RUN"), world=World())
    if choice == "selected":
        return selected_checkpoint(config, checkpoints)
    found = checkpoints.latest() if choice == "last" else checkpoints.best()
    if found is None:
        got = "none: it was trained with select=last" if choice == "best" else "none"
        do = "Give --checkpoint last." if choice == "best" else "Train first: dfer train CONFIG"
        raise CheckpointError(message(checkpoints.folder, expected=f"a {choice} checkpoint", got=got, do=do))
    return found


def _training(config: RunConfig, chosen: Checkpoint, choice: Choice) -> Training:
    """Read how far the training had come, from its newest checkpoint."""
    if choice == "last" or (choice == "selected" and config.select == "last"):
        return Training.at(chosen, config)
    newest = Checkpoints(Folder(config.run, what="RUN"), world=World()).latest()
    try:
        return Training.at(newest or chosen, config)
    finally:
        if newest:
            newest.close()


def _evaluated(config: RunConfig, step: int) -> tuple[FoldResult | None, Score | None]:
    """The result in which the checkpoint of a step was evaluated, and its score; None if there is none. A result has
    the last checkpoint beside the one that the rule chose."""
    home = Folder(config.run)
    for name in (RESULT, result_name(step, complete=False)):
        if home.size(name) is not None:
            result = read_result(home, name)
            if result.step == step:
                return result, _score(result, result.scores)
            if result.last is not None and result.last.step == step:
                return result, _score(result, result.last.scores)
    return None, None


def _score(result: FoldResult, found: Scores) -> Score:
    war = intervals(strata_of_counts({result.fold: found.confusion})).war
    return Score(
        war=found.war,
        uar=found.uar,
        clips=found.num_clips,
        interval=(war.low, war.high),
        leaks_label=result.protocol.leaks_label,
    )


def _name(config: RunConfig) -> str:
    """Name of the run folder, with the one around it."""
    return "/".join(Path(config.run).parts[-2:])


def _origin(
    config: RunConfig, chosen: Checkpoint, result: FoldResult | None, sha256: str, choice: Choice, training: Training
) -> Origin:
    position = chosen.state.get("training")
    epoch = position.get("epoch") if isinstance(position, dict) else None
    sets = sets_in(chosen.state, chosen.folder, protocol=config.data.protocol, fold=config.fold)
    return Origin(
        made_by="export",
        source=_name(config),
        source_sha256=sha256,
        dataset=result.dataset if result else sets[0].dataset if sets else "",
        generated=result.generated if result else sets[0].generated if sets else "",
        protocol=config.data.protocol,
        fold=config.fold,
        manifest_sha256=str(chosen.state.get("manifest_sha256") or ""),
        sets=sets,
        selection="last" if choice == "last" else config.select,
        step=chosen.step,
        epoch=epoch if isinstance(epoch, int) else None,
        epochs=training.epochs,
        complete=training.complete,
    )
