"""Export a checkpoint of a run as a saved model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dfer.distributed import World
from dfer.emotions import Emotions, emotions_of
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import FoldResult, read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import refuse_other_texts, selected_checkpoint, texts_of
from dfer.jobs.initial import classes_of
from dfer.jobs.predict import whole_model
from dfer.jobs.saved import input_of, recipe_of
from dfer.jobs.seen import sets_in
from dfer.models.card import card
from dfer.models.foreign.weights import refuse_not_finite
from dfer.models.saved import Origin, SavedConfig, Score, sha256_of
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


def export(config: RunConfig, out: Folder, *, choice: Choice = "selected") -> Exported:
    """Write the saved model of a run's checkpoint, whole or not at all. Not collective: one process.

    config: of the run in `config.run`. choice: the checkpoint that the run's selection rule chooses, its last, or its
    best one.

    Raises:
        CheckpointError: the run has no such checkpoint. UsageError: OUT holds something else. StorageError.
    """
    chosen = _chosen(config, choice)
    emotions = emotions_of(classes_of(chosen.state, str(chosen.folder)))
    refuse_other_texts(config, emotions, chosen.state)
    assert chosen.files is not None, "this is the only process"
    source_sha256 = sha256_of(chosen.files / WEIGHTS)
    model = whole_model(config, emotions, chosen)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    refuse_not_finite(weights, chosen.folder)
    result = _result(config, chosen)
    found = saved_config(config, emotions, model, _origin(config, chosen, result, source_sha256, choice))
    if result is not None:
        found = replace(found, score=Score(war=result.war, uar=result.uar, clips=result.clips))
    written, new = save(out, found, weights, card=card, own=prepared(config.model)[1])
    return Exported(config=written, new=new)


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
        sha256="",
        bytes=0,
        origin=origin,
    )


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


def _result(config: RunConfig, chosen: Checkpoint) -> FoldResult | None:
    """The result of evaluating this checkpoint; None if there is none."""
    home = Folder(config.run)
    for name in (RESULT, result_name(chosen.step, complete=False)):
        if home.size(name) is not None:
            result = read_result(home, name)
            if result.step == chosen.step:
                return result
    return None


def _origin(config: RunConfig, chosen: Checkpoint, result: FoldResult | None, sha256: str, choice: Choice) -> Origin:
    position = chosen.state.get("training")
    epoch = position.get("epoch") if isinstance(position, dict) else None
    return Origin(
        made_by="export",
        source="/".join(Path(config.run).parts[-2:]),
        source_sha256=sha256,
        dataset=result.dataset if result else "",
        generated=result.generated if result else "",
        protocol=config.data.protocol,
        fold=config.fold,
        manifest_sha256=str(chosen.state.get("manifest_sha256") or ""),
        sets=sets_in(chosen.state, chosen.folder, protocol=config.data.protocol, fold=config.fold),
        selection="last" if choice == "last" else config.select,
        step=chosen.step,
        epoch=epoch if isinstance(epoch, int) else None,
    )
