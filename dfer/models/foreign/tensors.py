"""Tensors as recorded calls of a pickle describe them, built within the bytes that a file has for them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_DIMENSIONS = 16
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
SUBCLASSED = "torch._tensor._rebuild_from_type_v2"


class NotAnArchive(ValueError):
    """The reason why a file is refused."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the file names."""

    text: str


@dataclass(eq=False)
class Call:
    """A recorded call of `name`. state: the state that the pickle would set on its result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Storage:
    """Location of a tensor's numbers in the archive. kind: torch's storage class; count: of numbers."""

    kind: str
    key: str
    count: int


class Tensors:
    """Builds tensors. read: gives the bytes of a storage, by its key and size; raises NotAnArchive if there are others
    or fewer."""

    def __init__(self, read: Callable[[str, int], bytearray]) -> None:
        self._read = read
        self._flat: dict[tuple[str, str], Tensor] = {}

    def tensor(self, value: Any) -> Tensor | None:
        """Build the tensor that a recorded call describes, on the CPU; None for other values. Raises NotAnArchive."""
        for _ in range(3):  # parameters and subclasses are wrapped around a tensor
            if not isinstance(value, Call):
                return None
            if value.name in REBUILT:
                return self._rebuilt(value.arguments)
            value = _unwrapped(value)
        return None

    def _rebuilt(self, arguments: tuple[Any, ...]) -> Tensor:
        if len(arguments) < 4:
            raise NotAnArchive("a tensor without size or strides")
        storage, offset, size, strides = arguments[:4]
        if (
            not isinstance(storage, Storage)
            or not are_counts(size)
            or not are_counts(strides)
            or not are_counts((offset,))
        ):
            raise NotAnArchive("a tensor of something else than a storage and whole numbers")
        if len(size) != len(strides) or len(size) > MAX_DIMENSIONS:
            raise NotAnArchive(f"a tensor of {len(size)} dimensions with {len(strides)} strides")
        count = math.prod(size)
        end = offset + 1 + sum((n - 1) * stride for n, stride in zip(size, strides)) if count else 0
        if max(end, count) > storage.count:  # strides of 0 make a large tensor out of one number
            raise NotAnArchive(f"a tensor of {_short(size)} numbers in a storage of {storage.count}")
        return self._numbers(storage).as_strided(size, strides, offset if count else 0)

    def _numbers(self, storage: Storage) -> Tensor:
        """Read all numbers of a storage, which several tensors may share."""
        found = self._flat.get((storage.kind, storage.key))
        if found is None:
            dtype = STORAGES.get(storage.kind)
            if dtype is None:
                raise NotAnArchive(f"numbers of the kind {storage.kind[:80]!r}")
            size = storage.count * dtype.itemsize
            data = self._read(storage.key, size)
            if len(data) != size:
                raise NotAnArchive(f"{len(data)} bytes for {storage.count} numbers of {dtype}")
            found = torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
            self._flat[storage.kind, storage.key] = found
        if len(found) != storage.count:
            raise NotAnArchive(f"a storage of {len(found)} and of {storage.count} numbers")
        return found


def _unwrapped(call: Call) -> Any:
    if call.name in WRAPPED and call.arguments:
        return call.arguments[0]
    if call.name == SUBCLASSED and len(call.arguments) >= 3:
        function, _, arguments = call.arguments[:3]
        if isinstance(function, Name) and isinstance(arguments, tuple):
            return Call(function.text, arguments)
    return None


def are_counts(value: Any) -> bool:
    """Whether a value is a tuple of whole numbers from 0 to below 2^48, more than any file holds."""
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _short(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size)) or "1"
