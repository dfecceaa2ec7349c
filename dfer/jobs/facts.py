"""Facts about a run that its checkpoints and results store, and the selection of a run's checkpoint."""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from dfer.config import to_plain
from dfer.data.recipes import seen_in_words
from dfer.emotions import Emotions
from dfer.errors import CheckpointError, message
from dfer.evaluation.results import Protocol
from dfer.jobs import targets
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import FEATURES, FoldData, features_id, joined_of, manifest_hash
from dfer.jobs.initial import START, Initial
from dfer.jobs.seen import DATA, SETS, TESTED, plain_sets, sets_of
from dfer.models.files import source, text_of, trains_nothing
from dfer.models.texts import class_prompts
from dfer.recognition import Recognizer
from dfer.run import changes
from dfer.run.changes import Change
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.layout import RESULT
from dfer.storage import Folder
from dfer.training.state import Layout, TrainingState, fixed_layout

PARTITIONS, JOINED = "train_partitions", "joined"
"""Keys of a checkpoint's state, in DATA: what the fold trains on, and the further data sets."""
TEXTS = "texts"
"""Key of a checkpoint's state: the class texts it was trained with, which may come from a file that changes."""

VOTES = "votes"
"""Key of a checkpoint's state: `FoldResult.votes`."""


def refuse_result_alone(home: Folder) -> None:
    """Raise CheckpointError if a run without checkpoints has a result. After `epochs` was raised, training resumes from
    a checkpoint; without one it would silently start from the beginning."""
    if home.size(RESULT) is not None:
        do = "Put its checkpoints back, or start a new run with run=FOLDER."
        raise CheckpointError(
            message(home, expected="a checkpoint to resume from", got=f"only {RESULT} of an earlier training", do=do)
        )


