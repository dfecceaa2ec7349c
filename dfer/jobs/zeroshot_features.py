"""Features of a data set's test clips and of class texts, computed once for all prompt kinds, heads and folds.

A head is linear, so that the mean feature over a clip's frames is all that is stored of a clip. Letters: B clips,
T frames, P texts of all classes, D embedding.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.data.features import FeatureSet, name_of, write_manifest, write_shard
from dfer.distributed import World, on_first
from dfer.emotions import Emotions
from dfer.errors import CheckpointError, DataError, message
from dfer.inference import autocast, set_tf32
from dfer.interruption import Stop
from dfer.jobs.computed import Source, compute
from dfer.jobs.features import find_in, weights_id
from dfer.jobs.initial import refuse_trained_towers
from dfer.jobs.zeroshot_config import ZeroshotConfig, ZeroshotModel
from dfer.jobs.zeroshot_sets import SetData
from dfer.models.build import frozen_towers
from dfer.models.class_texts import ClassTexts
from dfer.models.files import file_id, is_tag
from dfer.models.frozen import FrozenTowers
from dfer.models.normalisation import refuse_other_normalisation
from dfer.models.texts import class_prompts
from dfer.models.towers import clip_settings, context_length
from dfer.recognition import ClipBatch
from dfer.storage import Folder

CLIPS, TEXTS = "clips", "texts"
"""Names of the stored features: mean over a clip's frames [D], and of a text [D], neither of them normalised."""


