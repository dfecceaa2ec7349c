"""A saved model: a folder that holds a model's weights and all that is needed to use them, whole or not at all.

    OUT/model.safetensors   every weight by its name in this project
    OUT/config.yaml         SavedConfig: the model, its input, its classes, where it comes from; names the other files
    OUT/README.md           model card, with front matter for the Hugging Face hub
    OUT/towers.arch.json    only where the model needs a file of the user's, such as an architecture or class texts

OUT is a folder or any fsspec URL (`s3://...`, `https://...`). config.yaml is written last, so a folder without it is no
saved model. Reading runs nothing: YAML without tags, tensors as safetensors. Imports no torch, so that a command can
tell a saved model from a run folder before it imports anything slow.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfer import config as plain_config
from dfer import local_files
from dfer.choices import LEAKS_LABEL, Selection
from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.emotions import NAME
from dfer.errors import CheckpointError, message
from dfer.models.config import ModelConfig
from dfer.models.files import files
from dfer.storage import Folder
from dfer.yaml_text import YamlProblem, parse

if TYPE_CHECKING:
    from torch import Tensor

    from dfer.recognition import Recognizer

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
VERSION, VERSION_KEY = 1, "saved_model"
MAX_CONFIG_BYTES, MAX_FILE_BYTES = 2**20, 2**26
"""Largest config.yaml; largest further file."""
_AGAIN = "Copy the folder again from its source, or make it again with `dfer export` or `dfer import`."


@dataclass(frozen=True, kw_only=True)
class TrainedSet:
    """A data set that weights were trained on. generated: as in Origin. manifest_sha256: of its own shards, empty if it
    is not known. protocol, fold: whose training clips; fold None if it is not known."""

    dataset: str
    generated: str = ""
    manifest_sha256: str = ""
    protocol: str
    fold: int | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights come from.

    made_by: `export`, `import`, or `start` for an import from another method's model, to begin a training with.
    source: name of the run folder or of the file. source_sha256: of the checkpoint's weights, or of the file.
    dataset, protocol, fold, manifest_sha256: what it was trained on, as far as known.
    sets: every set that it was trained on, also by the runs that it began from; empty if the fields above say all.
    generated: seed and generator if the faces were generated. selection: how the checkpoint was chosen.
    step, epoch: when. epochs: of the whole training, if known. complete: whether it had ended. trained: false if the
    weights were only evaluated on that data, and trained on none.
    """

    made_by: Literal["export", "import", "start"]
    source: str
    source_sha256: str
    dataset: str = ""
    generated: str = ""
    protocol: str = ""
    fold: int | None = None
    manifest_sha256: str = ""
    sets: tuple[TrainedSet, ...] = ()
    selection: Selection | None = None
    step: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    complete: bool = True
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of these weights on the test clips of the fold they were trained for. war, uar: from 0 to 1. interval:
    of the WAR, 95 %, if it is known. clips: number of test clips. leaks_label: whether the model was given the true
    label of the test clips."""

    war: float
    uar: float
    clips: int
    interval: tuple[float, ...] | None = None
    leaks_label: bool = False

    @property
    def line(self) -> str:
        """`WAR 71.25, UAR 59.61` in percent, and LEAKS LABEL where it belongs beside the numbers."""
        mark = f", {LEAKS_LABEL}" if self.leaks_label else ""
        return f"WAR {100 * self.war:.2f}, UAR {100 * self.uar:.2f}{mark}"


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """The contents of config.yaml.

    model: the method's configuration without places of weights. classes: names in class order. texts: of the classes,
    where the method has some. normalisation: in words, done by the model itself. data, recipe: the keys of the run's
    configuration that say what a clip's input is and how the training went, under their own names. words: the same for
    readers, rows of the card by name. files: further files of the folder by the key below `model` that names them.
    sha256, bytes: of model.safetensors.
    """

    saved_model: Literal[1] = 1
    model: ModelConfig
    classes: tuple[str, ...]
    texts: tuple[str | tuple[str, ...], ...] | None = None
    normalisation: str
    data: dict[str, Any]
    recipe: dict[str, Any]
    words: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    sha256: str
    bytes: int
    origin: Origin
    score: Score | None = None

    def __post_init__(self) -> None:
        if not self.classes or len({*self.classes}) < len(self.classes) or not all(map(NAME.fullmatch, self.classes)):
            raise ConfigProblem("classes: expected distinct names of small letters, digits, spaces, _ and -")
        for name, low in (("frames", 1), ("size", 1)):
            value = self.data.get(name)
            if type(value) is not int or not low <= value <= 4096:
                raise ConfigProblem(f"data.{name}: expected a whole number from {low} to 4096, got {value!r:.40}")

    @property
    def num_frames(self) -> int:
        """T, frames of a clip."""
        return int(self.data["frames"])


def file_name(key: str, path: str) -> str:
    """Return the name in the folder of a file that a key below `model` names: towers.arch -> towers.arch.json."""
    return f"{key}{Path(path).suffix}"


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """An opened saved model. config: its model's files are those on this machine."""

    folder: Folder
    config: SavedConfig

    def __str__(self) -> str:
        return self.folder.url

    def weights(self) -> dict[str, "Tensor"]:
        """Read the weights by name, onto the CPU. Raises CheckpointError unless they are whole, finite and those that
        config.yaml was written for."""
        where, local = self.folder.where(WEIGHTS), self.folder.local
        if local is not None:
            return _read_weights(local / WEIGHTS, self.config, where)
        with tempfile.TemporaryDirectory(prefix="dfer-model-") as temporary:
            path = Path(temporary) / WEIGHTS
            _check_size(self.folder, self.config)
            self.folder.fetch(WEIGHTS, path)
            return _read_weights(path, self.config, where)

    def recognizer(self) -> "Recognizer":
        """Build the recognizer with these weights, on the CPU. Raises CheckpointError when they do not fit the
        configuration beside them."""
        from dfer.emotions import emotions_of
        from dfer.models.build import build

        emotions = emotions_of(self.config.classes)
        model = build(self.config.model, emotions, num_frames=self.config.num_frames, seed=0, weights=False)
        fill(model, self.weights(), where=self.folder.where(WEIGHTS))
        return model


