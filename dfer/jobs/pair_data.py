"""The pictures of pairs, the student's features of them, and the stored pairs.

Letters: B pictures, C colours, H height, W width, S student features, D teacher features.
"""

import csv
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.features import FeatureSet, name_of, read_manifest
from dfer.data.picture_reader import folder_batches, shard_batches
from dfer.data.pictures import PictureFolder
from dfer.errors import CheckpointError, DataError, UsageError, message
from dfer.inference import autocast, set_tf32
from dfer.jobs.features import file_id
from dfer.jobs.fold_data import manifest_hash
from dfer.jobs.pairs import PairsConfig
from dfer.jobs.pieces import contrast
from dfer.models.build import image_tower
from dfer.models.files import is_tag
from dfer.models.frozen import frame_features
from dfer.models.projection import STUDENT, TEACHER
from dfer.models.towers import clip_settings
from dfer.storage import Folder
from dfer.store.shards import Store
from dfer.teacher.build import build_teacher, refuse_bare
from dfer.teacher.config import READS_TEXT
from dfer.teacher.files import identity

SEED = 1
"""Of random weights, for tests and demonstrations."""
DESCRIPTIONS = "descriptions.csv"
DTYPES = {"as_computed": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Source:
    """N unlabelled pictures in a fixed order. where: their place. sha256: identifies them. keys, texts: of each picture
    its name, and its description or None. clips, folder: where they are read; one of the two."""

    config: PairsConfig
    where: str
    sha256: str
    clips: ClipSet | None
    folder: PictureFolder | None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def keys(self) -> list[str]:
        """Name of each picture."""
        return self.clips.keys if self.clips is not None else list(_of(self.folder).names)

    @cached_property
    def texts(self) -> list[str | None]:
        """Description of each picture; not read, and None, for a teacher that reads none."""
        if not isinstance(self.config.teacher, READS_TEXT):
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
    """Open the pictures. Raises DataError, StorageError, UsageError."""
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


def described_in(folder: PictureFolder) -> list[str | None]:
    """Read the descriptions of a folder's pictures from its `descriptions.csv`, with the columns file and text; None
    for pictures that it does not name, and for all if there is no such file. Raises DataError."""
    path = folder.root / DESCRIPTIONS
    if not path.is_file():
        return [None] * len(folder)
    try:
        found = _descriptions(path)
    except (OSError, ValueError, csv.Error) as error:
        expected, do = "a CSV file with the columns file and text", "Correct or remove it."
        raise DataError(message(path, expected=expected, got=str(error)[:160], do=do)) from error
    strange = sorted(found.keys() - {*folder.names})
    if strange:
        expected, got = "names of pictures in this folder", f"{len(strange)} others ({', '.join(strange[:3])})"
        raise DataError(message(path, expected=expected, got=got, do="Correct the file."))
    return [found.get(name) for name in folder.names]


def _descriptions(path: Path) -> dict[str, str]:
    """Read the text of each file of a table. Names of files need not be UTF-8. Raises ValueError with the line."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if {"file", "text"} - {*(rows.fieldnames or ())}:
            raise ValueError(f"columns {', '.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            name, text, at = row["file"], row["text"], f"line {rows.line_num}"
            if name is None or text is None:
                raise ValueError(f"a row without a text in {at}: {name}")
            if None in row:
                raise ValueError(f"more values than columns in {at}; a text with commas needs quotes: {name}")
            if name in found:
                raise ValueError(f"two rows for {name}, in lines {lines[name]} and {rows.line_num}")
            if any("\udc80" <= letter <= "\udcff" for letter in text):
                raise ValueError(f"a text that is not UTF-8 in {at}: {name}")
            found[name], lines[name] = text, rows.line_num
    return found


def key_of(config: PairsConfig, source: Source) -> dict[str, Any]:
    """Collect everything that stored pairs depend on, as plain values. Raises CheckpointError, DataError."""
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


def stored_home(config: PairsConfig, source: Source | None = None) -> Folder:
    """Return the folder of the stored pairs. Raises DataError: as `find_pairs`."""
    key = key_of(config, source or open_source(config))
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
    different = differences(other, key)
    shown = [(what, contrast(*both)) for what, both in different.items()]
    got, expected = ("; ".join(f"{what}: {both[at]}" for what, both in shown) for at in (0, 1))
    raise DataError(message(root / name, expected=f"pairs with {expected}", got=got, do=do))


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
    """Raise CheckpointError if files of the student are missing, UsageError if it takes pictures of another size."""
    towers = config.towers
    tag = towers.pretrained is not None and is_tag(towers.arch, towers.pretrained)
    named = [towers.arch] if towers.arch.endswith(".json") else []
    named += [towers.pretrained] if towers.pretrained is not None and not tag else []
    for path in named:
        if not Path(path).is_file():
            do = "Correct pairs.towers."
            raise CheckpointError(message(path, expected="a file of CLIP", got="no file", do=do))
    size = clip_settings(towers)["vision_cfg"]["image_size"]
    if config.size != size:
        expected, do = f"{size} pixels, as {towers.arch} takes", f"Set pairs.size={size}, or choose another CLIP."
        raise UsageError(message("pairs.size", expected=expected, got=str(config.size), do=do))


def check_descriptions(config: PairsConfig, source: Source) -> None:
    """Raise DataError if the teacher reads descriptions and pictures have none."""
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

    @property
    def origin(self) -> str:
        """Origin of both models' weights, in words."""
        return f"CLIP {self._told}; teacher {self.teacher.origin}"

    def features(self, pictures: Tensor, texts: Sequence[str], *, student: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `student` [B S] and `teacher` [B D] of pictures, uint8 [B 3 H W], in the stored number format.
        student: what the student gave for them before, which is then not computed."""
        on_device = pictures.to(self._device, non_blocking=True)
        ours = self._student(on_device) if student is None else student
        found = {STUDENT: ours, TEACHER: self.teacher(on_device, texts)}
        return {name: value.to(DTYPES[self._config.stored]) for name, value in found.items()}

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
            made = self.features(pictures, said) if known is None else self.features(pictures, said, student=known)
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
    """Return both models, those of the last call if it named the same; others are let go first, since a device may not
    have room for two. Raises CheckpointError, UsageError."""
    if config not in _LOADED:
        let_go()
        _LOADED[config] = Pairs(config, device)
    return _LOADED[config]


def let_go() -> None:
    """Forget what `loaded` has kept."""
    if _LOADED:
        _LOADED.clear()
        gc.collect()  # a hook of the teacher refers to the teacher
