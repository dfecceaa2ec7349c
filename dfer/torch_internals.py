"""torch's private names, all in this module: what they stand for has no public one. `pyproject.toml` bounds torch's
version; `tests/unit/test_private_names.py` holds both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def multiply(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors in place: on a GPU in a few kernels, instead of one a tensor."""
    torch._foreach_mul_(list(tensors), factor)


def shared_bytes(count: int) -> torch.UntypedStorage:
    """Uninitialised shared memory. The public way fills memory of the process first and copies it.

    Raises:
        RuntimeError, OSError: there is no room, or no file descriptor.
    """
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(count)  # type: ignore[no-untyped-call]
    return storage


def end_workers(loader: "DataLoader[Any]") -> None:
    """End the worker processes of a loader now; else torch does so when Python frees its iterator."""
    if iterator := getattr(loader, "_iterator", None):
        iterator._shutdown_workers()
