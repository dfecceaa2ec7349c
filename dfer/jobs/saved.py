"""A saved model as the configuration of an evaluation or a prediction, and a run as what a saved model stores."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from dfer import config_files
from dfer.config import changed, to_plain
from dfer.data.config import DataConfig
from dfer.errors import CheckpointError, message
from dfer.jobs.config import RunConfig
from dfer.models.saved import SavedConfig, SavedModel

_PARTS = ("model", "data")
_ELSEWHERE = ("start", "towers.pretrained")
"""Keys below `model` that say where weights lie, not what is computed."""


def input_of(config: RunConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Return the keys of `data` that decide what a clip's input is: all but those that say where and how fast."""
    return {**_decisive(DataConfig, to_plain(config.data)), "classes": list(classes)}


def recipe_of(config: RunConfig) -> dict[str, Any]:
    """Return the keys of a run's configuration that say how it was trained, other than `model` and `data`."""
    return {k: v for k, v in _decisive(RunConfig, to_plain(config)).items() if k not in _PARTS}


def _decisive(kind: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a dataclass that may not be free when a run resumes, with values, and without its folders."""
    facts = {f.name: f.metadata for f in fields(kind)}
    kept = (name for name in plain if facts[name].get("resume") != "free" and plain[name] is not None)
    return {name: plain[name] for name in kept if not (facts[name].get("path") and isinstance(plain[name], str))}


def run_of(saved: SavedModel, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Make the configuration that evaluates a saved model: what it stores, under the files and the `a.b=c` overrides.

    files: such as `sets/dfew`, which give the shards; the classes stay those of the model. `run` is by default
    runs/saved/NAME.

    Raises:
        CheckpointError: they ask for another method, backbone, number of frames or size than the model has, or the
            model is one to begin a training with.
        ConfigProblem: a key that is unknown or missing, such as data.shards.
    """
    refuse_start(saved)
    config = config_files.load(files, RunConfig, overrides, below=(str(saved), _stored(saved)), keep=["data.classes"])
    refuse_other_model(saved, config)
    words = {"context_words": None} if hasattr(config.model, "context_words") else {}  # their embeddings are in it
    return replace(config, model=changed(config.model, {**words, "start": saved.folder.url}))


def _stored(saved: SavedModel) -> dict[str, Any]:
    found = saved.config
    data = {**found.data, "classes": list(found.classes)}
    return {**found.recipe, "run": f"runs/saved/{saved.folder.name}", "model": to_plain(found.model), "data": data}


def refuse_start(saved: SavedModel) -> None:
    """Raise CheckpointError for weights of another method, which say nothing of these classes before a training."""
    if saved.config.origin.made_by == "start":
        do = f"Train with it first: model.start={saved}."
        raise CheckpointError(message(saved, expected="a trained model", got="one to begin a training with", do=do))


def refuse_other_model(saved: SavedModel, config: RunConfig) -> None:
    """Raise CheckpointError if a configuration asks for another model or input than a saved model's."""
    own, asked = _own(saved.config), _wanted(config)
    wrong = sorted(name for name in own.keys() | asked.keys() if own.get(name) != asked.get(name))
    if "model.name" in wrong:
        wrong = ["model.name"]
    if wrong:
        expected = ", ".join(f"{name} = {own.get(name)!r:.80}" for name in wrong[:5])
        got = ", ".join(f"{asked.get(name)!r:.80}" for name in wrong[:5])
        do = "Leave these keys out: a saved model brings its own."
        raise CheckpointError(message(saved, expected=expected, got=got, do=do))


def _own(found: SavedConfig) -> dict[str, Any]:
    size = {f"data.{name}": found.data.get(name) for name in ("frames", "size")}
    return {**_flat(to_plain(found.model)), **size}


def _wanted(config: RunConfig) -> dict[str, Any]:
    return {**_flat(to_plain(config.model)), "data.frames": config.data.frames, "data.size": config.data.size}


def _flat(model: Mapping[str, Any], prefix: str = "model.") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in model.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        elif f"{prefix}{name}".removeprefix("model.") not in _ELSEWHERE:
            out[f"{prefix}{name}"] = value
    return out
