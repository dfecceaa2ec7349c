"""Read foreign weight files without running code that they name.

Supported: safetensors, `torch.save` archives, TorchScript archives (OpenAI's own CLIP downloads) and the format of
torch before 1.6. All but the first contain pickles, which are read as data (`dfer.models.foreign.archive`, `legacy`).
"""

import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.models.foreign import layouts
from dfer.models.foreign.archive import Archive
from dfer.models.foreign.legacy import Legacy
from dfer.models.foreign.tensors import Call

Weights = dict[str, Tensor]
WRAPPERS = ("module.", "_orig_mod.")
MAX_HEADER_BYTES = 16 * 2**20
"""Largest header of a safetensors file. That of the largest CLIP has a hundredth of this."""
MAX_MODULES = 100_000
INNER = ("state_dict", "model", "module", "model_state_dict", "net")
"""Keys of the model in a checkpoint: of most training code, of some, of DeepSpeed, of tutorials, of .t7 files."""
PARTS = ("_parameters", "_buffers", "_modules")
"""Where a module that was saved whole keeps its tensors and its children."""


def read_weights(path: Path) -> Weights:
    """Read tensors by name, onto the CPU, from a safetensors file, torch archive (`.pt`, `.pth`, `.bin`) or TorchScript
    archive.

    The first bytes decide the format, not the file's name. From a training checkpoint only the model is read (INNER).
    The prefixes that DataParallel and torch.compile put before every name are removed.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no weights.
    """
    check_file(path, path)
    read = _read_safetensors(path) if _is_safetensors(path) else _read_archive(path)
    weights = {
        name: value for name, value in read.items() if not value.is_complex()
    }  # no model here has complex weights
    if not weights:
        do = "Give the file that holds the model; DeepSpeed's is mp_rank_00_model_states.pt."
        raise CheckpointError(message(path, expected="tensors by name, or a `state_dict` of them", got="none", do=do))
    if not any(value.numel() for value in weights.values()):
        got = f"{len(weights)} names with empty tensors, as DeepSpeed's ZeRO 3 leaves them in each rank's file"
        do = "Put the parts together with DeepSpeed's zero_to_fp32.py and give its output."
        raise CheckpointError(message(path, expected="tensors by name", got=got, do=do))
    return _without_wrappers(weights)


def refuse_not_finite(weights: Mapping[str, Tensor], where: object) -> None:
    """Raise CheckpointError if a tensor holds NaN or an infinite number, as of a training that diverged."""
    odd = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if odd:
        got, do = f"others in {', '.join(odd[:4])}", "Take another checkpoint, or copy the file again."
        raise CheckpointError(message(where, expected="finite numbers", got=got, do=do))


def check_file(path: Path, where: object) -> None:
    """Raise CheckpointError unless the path is a file that may hold weights; for a folder the message says what it
    contains."""
    got, do = "no such file", "Check the path; null means no file."
    if path.is_file():
        found = layouts.foreign_file(_head(path, where))
        if found is None:
            return
        got, do = found[0], found[1].replace("FILE", shlex.quote(str(path)))
    elif path.is_dir():
        got, do = layouts.in_folder(path)
    raise CheckpointError(message(where, expected="a file of weights", got=got, do=do))


def _head(path: Path, where: object) -> bytes:
    try:
        return layouts.head_of(path)
    except OSError as error:
        got, do = f"one that cannot be read ({error.strerror})", "Correct its permissions."
        raise CheckpointError(message(where, expected="a file of weights", got=got, do=do)) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format: by its first bytes, or by its name if they show no format."""
    head = _head(path, path)
    if head.startswith(layouts.ZIP):
        return False
    return layouts.is_safetensors(head) or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Weights:
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header} bytes")
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # the parser raises its own classes for a damaged header
        raise CheckpointError(
            message(path, expected="a whole safetensors file", got=f"a damaged one ({error})", do="Copy it again.")
        ) from error


def _read_archive(path: Path) -> Weights:
    legacy = _head(path, path).startswith(layouts.LEGACY)
    try:
        with nullcontext(Legacy(path)) if legacy else Archive(path) as archive:
            read = {name: archive.tensor(value) for name, value in _state(archive.content).items()}
    except Exception as error:  # a damaged or hostile zip can make its reader fail in any way
        got = f"one that the safe reader refuses ({_reason(error)})"
        do = "No code of it was run. Copy it again from its author."
        do += f" {layouts.CONVERT}.".replace("FILE", shlex.quote(str(path))) if legacy else ""
        raise CheckpointError(
            message(path, expected="a torch archive of tensors and plain containers", got=got, do=do)
        ) from error
    return {name: value for name, value in read.items() if value is not None}


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _state(content: Any) -> Mapping[str, Any]:
    """Find the mapping of names to tensors in a file's content."""
    for _ in range(3):
        if isinstance(content, Call):
            return _flat(content)
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in INNER if isinstance(content.get(key), Mapping | Call)), None)
        if inner is None:
            break
        content = inner
    return {str(name): value for name, value in content.items()}


def _flat(root: Call) -> dict[str, Any]:
    """Collect the entries of a module and its children, with dotted names: of a scripted one, or of one that was saved
    whole. Modules that contain each other, as a hostile file may have, raise ValueError."""
    out: dict[str, Any] = {}
    todo, seen = [("", root)], 0
    while todo:
        prefix, module = todo.pop()
        for name, value in _entries(module.state):
            seen += 1
            if seen > MAX_MODULES or len(prefix) > 1000:
                raise ValueError("modules that hold each other")
            if isinstance(value, Call) and isinstance(value.state, Mapping):
                todo.append((f"{prefix}{name}.", value))
            else:
                out[f"{prefix}{name}"] = value
    return out


def _entries(state: Any) -> list[tuple[Any, Any]]:
    """List the named values of a module's state; those of PARTS stand in mappings of their own."""
    if not isinstance(state, Mapping):
        return []
    parts = [state[name] for name in PARTS if isinstance(state.get(name), Mapping)]
    return [item for part in (parts or [state]) for item in part.items()]


def _without_wrappers(weights: Weights) -> Weights:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            return _without_wrappers({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights
