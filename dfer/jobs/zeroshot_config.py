"""The configuration of the zero-shot suite: models, prompt kinds and data sets. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dfer.choices import Precision
from dfer.config import ConfigProblem, key, to_plain
from dfer.data.config import Sampling
from dfer.errors import without_secrets
from dfer.jobs.parts import absolute_path
from dfer.local_files import sha256_of
from dfer.models.config_towers import TowersConfig
from dfer.models.texts import check_kind, is_file
from dfer.storage import Folder
from dfer.store.cache import Cache
from dfer.store.shards import CACHE_GIB

EXP_CLIP_KINDS = ("class_names", "class_names_with_context", "face_with_expression", "ensemble_5", "ensemble_10")
"""The prompt kinds of Exp-CLIP, 1 to 5."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Name of a model or a data set: a key on the command line, and part of file names."""
SHORT_CLIPS: dict[str, Sampling] = {"repeat_first": "exp_clip", "repeat_last": "dfer_clip"}
"""The rule of sampling frames that belongs to each rule of short clips."""


@dataclass(frozen=True, kw_only=True)
class ZeroshotModel:
    """A CLIP, with or without a projection head. towers: which CLIP. head: file with `mlp.weight` [H D], null for plain
    CLIP. clip_normalisation: normalise frames by CLIP's mean and deviation (Exp-CLIP: no). temperature: divides the
    cosine similarity."""

    towers: TowersConfig = field(default_factory=TowersConfig)
    head: str | None = key(None, file=True)
    clip_normalisation: bool = False
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. CLIP's is 0.01")