def changes_of(config: RunConfig, latest: Checkpoint | None, recorded: dict[str, Any]) -> tuple[Change, ...]:
    """List the changes of the configuration since the run began, up to the step from which training resumes now."""
    if latest is None:
        return ()
    return changes.changes_until_now(
        RunConfig, latest.state, where=latest.folder, recorded=recorded, now=to_plain(config), step=latest.step
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Progress of the training whose checkpoint is evaluated; the fields are those of `FoldResult`."""

    epochs: int
    complete: bool
    stopped: int = 0
    changed: tuple[Change, ...] = ()

    @classmethod
    def at(cls, newest: Checkpoint, config: RunConfig) -> "Training":
        """Read the progress from a run's newest checkpoint, whichever checkpoint is evaluated."""
        position = TrainingState.from_plain(newest.state.get("training"), where=newest.folder)
        rule, whole = config.early_stop, position.epoch == config.epochs
        stopped = rule is not None and position.stale >= rule.patience and not whole
        return cls(
            epochs=config.epochs,
            complete=(whole or stopped) and not position.evaluate,
            stopped=position.epoch if stopped else 0,
            changed=changes.changes(newest.state, where=newest.folder),
        )


def protocol_of(config: RunConfig, model: Recognizer) -> Protocol:
    """Describe how test clips are presented to the model, and the augmentation of training clips."""
    data, nothing = config.data, trains_nothing(config.model)
    middle = "the middle frame of every segment" if data.train_frames == "middle" else ""
    return Protocol(
        num_frames=data.frames,
        size=data.size,
        normalisation=model.normalisation,
        augment=("" if nothing else ", ".join(filter(None, [*data.augment.words(), middle]))) or "none",
        views=seen_in_words(data.augment, data.views, data.size) + SAMPLED[data.sampling],
        presentation=model.presentation,
        leaks_label=model.leaks_label,
        targets=targets.words(config),
        weights="" if config.ema is None or nothing else f"average of the weights, decay {config.ema}",
    )


def layout_of(config: RunConfig, model: Recognizer, checkpoint: Checkpoint | None) -> Layout | None:
    """Return how the steps of a training were cut, where this decides what it computes; None elsewhere."""
    if checkpoint is None:
        return None
    coupling = "micro_batch" if config.data.mix.mixes else model.coupling
    return fixed_layout(coupling, checkpoint.state, where=checkpoint.folder)


SAMPLED = {"dfer_clip": "", "dk_clip": ", frames as DK-CLIP samples", "exp_clip": ", frames as Exp-CLIP samples"}
"""How frames are sampled, in words; DFER-CLIP's rule is not mentioned."""


def state_facts(initial: Initial, clips: FoldData, config: RunConfig, changed: tuple[Change, ...]) -> dict[str, object]:
    """Collect the facts that a checkpoint must store so that it can be used without its run folder."""
    return {
        "model": asdict(config.model),
        "classes": list(clips.emotions.names),
        "num_frames": config.data.frames,
        "size": config.data.size,
        "normalisation": initial.model.normalisation,
        "seed": config.seed,
        "manifest_sha256": manifest_hash(clips.store),
        DATA: {
            "dataset": clips.store.manifest.dataset,
            "generated": clips.store.manifest.generated,
            PARTITIONS: list(clips.fold.train.names),
            JOINED: list(joined_of(clips.store)),
            TESTED: manifest_hash(config.data.tested_store()),
            SETS: plain_sets(sets_of(config, clips.store, initial.sets)),
        },
        FEATURES: features_id(clips),
        TEXTS: texts_of(config, clips.emotions),
        VOTES: targets.votes_fact(config, clips),
        START: initial.start,
        **changes.to_state(RunConfig, changed, to_plain(config)),
    }


def votes_of(state: Mapping[str, Any]) -> tuple[int, int] | None:
    """Read VOTES of a checkpoint's state; None where it says nothing."""
    found = state.get(VOTES)
    if not isinstance(found, list) or [type(value) for value in found] != [int, int]:
        return None
    return found[0], found[1]


def texts_of(config: RunConfig, emotions: Emotions) -> list[str | list[str]] | None:
    """Return the text of each class, or the list of its texts; None for a method without class texts."""
    kind = text_of(config.model)
    if kind is None:
        return None
    return [texts if len(texts) > 1 else texts[0] for texts in class_prompts(emotions, kind)]


def refuse_other_texts(config: RunConfig, emotions: Emotions, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the class texts differ from those of the training. state: of a checkpoint."""
    trained, now = state.get(TEXTS), texts_of(config, emotions)
    if now is None or not isinstance(trained, list) or trained == now:
        return
    old, new = next(pair for pair in itertools.zip_longest(trained, now) if pair[0] != pair[1])
    do = "Restore the texts that it was trained with, or start a new run with run=FOLDER."
    raise CheckpointError(message("model.text", expected=repr(old)[:200], got=repr(new)[:200], do=do))


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_of(config: RunConfig) -> str:
    """Describe the source of weights that are not trained here."""
    return source(config.model)


def load_checkpoint(recognizer: Recognizer, checkpoint: Checkpoint, *, without: frozenset[str] = frozenset()) -> None:
    """Load the weights of a checkpoint that are evaluated into a recognizer, then close the checkpoint. without: names
    that are not loaded.

    Raises:
        CheckpointError: the names or shapes differ.
    """
    weights = checkpoint.evaluated()
    own = {name: value for name, value in recognizer.state_dict().items() if name not in without}
    checkpoint.close()
    odd = sorted(weights.keys() ^ own.keys())
    odd = odd or sorted(name for name in own if own[name].shape != weights[name].shape)
    if odd:
        raise CheckpointError(
            f"{checkpoint.folder}: expected the weights of this model, got others ({', '.join(odd[:4])}). "
            "Evaluate it with the configuration it was trained with."
        )
    recognizer.load_state_dict(weights, strict=not without)


def selected_checkpoint(config: RunConfig, checkpoints: Checkpoints, newest: Checkpoint | None = None) -> Checkpoint:
    """Open the checkpoint that the selection rule chooses. newest: the result of `checkpoints.latest`, if known.

    Raises:
        CheckpointError: the run has no checkpoint.
    """
    newest = newest or checkpoints.latest()
    found = newest if config.select == "last" or newest is None else checkpoints.best(newest)
    if found is None:
        raise CheckpointError(
            f"{checkpoints.folder}: expected a checkpoint selected by `{config.select}`, got none. "
            "Train first: dfer train CONFIG"
        )
    return found
