"""Reading foreign weight files without running anything they name.

Understood: safetensors, `torch.save` archives and TorchScript archives (OpenAI's own CLIP downloads). The latter two
hold a pickle; it is read by torch's restricted reader, which knows tensors and plain containers. Every other name in
the file, such as a training script's own classes, is bound to a placeholder that does nothing.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dfer.errors import CheckpointError, message

Weights = dict[str, Tensor]
WRAPPERS = ("module.", "_orig_mod.")


def read_weights(path: Path) -> Weights:
    """Tensors by name, on the CPU, of a `.safetensors`, `.pt`, `.pth`, `.bin` file or TorchScript archive.

    A training checkpoint's `state_dict` is taken and its optimizer state left; the prefixes that DataParallel and
    torch.compile put before every name are cut off.

    Raises:
        CheckpointError: the file is missing or damaged, holds no weights, or names what must not be loaded.
    """
    if not path.is_file():
        raise CheckpointError(
            message(path, expected="a file of weights", got="no such file", do="Check the path; null stands for none.")
        )
    plain = _read_safetensors(path) if path.suffix == ".safetensors" else _read_archive(path)
    weights = {name: value for name, value in _state(plain).items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(
            message(path, expected="tensors by name, or a `state_dict` of them", got="none",
                    do="Give the file that holds the model.")
        )  # fmt: skip
    return _without_wrappers(weights)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # a damaged header fails in the parser's own classes
        raise CheckpointError(
            message(path, expected="a whole safetensors file", got=f"a damaged one ({error})", do="Copy it again.")
        ) from error


class _Inert:
    """Stands in for a class or function that a file names: takes anything, does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _read_archive(path: Path) -> Any:
    names: list[str] = []
    try:
        with _opened(path) as source:
            names = sorted(get_unsafe_globals_in_checkpoint(source))
            source.seek(0)
            with safe_globals([(_Inert, name) for name in names]):
                return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader fail in any way
        named = f", which names {', '.join(names)}" if names else ""
        raise CheckpointError(
            message(path, expected="a torch archive of tensors and plain containers",
                    got=f"one that the safe reader refuses ({_reason(error)}){named}",
                    do="Nothing of it was run. Copy it again from its author; save files older than torch 1.6 anew.")
        ) from error  # fmt: skip


def _reason(error: Exception) -> str:
    """The first cause: torch wraps it into advice to trust the file."""
    text = str(error.__context__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _opened(path: Path) -> BinaryIO:
    """The archive; of a TorchScript one a copy without its program, which leaves an ordinary archive of tensors."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/constants.pkl") for name in names):
            return path.open("rb")
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as out:
            for name in names:
                if name.partition("/")[2] in ("data.pkl", "version") or "/data/" in name:
                    out.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def _state(plain: Any) -> Mapping[str, Any]:
    """The mapping of names to tensors inside what a file held."""
    if isinstance(plain, _Inert):
        return dict(_flat(plain, ""))
    if not isinstance(plain, Mapping):
        return {}
    for key in ("state_dict", "model"):
        if isinstance(plain.get(key), Mapping):
            return _state(plain[key])
    return {str(name): value for name, value in plain.items()}


def _flat(module: _Inert, prefix: str) -> list[tuple[str, Tensor]]:
    """Tensors of a scripted module and its children, with dotted names."""
    out: list[tuple[str, Tensor]] = []
    for name, value in (module.state if isinstance(module.state, Mapping) else {}).items():
        if isinstance(value, _Inert):
            out += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            out.append((f"{prefix}{name}", value))
    return out


def _without_wrappers(weights: Weights) -> Weights:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            return _without_wrappers({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights
