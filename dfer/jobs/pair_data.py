"""The pictures of pairs, the student's features of them, and the stored pairs.

Letters: B pictures, C colours, H height, W width, S student features, D teacher features.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.config import changed
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.descriptions import described_in
from dfer.data.features import FeatureManifest, FeatureSet, name_of, read_manifest
from dfer.data.picture_reader import folder_batches, shard_batches
from dfer.data.pictures import PictureFolder
from dfer.errors import CheckpointError, DataError, UsageError, message
from dfer.inference import autocast, set_tf32
from dfer.jobs.fold_data import manifest_hash
from dfer.jobs.pairs import PairsConfig
from dfer.jobs.pieces import contrast
from dfer.models.build import image_tower
from dfer.models.files import file_id, is_tag
from dfer.models.frozen import frame_features
from dfer.models.normalisation import refuse_other_normalisation
from dfer.models.projection import STUDENT, TEACHER
from dfer.models.towers import clip_settings
from dfer.storage import Folder
from dfer.store.shards import Store
from dfer.teacher.build import build_teacher, refuse_bare
from dfer.teacher.config import DESCRIBE, READS_TEXT, Blip2TeacherConfig, InstructBlipTeacherConfig
from dfer.teacher.files import identity
from dfer.teacher.ready import check_ready

SEED = 1
"""Of random weights, for tests and demonstrations."""
DTYPES = {"as_computed": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Source:
    """N unlabelled pictures in a fixed order. where: their place. sha256: identifies them. keys, texts: of each picture
    its name, and its description or None. clips, folder: where they are read; one of the two. stored: the manifest of
    the pairs that `pairs.features` names, in place of both: no pictures are at hand."""

    config: PairsConfig
    where: str
    sha256: str
    clips: ClipSet | None
    folder: PictureFolder | None
    stored: FeatureManifest | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def keys(self) -> list[str]:
        """Name of each picture."""
        if self.stored is not None:
            return find_pairs(self.config, self).keys
        return self.clips.keys if self.clips is not None else list(_of(self.folder).names)

    @cached_property
    def texts(self) -> list[str | None]:
        """Description of each picture; not read, and None, for a teacher that reads none."""
        if self.stored is not None or not isinstance(self.config.teacher, READS_TEXT):
            return [None] * len(self)
        return self.clips.texts if self.clips is not None else described_in(_of(self.folder))

    @property
    def texts_sha256(self) -> str | None:
        """SHA-256 of the descriptions that the teacher reads in a folder. `sha256` covers those in shards."""
        if self.folder is None or not isinstance(self.config.teacher, READS_TEXT):
            return None
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()

    def batches(self, wanted: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Yield pictures, uint8 [B 3 H W], of each batch of positions, of which all but the last are equally large.

        Raises:
            DataError: a picture cannot be read. StorageError.
        """
        config = self.config
        if self.folder is not None:
            yield from folder_batches(self.folder, wanted, size=config.size, workers=config.workers)
            return
        assert self.clips is not None, "one of the two"
        data = DataConfig(shards=self.where, frames=1, size=config.size, workers=config.workers)
        yield from shard_batches(self.clips, wanted, data, most=max(map(len, wanted), default=1))


def _of(folder: PictureFolder | None) -> PictureFolder:
    assert folder is not None, "one of the two"
    return folder


def open_source(config: PairsConfig) -> Source:
    """Open the pictures, or the stored pairs that `pairs.features` names.

    Raises:
        DataError: there are no pictures, or the stored pairs are others. StorageError. UsageError: neither is named.
    """
    named = read_manifest(Folder(config.features, what="pairs.features"))
    if named is not None and named.key.get("kind") == "pairs":
        refuse_other_set(config, named.key)
        sha256 = str(named.key.get("source_sha256"))
        return Source(config=config, where=config.features, sha256=sha256, clips=None, folder=None, stored=named)
    if config.shards is None and config.pictures is None:
        do = "Set pairs.shards=FOLDER, for example; a fit also takes the folder of one set of pairs as pairs.features."
        raise UsageError(message("pairs", expected="shards or pictures", got="neither", do=do))
    if config.pictures is not None:
        folder = PictureFolder.open(Path(config.pictures))
        sha256 = folder.sha256
        return Source(config=config, where=config.pictures, sha256=sha256, clips=None, folder=folder)
    assert config.shards is not None, "one of the two"
    store = Store(config.shards, cache=config.store_cache())
    partitions = config.partitions or store.manifest.partitions()
    clips = ClipSet.every(store, partitions)
    if not len(clips):
        do = "Correct pairs.shards or pairs.partitions."
        raise DataError(message(config.shards, expected="clips", got="none", do=do))
    return Source(config=config, where=config.shards, sha256=manifest_hash(store), clips=clips, folder=None)


def key_of(config: PairsConfig, source: Source) -> dict[str, Any]:
    """Collect everything that stored pairs depend on, as plain values. Raises CheckpointError, DataError."""
    if source.stored is not None:
        return dict(source.stored.key)
    towers = config.towers
    tag = towers.pretrained is not None and is_tag(towers.arch, towers.pretrained)
    weights = f"random, seed {SEED}" if towers.pretrained is None else f"tag {towers.pretrained}" if tag else None
    student: dict[str, Any] = {
        "arch": file_id(towers.arch) if towers.arch.endswith(".json") else towers.arch,
        "image_size": towers.image_size,
        "weights": weights or file_id(str(towers.pretrained)),
        "normalisation": "clip" if config.clip_normalisation else "none",
        "precision": config.precision,
    }
    found: dict[str, Any] = {
        "kind": "pairs",
        "source_sha256": source.sha256,
        "texts_sha256": source.texts_sha256,
        "partitions": ", ".join(config.partitions) or "all",
        "size": config.size,
        "batch": config.batch,
        "stored": config.stored,
        "clip": {name: value for name, value in student.items() if value is not None},
        "teacher": identity(config.teacher),
    }
    return {name: value for name, value in found.items() if value is not None}


def home_of(config: PairsConfig, key: Mapping[str, Any]) -> Folder:
    """Return the folder of the pairs with this key."""
    return Folder(config.features, what="pairs.features") / name_of(key)


def find_pairs(config: PairsConfig, source: Source | None = None) -> FeatureSet:
    """Read the stored pairs: features `student` [N S] and `teacher` [N D].

    Raises:
        DataError: there are none for this CLIP, teacher, revision, instruction and source, or they are damaged.
    """
    found = FeatureSet.open(stored_home(config, source))
    assert found is not None, "its manifest was read"
    return found


def refuse_other_set(config: PairsConfig, key: Mapping[str, Any]) -> None:
    """Raise DataError if the key of stored pairs says something else than the configuration, as far as that says it
    without pictures and models. How they were computed (batch, precisions, number format) may differ."""
    towers, teacher = config.towers, config.teacher
    tag = towers.pretrained is not None and is_tag(towers.arch, towers.pretrained)
    weights = str(key["clip"].get("weights"))
    model = str(getattr(teacher, "model", "package:"))
    own: dict[str, Any] = {
        "partitions": ", ".join(config.partitions) or None,
        "size": config.size,
        "clip": {
            "arch": None if towers.arch.endswith(".json") else towers.arch,
            "image_size": towers.image_size,
            "weights": f"tag {towers.pretrained}" if tag and weights.startswith("tag ") else None,
            "normalisation": "clip" if config.clip_normalisation else "none",
        },
        "teacher": {
            "kind": teacher.name,
            "model": None if model.startswith("package:") else Path(model).name,
            **{name: getattr(teacher, name, None) for name in ("revision", "instruction", "dim", "seed")},
        },
    }
    theirs = {**key, "teacher": {**key["teacher"], "model": Path(str(key["teacher"].get("model"))).name}}
    different = {name: both for name, both in differences(theirs, own).items() if both[1] is not None}
    if different:
        do = "Correct `pairs`, or name other pairs with pairs.features."
        raise DataError(_other_pairs(config.features, different, do=do))


def stored_home(config: PairsConfig, source: Source | None = None) -> Folder:
    """Return the folder of the stored pairs. Raises DataError: as `find_pairs`."""
    if source is None:
        source = open_source(config)
    if source.stored is not None:
        return Folder(config.features, what="pairs.features")
    key = key_of(config, source)
    home = home_of(config, key)
    if read_manifest(home) is not None:
        return home
    root = Folder(config.features, what="pairs.features")
    others = [(name, found.key) for name in root.folders() if (found := read_manifest(root / name)) is not None]
    alike = [(name, other) for name, other in others if other.get("kind") == "pairs"]
    do = "Make them: dfer extract with the same `pairs`; or correct `pairs`."
    if not alike:
        raise DataError(message(root, expected="pairs of features", got="none", do=do))
    name, other = min(alike, key=lambda pair: len(differences(pair[1], key)))
    raise DataError(_other_pairs(root / name, differences(other, key), do=do))


def _other_pairs(where: object, different: Mapping[str, tuple[Any, Any]], *, do: str) -> str:
    shown = [(what, contrast(*both)) for what, both in different.items()]
    got, expected = ("; ".join(f"{what}: {both[at]}" for what, both in shown) for at in (0, 1))
    return message(where, expected=f"pairs with {expected}", got=got, do=do)


def refuse_no_pictures(source: Source) -> None:
    """Raise UsageError for stored pairs in place of pictures."""
    if source.stored is not None:
        expected, got = "a folder below which features are stored", "that of one set of pairs, without its pictures"
        do = "Set pairs.features to the folder above it, or fit on features."
        raise UsageError(message(f"pairs.features={source.where}", expected=expected, got=got, do=do))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two keys of pairs differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**theirs, **ours}:
        left, right = theirs.get(name), ours.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found[f"{prefix}{name}"] = (left, right)
    return found


def student(config: PairsConfig, device: torch.device) -> tuple[Callable[[Tensor], Tensor], str]:
    """Build the student: from uint8 [B 3 H W] to the image tower's features, fp32 [B S], not normalised. Returns also
    the origin of its weights. Raises CheckpointError."""
    tower = image_tower(config.towers, seed=SEED, weights=True).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(pictures: Tensor) -> Tensor:
        with autocast(config.precision, device):
            found = frame_features(tower.visual, pictures[:, None].to(device), normalise=config.clip_normalisation)
        return found[:, 0].float()

    return encode, tower.origin or "random weights"


def check_tower(config: PairsConfig) -> None:
    """Check that student and teacher can be loaded; print what the user should know, such as a download.

    Raises:
        CheckpointError: files are missing. UsageError: a package is missing, or student or teacher takes another size.
        ConfigProblem: the student's weights were trained with another normalisation.
    """
    for line in check_ready(config.teacher, size=config.size):
        print(line, file=sys.stderr)
    towers = config.towers
    tag = towers.pretrained is not None and is_tag(towers.arch, towers.pretrained)
    named = [towers.arch] if towers.arch.endswith(".json") else []
    named += [towers.pretrained] if towers.pretrained is not None and not tag else []
    for path in named:
        if not Path(path).is_file():
            do = "Correct pairs.towers."
            raise CheckpointError(message(path, expected="a file of CLIP", got="no file", do=do))
    if config.clip_normalisation:
        refuse_other_normalisation(towers, model="pairs")
    size = clip_settings(towers, model="pairs")["vision_cfg"]["image_size"]
    if config.size != size:
        expected, do = f"{size} pixels, as {towers.arch} takes", f"Set pairs.size={size}, or choose another CLIP."
        raise UsageError(message("pairs.size", expected=expected, got=str(config.size), do=do))


def check_descriptions(config: PairsConfig, source: Source) -> None:
    """Raise DataError if the teacher reads descriptions and pictures have none, UsageError if there are no pictures."""
    refuse_no_pictures(source)
    if isinstance(config.teacher, READS_TEXT):
        refuse_bare(source.where, source.keys, source.texts)


def refuse_not_finite(config: PairsConfig, name: str, features: Tensor, keys: Sequence[str]) -> None:
    """Raise DataError if features [B ...], as they are stored, are not finite. name: whose they are."""
    finite = features.isfinite().flatten(1).all(dim=1)
    if finite.all():
        return
    bad = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good]
    expected = f"finite features of the {name}"
    got = f"NaN or infinity for {len(bad)} of {len(keys)} ({', '.join(bad[:3])})"
    do = f"Set pairs.{'teacher.' if name == TEACHER else ''}precision=bf16 or fp32"
    do += ", or pairs.stored=bf16 or as_computed." if config.stored == "fp16" else "."
    raise DataError(message(config.source, expected=expected, got=got, do=do))


class Pairs:
    """Both frozen models on a device: the student and the teacher of every picture."""

    def __init__(self, config: PairsConfig, device: torch.device) -> None:
        """Build both. TF32 is off, also for what else computes in this process. Raises CheckpointError, UsageError."""
        set_tf32(False)
        self._config, self._device = config, device
        self._student, self._told = student(config, device)
        self.teacher = build_teacher(config.teacher, device)

    def take(self, config: PairsConfig) -> None:
        """Go on with a configuration that differs in nothing but the teacher's instruction. Raises CheckpointError."""
        before, now = (getattr(each.teacher, "instruction", None) for each in (self._config, config))
        if now is not None and now != before:
            self.teacher.ask(now)
        self._config = config

    @property
    def origin(self) -> str:
        """Origin of both models' weights, in words."""
        return f"CLIP {self._told}; teacher {self.teacher.origin}"

    def features(self, pictures: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """Compute `student` [B S] and `teacher` [B D] of pictures, uint8 [B 3 H W], in the stored number format."""
        on_device = pictures.to(self._device, non_blocking=True)
        return self._as_stored({STUDENT: self._student(on_device), TEACHER: self.teacher(on_device, texts)})

    def taught(self, pictures: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """Compute `teacher` alone, as `features` does."""
        return self._as_stored({TEACHER: self.teacher(pictures.to(self._device, non_blocking=True), texts)})

    def _as_stored(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(DTYPES[self._config.stored]) for name, value in features.items()}

    def encoded(
        self, source: Source, batches: Sequence[Sequence[int]], *, students: Iterable[Tensor | None] = repeat(None)
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the features of each batch of positions, on the CPU. students: stored features of the student for each
        batch, None where there are none.

        Raises:
            DataError: a picture cannot be read, or features are not finite in the stored format. StorageError.
        """
        texts = source.texts
        for (batch, known), pictures in zip(zip(batches, students), source.batches(batches), strict=True):
            said = [texts[index] or "" for index in batch]
            made = self.features(pictures, said) if known is None else {STUDENT: known, **self.taught(pictures, said)}
            found = {name: value.cpu() for name, value in made.items()}
            for name, value in found.items():
                refuse_not_finite(self._config, name, value, [source.keys[index] for index in batch])
            yield found

    @staticmethod
    def joined(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the features of several batches."""
        return {name: torch.cat([each[name] for each in rows]) for name in rows[0]}


_LOADED: dict[PairsConfig, Pairs] = {}


def loaded(config: PairsConfig, device: torch.device) -> Pairs:
    """Return both models for a configuration. Models of the last call are used again if only the instruction differs;
    else they are freed first, since a device may not have room for two. Raises CheckpointError, UsageError."""
    teacher = config.teacher
    asked = isinstance(teacher, Blip2TeacherConfig | InstructBlipTeacherConfig)
    same = changed(config, {"teacher.instruction": DESCRIBE}) if asked else config
    if same not in _LOADED:
        let_go()
        _LOADED[same] = Pairs(config, device)
    _LOADED[same].take(config)
    return _LOADED[same]


def let_go() -> None:
    """Forget what `loaded` has kept."""
    if _LOADED:
        _LOADED.clear()
        gc.collect()  # a hook of the teacher refers to the teacher
