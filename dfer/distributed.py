"""Ranks, process groups and collective calls. The environment is read once into a `World`, which is passed as a value.

All functions from `sum_over_ranks` on are collective: every rank must call them, in the same order.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # documented, not in __all__

from dfer.errors import DferError, ProcessError, UsageError, message
from dfer.rendezvous import MEET_S, meet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """Rank info of this process. Built from the environment by `from_environment`, or directly in tests."""

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
        """The device of this process: its own GPU if the machine has GPUs, else the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")


def from_environment() -> World:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun, submitit or Ray set them."""
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1:  # LOCAL_RANK may be left over from another job
        return World(rank=rank)
    return World(
        rank=rank, size=size, local_rank=_number("LOCAL_RANK", 0), local_size=_number("LOCAL_WORLD_SIZE", size)
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(message(name, expected="a whole number", got=repr(text), do="Unset it or use torchrun."))
    return int(text)


CONTROL_S = 3600
"""Timeout of control messages: the first rank may be saving to, or loading from, a slow store."""

_control: dist.ProcessGroup | None = None
"""The process group of control messages (votes, strings, barriers, broadcasts of checkpoints): gloo, also beside NCCL,
so that they neither occupy the GPU nor fail by NCCL's timeout. None outside `process_group`: the default group."""


@contextmanager
def process_group(world: World, *, timeout_s: int = 600, meet_s: float = MEET_S) -> Iterator[None]:
    """Join the process group for the length of the block; an existing group is used. COLLECTIVE.

    A single process forms a group in memory (DeepSpeed requires one) and opens no port for it. After an error the
    groups are not destroyed: NCCL would wait for the other ranks, which wait for this one, and the error would never
    be printed. The process must then exit; the other ranks notice that.

    timeout_s: of a collective operation. meet_s: timeout of the rendezvous.

    Raises:
        UsageError: several processes without a rendezvous address, or two on one GPU.
        ProcessError: not all ranks joined, or another one stopped within the block.
    """
    global _control
    ours = not dist.is_initialized()
    if ours:
        _join(world, timeout_s, meet_s)
    if world.size > 1:
        _control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(seconds=CONTROL_S)))
    try:
        yield
    except BaseException as error:
        if world.size == 1:
            _destroy_groups(ours)
        elif isinstance(error, RuntimeError) and _lost_another(error):
            raise _lost(world, error) from error
        raise
    _destroy_groups(ours)


def _join(world: World, timeout_s: int, meet_s: float) -> None:
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(world.device)
    if world.size == 1:
        store: Store = HashStore()
    else:
        store = meet(world.rank, world.size, card=_card(world), within_s=meet_s)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=timeout_s),
        device_id=world.device if cuda else None,
    )


def _card(world: World) -> str:
    """Return an identifier of this rank's GPU, unique on its host; empty without a GPU."""
    if world.device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(world.device)
    return f"{properties.name.replace(' ', '-')}/{properties.uuid}"


def _destroy_groups(ours: bool) -> None:
    global _control
    if dist.is_initialized():
        if ours:
            dist.destroy_process_group()
        elif _control is not None:
            dist.destroy_process_group(_control)
    _control = None


_LOST = (
    "closed by peer",
    "reset by peer",
    "closed by remote peer",
    "remote process exit",
    "broken pipe",
    "pair closure",
    "connection was likely closed",
    "timed out waiting",
)


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; only the text of gloo's and NCCL's errors shows it.

    False for NCCL's other errors (a wrong interface, a device error): they name their own cause.
    """
    text = str(error).lower()
    return any(words in text for words in _LOST)


def _lost(world: World, error: RuntimeError) -> ProcessError:
    got = next(iter(str(error).splitlines()), type(error).__name__).rpartition("] ")[2].partition(". ")[0].rstrip(".")
    do = "Another process stopped; its message says why."
    return ProcessError(
        message(f"process {world.rank} of {world.size}", expected="an answer from the other processes", got=got, do=do)
    )


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the element-wise sum of `x` over all ranks, a new tensor of the same shape and type. COLLECTIVE."""
    total = x.clone()
    if _several():
        dist.all_reduce(total)
    return total


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all ranks; the gradient of a rank's rows is summed over all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = [int(count) for count in gather_objects(len(rows))]
        rank, most = dist.get_rank(), max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.first, ctx.count = sum(counts[:rank]), counts[rank]
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = sum_over_ranks(gradients[0].contiguous())
        return total[ctx.first : ctx.first + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [B_r ...] of all ranks to [sum of B_r ...], in rank order, with gradient. COLLECTIVE, also
    in the backward pass. Ranks may have different numbers of rows."""
    return cast(Tensor, _GatherRows.apply(rows)) if _several() else rows


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over the ranks, in place. COLLECTIVE."""
    if not _several() or not tensors:
        return
    flat = torch.cat([x.detach().reshape(-1).float() for x in tensors])
    dist.all_reduce(flat)
    for x, mean in zip(tensors, torch.split(flat / dist.get_world_size(), [x.numel() for x in tensors])):
        x.copy_(mean.view_as(x))


def gather_objects(obj: Any) -> list[Any]:
    """Return every rank's small object in rank order (numbers and strings, no large tensors). COLLECTIVE."""
    if not _several():
        return [obj]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, obj, group=_control)
    return out


def broadcast_object(obj: Any) -> Any:
    """Return the first rank's small object on every rank. COLLECTIVE."""
    if not _several():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def on_first(work: Callable[[], T], world: World) -> T:
    """Run `work` on the first rank only; every rank returns its (small) result or raises its DferError. COLLECTIVE."""
    result: T | None = None
    problem: DferError | None = None
    if world.is_first:
        try:
            result = work()
        except DferError as error:
            problem = error
    raised, result = broadcast_object((problem, result))
    if raised is not None:
        raise raised from problem
    return cast(T, result)


def broadcast_tensors(work: Callable[[], dict[str, Tensor]], world: World) -> dict[str, Tensor]:
    """Run `work` on the first rank only and return its CPU tensors by name on every rank, so that one process reads
    them. Raises its DferError on all ranks. COLLECTIVE."""
    own: dict[str, Tensor] = {}

    def layout() -> list[tuple[str, torch.Size, torch.dtype]]:
        own.update(work())
        return [(name, value.shape, value.dtype) for name, value in own.items()]

    parts = on_first(layout, world)
    if not _several():
        return own
    out = {}
    for name, shape, dtype in parts:
        out[name] = own.pop(name) if world.is_first else torch.empty(shape, dtype=dtype)
        dist.broadcast(out[name], src=0, group=_control)
    return out


def highest(values: Sequence[int]) -> list[int]:
    """Return the maximum of each number over all ranks. COLLECTIVE."""
    if not _several():
        return list(values)
    box = torch.tensor(values)
    dist.all_reduce(box, op=dist.ReduceOp.MAX, group=_control)
    return box.tolist()


def barrier() -> None:
    """Wait until every rank has called it. COLLECTIVE."""
    if _several():
        dist.barrier(group=_control)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
