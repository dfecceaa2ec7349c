"""Build the model at the start of a run: its initial weights and their origin, also when taken from another run or from
a saved model."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from dfer.choices import Selection
from dfer.data.clips import keys_of
from dfer.data.splits import fold_of
from dfer.distributed import World, broadcast_tensors, gather_rows, on_first
from dfer.emotions import Emotions
from dfer.errors import CheckpointError, message, without_secrets
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import FoldData
from dfer.jobs.seen import recorded_sets, seen, sets_in, sets_of_saved
from dfer.local_files import sha256_of
from dfer.models.build import build
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.files import trains_nothing
from dfer.models.saved import SavedModel, TrainedSet, open_saved, state_of
from dfer.models.start import Taken, take
from dfer.recognition import Recognizer
from dfer.run.checkpoint_files import STATE, WEIGHTS
from dfer.run.checkpoints import AVERAGE, Checkpoint, Checkpoints
from dfer.run.layout import CONFIG, MAX_CONFIG_BYTES
from dfer.storage import Folder
from dfer.store.joined import JoinedStore
from dfer.store.shards import Shards
from dfer.yaml_text import YamlProblem, parse

START = "start"
"""Key of a checkpoint's state that holds `Initial.start`, so that a resume does not need the other run."""


@dataclass(frozen=True, kw_only=True)
class Initial:
    """A model with its initial weights. start: run, step, selection and hash of the other run's weights, empty if there
    is no other run. selection: the other run's selection rule, None if there is none. sets: what the other run, and
    those that it began from, were trained on; of a checkpoint, also what this run was. notes: lines about the weights
    to print; None if a checkpoint is loaded next, because the run's first start has printed them. drawn, fresh_classes:
    as in `Taken`. remark: as in FoldResult."""

    model: Recognizer
    start: str = ""
    selection: Selection | None = None
    sets: tuple[TrainedSet, ...] = ()
    notes: tuple[str, ...] | None = None
    drawn: tuple[str, ...] = ()
    fresh_classes: tuple[str, ...] = ()
    remark: str = ""

    def tell(self, world: World) -> None:
        """Print the notes and the remark, on the first rank."""
        for note in (self.notes or ()) if world.is_first else ():
            print(f"note: {note}", file=sys.stderr, flush=True)
        if self.remark and world.is_first:
            print(f"warning: {self.remark}", file=sys.stderr, flush=True)


def initial_model(config: RunConfig, clips: FoldData, world: World, *, resumed: Checkpoint | None = None) -> Initial:
    """Build the model of a run. COLLECTIVE. resumed: the checkpoint that will be loaded into it, if any.

    Raises:
        CheckpointError: weights are missing, damaged or do not match; or the model in `model.start` was trained on the
            clips that this one is tested on.
        ConfigProblem: the architecture is unknown, or the prompts do not fit it.
    """
    begins = config.model.start is not None
    if resumed is None and not begins:
        on_first(lambda: refuse_trained_copy(config), world)
    found = clips.features
    model = build(
        config.model,
        clips.emotions,
        num_frames=config.data.frames,
        seed=config.seed,
        weights=resumed is None and not begins,
        dims=found.dims if found is not None else None,
        gather=gather_rows,
    )
    if resumed is not None:
        sets = recorded_sets(resumed.state, resumed.folder) or ()
        return Initial(model=model, start=str(resumed.state.get(START, "")), sets=sets)
    if not begins:
        origin = found.origin if found is not None else model.origin
        return Initial(model=model, notes=(origin,) if origin else ())
    return _begun(config, clips.emotions, world, model, clips.store)


def untrained_model(config: RunConfig, emotions: Emotions, world: World) -> Initial:
    """Build a model that trains nothing, for clips outside of shards. COLLECTIVE. Raises as `initial_model`."""
    begins = config.model.start is not None
    model = build(config.model, emotions, num_frames=config.data.frames, seed=config.seed, weights=not begins)
    return _begun(config, emotions, world, model, None) if begins else Initial(model=model)


def refuse_trained_copy(config: RunConfig) -> None:
    """Raise CheckpointError if the towers' weights are the file of a run with `ema`: it holds the weights of the last
    step, while those that the run evaluates, their averages, lie beside them."""
    if config.model.towers is not None:
        refuse_trained_towers(config.model.towers)


