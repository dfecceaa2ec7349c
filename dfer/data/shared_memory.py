"""Batches in shared memory: the bytes that workers need, and the bytes that are free.

A worker passes a batch on in /dev/shm, which has 64 MB by default in a container. torch would move the batch there in a
thread of the worker's queue, where an error is only printed and the batch is lost. So the reader allocates it itself.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dfer.errors import StorageError, message
from dfer.torch_internals import shared_bytes

SHM = Path("/dev/shm")
PREFETCH = 2
"""Batches that each worker prepares ahead."""
_DO = (
    "Enlarge /dev/shm (docker run --shm-size={gib}g; in a pod a memory emptyDir), or set data.workers=0, "
    "or lower {keys}."
)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Shared memory of a rank's workers: `batches` batches at a time, of `batch_bytes` each. keys: configuration keys
    that determine their size, for messages."""

    workers: int
    batches: int
    batch_bytes: int
    keys: str

    @property
    def total(self) -> int:
        return self.batches * self.batch_bytes


def lack(need: Need, *, ranks: int) -> str:
    """Return a message if this host's shared memory is too small for `ranks` ranks' workers; else an empty text."""
    free, total = free_bytes(), need.total * ranks
    if free is None or total <= free:
        return ""
    each = f" in each of {ranks} ranks" if ranks > 1 else ""
    batches = f"{need.batches} of {mib(need.batch_bytes)} from {need.workers} workers{each}"
    expected = f"room for {mib(total)} of batches ({batches})"
    return message(_where(), expected=expected, got=f"{mib(free)} free", do=_do(total, need.keys))


def free_bytes() -> int | None:
    """Return the free bytes of /dev/shm; None if it does not exist or has no limit."""
    with suppress(OSError):
        found = os.statvfs(SHM)
        return found.f_bavail * found.f_frsize if found.f_blocks else None
    return None


def empty(shape: Sequence[int], *, keys: str) -> Tensor:
    """Allocate an uninitialised uint8 tensor; in a worker, in shared memory. Raises StorageError if that is full."""
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=torch.uint8)
    num_bytes = torch.Size(shape).numel()
    with _enough(num_bytes, keys):
        storage = shared_bytes(num_bytes)
    made: Tensor = torch.empty(0, dtype=torch.uint8).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]
    return made


def shared(tensor: Tensor, *, keys: str) -> Tensor:
    """Return the tensor; in a worker, move it into shared memory. Raises StorageError if that is full."""
    if get_worker_info() is None:
        return tensor
    with _enough(tensor.nbytes, keys):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


@contextmanager
def _enough(num_bytes: int, keys: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        free = free_bytes()
        got = " ".join(str(error).split())[:200] if free is None else f"{mib(free)} free"
        expected = f"room for a batch of {mib(num_bytes)} that a data worker has read"
        raise StorageError(message(_where(), expected=expected, got=got, do=_do(num_bytes, keys))) from error


def _where() -> str:
    return f"host {socket.gethostname()}, {SHM}"


def _do(num_bytes: int, keys: str) -> str:
    return _DO.format(gib=-(-5 * num_bytes // 4 // 2**30), keys=keys)


def mib(num_bytes: int) -> str:
    """Format a number of bytes as MiB."""
    return f"{num_bytes / 2**20:.1f} MiB"