class Towers:
    """One CLIP of the suite: its sizes, what identifies its weights, and the towers themselves once they are needed."""

    def __init__(self, config: ZeroshotConfig, name: str, world: World) -> None:
        """name: of the model in the configuration."""
        self.config, self.name, self.world = config, name, world
        self.model: ZeroshotModel = config.models[name]
        settings = clip_settings(self.model.towers, model=self.where)
        self.embed_dim: int = settings["embed_dim"]
        self.size: int = settings["vision_cfg"]["image_size"]

    @property
    def where(self) -> str:
        """Key of the model in the configuration."""
        return f"models.{self.name}"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the features of these towers depend on besides their input."""
        towers = self.model.towers
        arch = file_id(towers.arch) if towers.arch.endswith(".json") else towers.arch
        found = {"arch": arch, "image_size": towers.image_size, "weights": weights_id(towers, self.config.seed)}
        return {
            **{name: value for name, value in found.items() if value is not None},
            "precision": self.config.precision,
        }

    def refuse_missing_files(self) -> None:
        """Raise CheckpointError if a file of these towers is missing."""
        towers = self.model.towers
        paths = {"arch": towers.arch if towers.arch.endswith(".json") else None, "pretrained": towers.pretrained}
        for key, path in paths.items():
            tag = key == "pretrained" and path is not None and is_tag(towers.arch, path)
            if path is not None and not tag and not Path(path).exists():
                where, do = f"{self.where}.towers.{key}={path}", "Put it back, or correct the path."
                expected = f"this file, or features made with it in {self.config.features}"
                raise CheckpointError(message(where, expected=expected, got="neither", do=do))

    @cached_property
    def built(self) -> FrozenTowers:
        """Both towers on the device. Raises CheckpointError if a file is missing or does not fit."""
        self.refuse_missing_files()
        refuse_trained_towers(self.model.towers, model=self.where)
        set_tf32(False)
        return frozen_towers(self.model.towers, seed=self.config.seed).to(self.world.device)

    def find(self, key: Mapping[str, Any]) -> Folder | None:
        """Find stored features; None if there are none."""
        return find_in(self.root, key, what=f"{self.where}.towers.pretrained")

    @property
    def root(self) -> Folder:
        """The folder below which features are stored."""
        return Folder(self.config.features, what="features")


def check_towers(config: ZeroshotConfig, name: str, sets: Sequence[SetData]) -> None:
    """Raise CheckpointError if a tower cannot be built, and features of some of these data sets are not stored; builds
    none. ConfigProblem if it was trained with another normalisation. name: of the model in the configuration."""
    towers = Towers(config, name, World())
    if towers.model.clip_normalisation:
        refuse_other_normalisation(towers.model.towers, model=towers.where)
    try:
        towers.refuse_missing_files()
        refuse_trained_towers(towers.model.towers, model=towers.where)
    except CheckpointError:
        keys = [_clip_key(towers, data) for data in sets]
        keys += [_text_key(towers, class_prompts(data.emotions, kind)) for data in sets for kind in config.texts]
        if not all(towers.find(key) for key in keys):
            raise


def clip_features(towers: Towers, data: SetData, stop: Stop) -> FeatureSet:
    """Return the stored features of a data set's test clips, computed if there are none. COLLECTIVE.

    Raises:
        CheckpointError: neither they nor the towers' weights are there. DataError: a clip cannot be read.
        StoppedError: on all ranks; whole shards are kept.
    """
    config, world = towers.config, towers.world
    key = on_first(lambda: _clip_key(towers, data), world)
    home = on_first(lambda: towers.find(key), world)
    if home is None:
        on_first(lambda: towers.built and None, world)  # a missing file is an error of all ranks
        batch = max(1, config.batch // data.frames)
        source = Source(
            keys=data.featured,
            batch=batch,
            batches=lambda rows: data.batches(rows, towers.size, batch, world),
            encode=lambda: (_encoder(towers), towers.built.origin or ""),
        )
        home = compute(towers.root, key, source, world, stop)
    return _opened(home)


def _clip_key(towers: Towers, data: SetData) -> dict[str, Any]:
    rule = towers.config.short_clips if data.frames > 1 else "stills"
    return {
        **towers.identity,
        "what": "mean over frames",
        "source_sha256": data.sha256,
        "clips_sha256": data.featured_sha256,
        "frames": data.frames,
        "short_clips": rule,
        "size": towers.size,
        "normalisation": "clip" if towers.model.clip_normalisation else "none",
    }


def _encoder(towers: Towers) -> Callable[[ClipBatch], dict[str, Tensor]]:
    """Return the function from a batch to the mean frame features, fp32 [B D]."""
    built, normalise = towers.built, towers.model.clip_normalisation

    @torch.no_grad()
    def encode(batch: ClipBatch) -> dict[str, Tensor]:
        with autocast(towers.config.precision, towers.world.device):
            frames = built.features(batch, normalise=normalise)
        return {CLIPS: frames.float().mean(dim=1)}

    return encode


class Texts:
    """The class texts of a prompt kind for one tower. Only the first rank uses it."""

    def __init__(self, towers: Towers, emotions: Emotions, kind: str) -> None:
        self._towers = towers
        self._prompts = class_prompts(emotions, kind)
        self.layout = ClassTexts(emotions, kind, context_length=context_length(towers.model.towers))

    @cached_property
    def features(self) -> Tensor:
        """Text features, fp32 [P D] on the CPU, not normalised: stored ones, or computed and stored."""
        key = _text_key(self._towers, self._prompts)
        home = self._towers.find(key)
        if home is None:
            home = self._towers.root / name_of(key)
            names = [f"{k}/{n}" for k, texts in enumerate(self._prompts) for n in range(len(texts))]
            shard = write_shard(home, 0, {TEXTS: self._computed()}, keys=names)
            write_manifest(home, key, [shard], origin=self._towers.built.origin or "")
        return _opened(home).features[TEXTS]

    @torch.no_grad()
    def _computed(self) -> Tensor:
        built, device = self._towers.built, self._towers.world.device
        with autocast(self._towers.config.precision, device):
            found: Tensor = self.layout.to(device)(built)
        return found.float().cpu()


def _text_key(towers: Towers, prompts: list[list[str]]) -> dict[str, Any]:
    return {**towers.identity, "what": "texts", "texts_sha256": sha256_of_texts(prompts)}


def sha256_of_texts(prompts: list[list[str]]) -> str:
    """SHA-256 of the texts of all classes."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _opened(home: Folder) -> FeatureSet:
    found = FeatureSet.open(home)
    if found is None:
        raise DataError(message(home, expected="features", got="none, as they were removed", do="Start again."))
    return found
