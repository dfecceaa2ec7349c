"""The files of one checkpoint, and their verification against its manifest."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dfer.errors import DeniedError, StorageError
from dfer.local_files import is_denied, sha256_of
from dfer.run.layout import MANIFEST, Name
from dfer.storage import Folder, storage_error

VERSION = 2
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FILES = (WEIGHTS, OPTIMIZER, STATE)
MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Found:
    """A verified checkpoint on the first rank. fetched: `files` is a copy in a temporary folder."""

    name: Name
    state: dict[str, Any]
    files: Path
    fetched: bool


def damage(folder: Folder) -> str | None:
    """Return what is wrong with a checkpoint folder, or None when sizes and hashes match its manifest.

    Raises:
        StorageError: the store cannot be read, or this user has no permission to read it.
    """
    name = Name.parse(folder.name)
    assert name is not None, "a checkpoint's folder"
    found = verified(Folder(folder.url.rpartition("/")[0]), name)
    if isinstance(found, str):
        return found
    if found.fetched:
        shutil.rmtree(found.files, ignore_errors=True)
    return None


def verified(folder: Folder, name: Name) -> Found | str:
    """Verify a checkpoint and return it with its files on this machine, or return what is wrong with it.

    Raises StorageError when the store does not answer, DeniedError when this user may not read a file; neither means
    that a file is damaged.

    folder: of all checkpoints. Files of a remote store are fetched into a temporary folder, which the caller removes.
    """
    here = folder / str(name)
    files = _promised(here)
    if isinstance(files, str):
        return files
    fetched = here.local is None
    at = Path(tempfile.mkdtemp(prefix="dfer-checkpoint-")) if fetched else cast(Path, here.local)
    try:
        problem = _compare(here, files, at, fetched=fetched)
        state = None if problem else json.loads((at / STATE).read_text())
    except (ValueError, RecursionError) as error:
        problem, state = f"{STATE} is unreadable ({type(error).__name__})", None
    except BaseException:
        if fetched:
            shutil.rmtree(at, ignore_errors=True)
        raise
    if not problem and isinstance(state, dict):
        return Found(name=name, state=state, files=at, fetched=fetched)
    if fetched:
        shutil.rmtree(at, ignore_errors=True)
    return problem or f"{STATE} holds no mapping"


def _promised(folder: Folder) -> dict[str, tuple[int, str]] | str:
    """Read size and sha256 of each file from the manifest, or return what is wrong with the manifest."""
    try:
        if (size := folder.size(MANIFEST) or 0) > MAX_JSON_BYTES:
            return f"{MANIFEST} has {size} bytes"
        manifest = json.loads(folder.read(MANIFEST) or b"")
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version = manifest["version"]
    except StorageError as error:
        if folder.local is None or isinstance(error, DeniedError):
            raise
        return f"{MANIFEST} is unreadable ({type(error).__name__})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is unreadable ({type(error).__name__})"
    if version != VERSION or set(files) != set(FILES):
        return f"{MANIFEST} is of version {version!r} with {', '.join(sorted(files)) or 'no files'}"
    if files[STATE][0] > MAX_JSON_BYTES:
        return f"{STATE} has {files[STATE][0]} bytes"
    return files


def _compare(folder: Folder, files: dict[str, tuple[int, str]], at: Path, *, fetched: bool) -> str | None:
    for name, (size, sha256) in files.items():
        found = folder.size(name)
        if found is None:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        try:
            if fetched:
                folder.fetch(name, at / name)
            if sha256_of(at / name) != sha256:
                return f"{name} has another sha256 than its manifest"
        except OSError as error:
            if is_denied(error):
                raise storage_error(folder.where(name), error, doing="to read it") from error
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # safetensors raises its own class for errors of the disk
        raise OSError(str(error)) from error