def refuse_trained_towers(towers: TowersConfig, *, model: str = "model") -> None:
    """As `refuse_trained_copy`, for towers alone. model: the key above `towers`, for the message."""
    path = Path(towers.pretrained) if towers.pretrained is not None else None
    if path is None or path.name != WEIGHTS:
        return
    try:
        state = json.loads((path.parent / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # no run's file
    if isinstance(state, dict) and state.get(AVERAGE) is not None:
        expected, got = "the weights that are evaluated", f"those of the last step of a run with ema={state[AVERAGE]}"
        do = "Set model.start to the run, or make a saved model of it with `dfer export` and set model.start to that."
        if model != "model":
            do = "Give the weights of a run without ema."
        raise CheckpointError(message(f"{model}.towers.pretrained={path}", expected=expected, got=got, do=do))


def _begun(config: RunConfig, emotions: Emotions, world: World, model: Recognizer, store: Shards | None) -> Initial:
    """Take the weights of `model.start`. COLLECTIVE. store: the shards of the run, None for clips outside of shards."""
    where = f"model.start={config.model.start}"
    saved = on_first(lambda: open_saved(str(config.model.start), what="model.start"), world)
    if saved is not None:
        return _from_saved(config, emotions, world, model, store, saved)
    home, plain = on_first(lambda: _run_of(config), world)
    checkpoints = Checkpoints(Folder(home, what="model.start"), world=world)
    select = _selection(plain, where)
    found = checkpoints.latest() if select == "last" else checkpoints.best()
    if found is None:
        do = f"Train that run first: dfer train {home}/{CONFIG}"
        raise CheckpointError(message(where, expected=f"a checkpoint selected by `{select}`", got="none", do=do))
    try:
        sets = _sets_of_run(found, plain)
        _refuse_test_clips(config, sets, store, home)
        _check_architecture(config, found.state, where)
        sha256 = on_first(lambda: sha256_of(found.files / WEIGHTS) if found.files else "", world)
        names = classes_of(found.state, where)
        taken = take(model, found.evaluated(), classes=names, own_classes=emotions.names, where=where)
    finally:
        found.close()
    start = f"{without_secrets(home)}, step {found.step}, {select}, weights sha256 {sha256}"
    return _initial(model, taken, start, select, sets)


def _from_saved(
    config: RunConfig, emotions: Emotions, world: World, model: Recognizer, store: Shards | None, saved: SavedModel
) -> Initial:
    """Take the weights of a saved model. COLLECTIVE."""
    where, found = f"model.start={saved}", saved.config
    sets = sets_of_saved(found.origin)
    _refuse_test_clips(config, sets, store, saved.folder.url)
    _check_architecture(config, state_of(found), where)
    weights = broadcast_tensors(saved.weights, world)
    taken = take(model, weights, classes=found.classes, own_classes=emotions.names, where=where)
    start = f"{without_secrets(saved.folder.url)}, saved model, weights sha256 {found.sha256}"
    return _initial(model, taken, start, found.origin.selection, sets)


def _initial(
    model: Recognizer, taken: Taken, start: str, selection: Selection | None, sets: tuple[TrainedSet, ...]
) -> Initial:
    notes = (f"begins from {start}", *(f"model.start: {line}" for line in taken.lines()))
    return Initial(
        model=model,
        start=start,
        selection=selection,
        sets=sets,
        notes=notes,
        drawn=taken.drawn,
        fresh_classes=taken.fresh_classes,
    )


def has_classes_of_saved(config: RunConfig) -> bool:
    """Whether `model.start` is a saved model whose classes are the run's: its answers stay the same ones on shards that
    lack some of them."""
    classes = config.data.classes
    if config.model.start is None or classes is None or isinstance(classes, str):
        return False
    saved = open_saved(str(config.model.start), what="model.start")
    return saved is not None and saved.config.classes == tuple(classes)


def refuse_drawn(config: RunConfig, initial: Initial) -> None:
    """Raise CheckpointError if weights that are evaluated without training are partly random, or if a method that is
    trained, also one without weights of its classes, was not trained on some of the classes."""
    where = f"model.start={config.model.start}"
    if initial.drawn:
        expected, got = "all weights of the model that is evaluated", f"none for {', '.join(initial.drawn[:4])}"
        do = "Evaluate it with the model, the frames and the classes that it was trained with, or train."
        raise CheckpointError(message(where, expected=expected, got=got, do=do))
    if initial.fresh_classes and not trains_nothing(config.model):
        expected, got = "a model that was trained on all classes", f"none for {', '.join(initial.fresh_classes[:4])}"
        do = "Leave data.classes out, set it to the classes of that model's training, or train."
        raise CheckpointError(message(where, expected=expected, got=got, do=do))


def _run_of(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Return the folder and the configuration of the run in `model.start`; for a cross-validation, of the same fold."""
    named = str(config.model.start).rstrip("/")
    where = f"model.start={named}"
    home = Folder(named, what="model.start")
    if home.local is not None and home.local.is_file():
        do = "Give a folder; a CLIP's file goes to model.towers.pretrained, other files to `dfer import`."
        raise CheckpointError(
            message(where, expected="the run folder of a fold, or a saved model", got="a file", do=do)
        )
    for folder in (home, home / f"fold_{config.fold}"):
        text = folder.read(CONFIG, most=MAX_CONFIG_BYTES)
        if text is not None:
            return folder.url, _parsed(text, folder.where(CONFIG))
    do = "Check the path; a run folder is what `run` names in the configuration it was trained with."
    got = f"no {CONFIG} in it, and none in fold_{config.fold}"
    raise CheckpointError(message(where, expected="the run folder of a fold, or a saved model", got=got, do=do))


def _selection(plain: Mapping[str, Any], where: str) -> Selection:
    rule = plain.get("select", "last")
    if rule not in get_args(Selection):
        expected, do = f"a run with select {' or '.join(get_args(Selection))}", "Begin from another run."
        raise CheckpointError(message(where, expected=expected, got=str(rule)[:40], do=do))
    return cast(Selection, rule)


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        plain = parse(text)
    except YamlProblem as problem:
        got, do = f"not valid YAML ({problem})", "Begin from another run."
        raise CheckpointError(message(where, expected="the configuration of a run", got=got, do=do)) from problem
    return plain if isinstance(plain, dict) else {}


def _sets_of_run(found: Checkpoint, plain: Mapping[str, Any]) -> tuple[TrainedSet, ...]:
    """Return what another run was trained on. plain: its configuration."""
    data, fold = plain.get("data"), plain.get("fold")
    protocol = str(data.get("protocol", "published")) if isinstance(data, Mapping) else "published"
    return sets_in(found.state, found.folder, protocol=protocol, fold=fold if isinstance(fold, int) else None)


def _refuse_test_clips(config: RunConfig, sets: tuple[TrainedSet, ...], store: Shards | None, home: str) -> None:
    """Raise CheckpointError if the other model was trained on clips that this one is tested on, as in another fold of
    the same shards. sets: what it was trained on. store: None for clips outside of shards."""
    if store is None:
        return
    tested = store.stores[0] if isinstance(store, JoinedStore) else store
    own = fold_of(tested.manifest, config.data.protocol, config.fold).test
    found = seen(tested, sets, keys_of(tested, own))
    if found is not None:
        expected = f"a run that saw none of the test clips of fold {config.fold}"
        got, do = f"one trained on {', '.join(found.train.names)}", f"Begin from that run's fold {config.fold}."
        if found.by.protocol != config.data.protocol:
            do = f"Begin from a run with data.protocol={config.data.protocol}."
        raise CheckpointError(message(f"model.start={home}", expected=expected, got=got, do=do))


def _check_architecture(config: RunConfig, state: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError unless both architectures have the same name: architectures with equal tensor shapes may
    have different activations."""
    model = state.get("model")
    if isinstance(config.model, CnnConfig):
        _check_net(config.model, model, where)
        return
    towers = model.get("towers") if isinstance(model, Mapping) else None
    own = config.model.towers.arch
    if not isinstance(towers, Mapping):
        name = str(model.get("name"))[:40] if isinstance(model, Mapping) else "another method"
        do = "Begin from a run or a saved model of a method with a CLIP."
        raise CheckpointError(message(where, expected=f"towers of {own}", got=f"{name}, which has none", do=do))
    theirs = str(towers.get("arch"))
    if theirs.rpartition("/")[2] != own.rpartition("/")[2]:
        do = f"Set model.towers.arch={theirs}."
        raise CheckpointError(message(where, expected=f"towers of {own}", got=theirs, do=do))


def _check_net(config: CnnConfig, model: object, where: str) -> None:
    """Raise CheckpointError unless the other run trained the same network."""
    found = model if isinstance(model, Mapping) else {}
    theirs, own = f"{found.get('net')} of width {found.get('width')}", f"{config.net} of width {config.width}"
    if theirs != own:
        got = theirs if found.get("name") == config.name else str(found.get("name"))
        do = "Set model.net and model.width as that run has them, or begin from another run."
        raise CheckpointError(message(where, expected=f"the network {own}", got=got, do=do))


def classes_of(state: Mapping[str, Any], where: str) -> list[str]:
    """Read the class names, in order, from a checkpoint's state."""
    names = state.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        do = "Begin from another checkpoint of the run."
        raise CheckpointError(message(where, expected="class names in the checkpoint's state", got="none", do=do))
    return names