@dataclass(frozen=True, kw_only=True)
class ZeroshotSet:
    """A data set: shards (folder or URL), or pictures (a folder of class folders, all of which are tested). A set whose
    folder is not there, or that names none, is absent from the table.

    protocol, classes: of shards, as in `data`. folds: their numbers, none = all. classes of pictures: none = those of
    the folders. folders: class of each folder whose name is no name of a class, such as {"1": happiness}.
    """

    shards: str | None = key(None, path=True)
    pictures: str | None = key(None, path=True)
    protocol: str = "published"
    classes: str | tuple[str, ...] | None = None
    folds: tuple[int, ...] = ()
    folders: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shards is not None and self.pictures is not None:
            raise ConfigProblem("shards, pictures: expected one of them, got both. Set the other to null")
        if self.pictures is not None and (self.folds or self.protocol != "published"):
            got = f"protocol={self.protocol}, folds={list(self.folds)}"
            raise ConfigProblem(f"pictures: expected no folds, all pictures are tested, got {got}. Leave both out")
        if self.pictures is not None and "://" in self.pictures:
            raise ConfigProblem("pictures: expected a folder on a disk, got a URL. Build shards of them")
        if self.folders and self.pictures is None and self.shards is not None:
            raise ConfigProblem("folders: expected none with shards, whose classes have names, got some. Leave it out")

    @property
    def source(self) -> str | None:
        """Path or URL, None if the set names none."""
        return self.shards if self.shards is not None else self.pictures


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig:
    """models and sets: by name. texts: prompt kinds, or YAML files of class texts. frames: T of clips; a still has one.
    short_clips: what a clip of at most T frames shows: its first frame T times (`repeat_first`, Exp-CLIP's release), or
    all its frames and the last one repeated (`repeat_last`). features: folder or URL for stored features of frames and
    texts. batch: frames of one forward pass. precision: of both towers; heads are applied in fp32. seed: of random
    weights, where `pretrained` is null. workers: decoding processes, or threads for pictures, of a rank. cache,
    cache_gib: as in `data`. run: folder over all data sets. remark: words for the reader of the table.
    """

    job: Literal["zeroshot"] = key("zeroshot", resume="free")
    run: str = key(path=True, resume="free")
    models: dict[str, ZeroshotModel]
    texts: tuple[str, ...] = key(EXP_CLIP_KINDS, file=True)
    sets: dict[str, ZeroshotSet]
    frames: int = 16
    short_clips: Literal["repeat_first", "repeat_last"] = "repeat_first"
    features: str = key(path=True, resume="free")
    batch: int = key(256, resume="free")
    precision: Precision = "fp32"
    seed: int = 1
    remark: str = key("", resume="free")
    workers: int = key(2, resume="free")
    cache: str | None = key(None, path=True, resume="free")
    cache_gib: float = key(CACHE_GIB, resume="free")

    def __post_init__(self) -> None:
        for name, low in {"frames": 1, "batch": 1, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise ConfigProblem(f"{name}: expected at least {low}, got {getattr(self, name)}. Correct it")
        if self.cache_gib <= 0:
            raise ConfigProblem(f"cache_gib: expected more than 0, got {self.cache_gib}. Correct it")
        _check_names("models", self.models)
        _check_names("sets", self.sets)
        for kind in self.texts:
            check_kind(kind)
        labels = [label_of(kind) for kind in self.texts]
        if not labels or len({*labels}) < len(labels):
            got = ", ".join(labels) or "none"
            raise ConfigProblem(f"texts: expected prompt kinds, each once by kind or file name, got {got}. Correct it")

    def store_cache(self) -> Cache:
        """The cache of remote shards."""
        return Cache(self.cache, budget=int(self.cache_gib * 2**30))


def _check_names(what: str, names: Iterable[str]) -> None:
    """Raise ConfigProblem unless there are names that can be part of file names; capital letters make no difference on
    some disks."""
    found = list(names)
    odd = next((name for name in found if not NAME.fullmatch(name)), None)
    if not found or odd is not None or len({name.lower() for name in found}) < len(found):
        got = "none" if not found else repr(odd)[:80] if odd is not None else "two that differ in capital letters alone"
        raise ConfigProblem(f"{what}: expected names of letters, digits, _ and -, got {got}. Correct it")


def label_of(kind: str) -> str:
    """Return the name of a prompt kind in tables and file names: that of the file for the user's own."""
    return Path(kind).name if is_file(kind) else kind


def made_absolute(config: ZeroshotConfig) -> ZeroshotConfig:
    """Make all paths absolute: folders, architectures, weights, heads and files of texts. Tags and names stay."""
    from dfer.models.files import is_tag

    def of_model(model: ZeroshotModel) -> ZeroshotModel:
        towers, head = model.towers, model.head
        arch = absolute_path(towers.arch) if towers.arch.endswith(".json") else towers.arch
        weights = towers.pretrained
        if weights is not None and not is_tag(towers.arch, weights):
            weights = absolute_path(weights)
        return replace(model, towers=replace(towers, arch=arch, pretrained=weights), head=head and absolute_path(head))

    def of_set(each: ZeroshotSet) -> ZeroshotSet:
        places = {name: getattr(each, name) for name in ("shards", "pictures")}
        return replace(each, **{name: path and absolute_path(path) for name, path in places.items()})

    return replace(
        config,
        run=absolute_path(config.run),
        features=absolute_path(config.features),
        cache=config.cache and absolute_path(config.cache),
        texts=tuple(absolute_path(kind) if is_file(kind) else kind for kind in config.texts),
        models={name: of_model(model) for name, model in config.models.items()},
        sets={name: of_set(each) for name, each in config.sets.items()},
    )


def absence(own: ZeroshotSet) -> str:
    """Say why a data set is absent; empty if it is there. Raises StorageError if its store cannot be asked."""
    if own.source is None:
        return "neither shards nor pictures are given"
    if "://" in own.source or "::" in own.source:
        return "" if Folder(own.source, what="the shards").children() else f"nothing at {without_secrets(own.source)}"
    return "" if Path(own.source).exists() else f"there is no {own.source}"


def asked(config: ZeroshotConfig, name: str) -> str:
    """Identify what decides the result of a data set, its source's contents apart: SHA-256 of the models, the bytes of
    the heads, the texts and how clips are read."""
    own = config.sets[name]
    models = {
        model: {**to_plain(each), "head": _bytes_id(each.head), "towers": _towers_id(each.towers)}
        for model, each in config.models.items()
    }
    decides = {
        "models": models,
        "texts": [[label_of(kind), _bytes_id(kind) if is_file(kind) else ""] for kind in config.texts],
        "set": {**to_plain(own), "shards": own.shards is not None, "pictures": own.pictures is not None},
        "read": [config.frames, config.short_clips, config.precision, config.seed],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _towers_id(towers: TowersConfig) -> dict[str, object]:
    """The towers' keys, files by their name: the features say which contents they had."""
    plain = to_plain(towers)
    return {name: Path(value).name if isinstance(value, str) else value for name, value in plain.items()}


def _bytes_id(path: str | None) -> str:
    """SHA-256 of a small file; empty for none, or one that is missing."""
    if path is None or not Path(path).is_file():
        return ""
    return sha256_of(Path(path))