def fill(model: "Recognizer", weights: Mapping[str, "Tensor"], *, where: object) -> None:
    """Load all weights of a model, or raise CheckpointError and load none."""
    from dfer.models.towers import check_names

    check_names(weights, model.state_dict(), where=where, do="The file belongs to another configuration. " + _AGAIN)
    model.load_state_dict(dict(weights))


def is_saved(folder: Folder) -> bool:
    """Whether a folder holds a saved model, by its config.yaml. Raises StorageError."""
    return VERSION_KEY in _parsed(folder.read(CONFIG, most=MAX_CONFIG_BYTES))


def open_saved(named: str, *, what: str = "the saved model") -> SavedModel | None:
    """Open the saved model in a folder; None for other folders, such as a run's. what: the setting that messages name.

    Raises:
        CheckpointError: it is a saved model, but a file is missing or config.yaml is malformed. StorageError.
    """
    folder = Folder(named, what=what)
    if folder.local is not None and not folder.local.is_dir():
        return None
    plain = _parsed(folder.read(CONFIG, most=MAX_CONFIG_BYTES))
    if VERSION_KEY not in plain:
        return None
    where = folder.where(CONFIG)
    if plain[VERSION_KEY] != VERSION:
        expected, got = f"a saved model of version {VERSION}", f"{plain[VERSION_KEY]!r:.40}"
        raise CheckpointError(message(where, expected=expected, got=got, do="Use the version of dfer that wrote it."))
    try:
        found = from_plain(SavedConfig, plain)
    except ConfigProblem as problem:
        expected = "the configuration of a saved model"
        raise CheckpointError(message(where, expected=expected, got=f"another ({problem})", do=_AGAIN)) from problem
    _refuse_files_elsewhere(found, where)
    for name in (WEIGHTS, CARD):
        if folder.size(name) is None:
            expected = {WEIGHTS: "the weights", CARD: "the model's card, which says what it was trained on"}[name]
            raise CheckpointError(message(folder.where(name), expected=expected, got="no such file", do=_AGAIN))
    _check_size(folder, found)
    return SavedModel(folder=folder, config=_with_files(folder, found))


def _refuse_files_elsewhere(found: SavedConfig, where: str) -> None:
    """Raise CheckpointError unless the model names the folder's own files and no others."""
    named = files(found.model)
    if named != found.files or any(name != file_name(key, name) for key, name in named.items()):
        expected, got = (
            "a model that names the folder's own files alone",
            ", ".join(map(repr, named.values())) or "none",
        )
        raise CheckpointError(message(where, expected=expected, got=got[:200], do=_AGAIN))


def _parsed(text: bytes | None) -> dict[str, Any]:
    """Plain values of YAML text; empty for other text, which is no saved model's."""
    try:
        plain = parse(text) if text is not None else {}
    except YamlProblem:
        return {}
    return plain if isinstance(plain, dict) else {}


def _with_files(folder: Folder, found: SavedConfig) -> SavedConfig:
    """Let the configuration name the folder's own files on this machine; those of a remote store are fetched."""
    if not found.files:
        return found
    at = folder.local
    if at is None:
        at = Path(tempfile.mkdtemp(prefix="dfer-model-"))
        atexit.register(shutil.rmtree, at, ignore_errors=True)
    for name in found.files.values():
        if folder.size(name) is None:
            expected = f"the file that {CONFIG} names"
            raise CheckpointError(message(folder.where(name), expected=expected, got="no such file", do=_AGAIN))
        if folder.local is None:
            (at / name).write_bytes(folder.read(name, most=MAX_FILE_BYTES) or b"")
    return replace(
        found, model=plain_config.changed(found.model, {key: str(at / name) for key, name in found.files.items()})
    )


def _check_size(folder: Folder, found: SavedConfig) -> None:
    size = folder.size(WEIGHTS)
    if size != found.bytes:
        where, got = folder.where(WEIGHTS), f"{size} bytes"
        raise CheckpointError(message(where, expected=f"{found.bytes} bytes", got=got, do=_AGAIN))


def _read_weights(path: Path, found: SavedConfig, where: str) -> dict[str, "Tensor"]:
    from dfer.models.foreign.weights import read_weights, refuse_not_finite

    if sha256_of(path) != found.sha256:
        expected = f"the weights with sha256 {found.sha256[:12]}... that {CONFIG} names"
        raise CheckpointError(message(where, expected=expected, got="others", do=_AGAIN))
    weights = read_weights(path)
    refuse_not_finite(weights, where)
    return weights


def sha256_of(path: Path) -> str:
    """As `dfer.local_files.sha256_of`. Raises CheckpointError when the file cannot be read."""
    try:
        return local_files.sha256_of(path)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise CheckpointError(message(path, expected="to read it", got=got, do=_AGAIN)) from error


def state_of(found: SavedConfig) -> dict[str, Any]:
    """Return the facts of a saved model as the state of a run's checkpoint holds them."""
    plain = json.loads(json.dumps(to_plain(found)))
    return {
        "model": plain["model"],
        "classes": list(found.classes),
        "manifest_sha256": found.origin.manifest_sha256,
        "texts": plain["texts"],
    }
