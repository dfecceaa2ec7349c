"""Who am I among how many: the environment is read once into a `World`, which is passed on as a value."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dfer.errors import DferError, ProcessError, UsageError, message

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all. Built from the environment by `from_environment`, or by hand in tests."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise UsageError(
                message("RANK", expected=f"0..{self.size - 1}", got=str(self.rank), do="Start all ranks with torchrun.")
            )

    @property
    def is_first(self) -> bool:
        """True on the one process that writes files and prints."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device of this process: its own GPU where there is one, else the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")


def from_environment() -> World:
    """The world as torchrun, submitit or Ray describe it in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE."""
    size = _number("WORLD_SIZE", 1)
    return World(
        rank=_number("RANK", 0),
        size=size,
        local_rank=_number("LOCAL_RANK", 0),
        local_size=_number("LOCAL_WORLD_SIZE", size),
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(message(name, expected="a whole number", got=repr(text), do="Unset it or use torchrun."))
    return int(text)


@contextmanager
def process_group(world: World, *, timeout_s: int = 600) -> Iterator[None]:
    """Join the other ranks for the length of the block; uses the group that exists (Ray makes its own).

    A single process makes a group of its own in memory (DeepSpeed wants one) and opens no port for it.

    Raises:
        UsageError: several processes that have no place to meet. ProcessError: another one stopped within the block.
    """
    ours = not dist.is_initialized()
    if ours:
        _check_meeting_place(world)
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        store = dist.HashStore() if world.size == 1 else None  # type: ignore[attr-defined]
        dist.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.size, timeout=timedelta(seconds=timeout_s)
        )
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _lost_another(error):
            raise
        raise _lost(world, error) from error
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def _check_meeting_place(world: World) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world.size > 1 and missing:
        expected = f"the place where the {world.size} processes of WORLD_SIZE meet"
        do = "Start all of them with torchrun or `dfer-launch local`, or unset WORLD_SIZE."
        raise UsageError(message(missing[0], expected=expected, got="nothing", do=do))


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; gloo tells it in the text alone."""
    text = str(error)
    return isinstance(error, dist.DistBackendError) or "closed by peer" in text or "reset by peer" in text


def _lost(world: World, error: RuntimeError) -> ProcessError:
    got = next(iter(str(error).splitlines()), type(error).__name__).rpartition("] ")[2].partition(". ")[0].rstrip(".")
    do = "Another process stopped; its message says why."
    return ProcessError(message(f"process {world.rank} of {world.size}", expected="word of the others", got=got, do=do))


def sum_over_ranks(x: Tensor) -> Tensor:
    """The element-wise sum of `x` over all ranks, as a new tensor of the same shape and type."""
    total = x.clone()
    if _several():
        dist.all_reduce(total)
    return total


def gather_objects(obj: Any) -> list[Any]:
    """Every rank's small object in rank order, on every rank (numbers and strings, not tensors of size)."""
    if not _several():
        return [obj]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, obj)
    return out


def from_first(obj: Any) -> Any:
    """The first rank's small object, on every rank."""
    if not _several():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first(work: Callable[[], T], world: World) -> T:
    """Do `work` on the first rank alone; its result (small), or the same DferError, on every rank."""
    result: T | None = None
    problem: DferError | None = None
    if world.is_first:
        try:
            result = work()
        except DferError as error:
            problem = error
    told, result = from_first((problem, result))
    if told is not None:
        raise told from problem
    return cast(T, result)


def tensors_from_first(work: Callable[[], dict[str, Tensor]], world: World) -> dict[str, Tensor]:
    """The first rank's CPU tensors by name, on every rank: only one process reads them. Raises its DferError on all."""
    own: dict[str, Tensor] = {}

    def layout() -> list[tuple[str, torch.Size, torch.dtype]]:
        own.update(work())
        return [(name, value.shape, value.dtype) for name, value in own.items()]

    parts = on_first(layout, world)
    if not _several():
        return own
    via = world.device if dist.get_backend() == "nccl" else torch.device("cpu")
    out = {}
    for name, shape, dtype in parts:
        value = own.pop(name) if world.is_first else torch.empty(shape, dtype=dtype)
        sent = value.to(via)
        dist.broadcast(sent, src=0)
        out[name] = sent.cpu()
    return out


def highest(values: Sequence[int], world: World) -> list[int]:
    """The largest of each number over all ranks."""
    if not _several():
        return list(values)
    box = torch.tensor(values, device=world.device if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return box.tolist()


def barrier() -> None:
    """Wait until every rank is here."""
    if _several():
        dist.barrier()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
