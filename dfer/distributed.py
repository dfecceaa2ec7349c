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
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # documented, not in __all__

from dfer.errors import DferError, ProcessError, UsageError, message
from dfer.rendezvous import MEET_S, meet

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
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1:  # what LOCAL_RANK says is left over from another job
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
"""Longest wait for a control message: the first rank may be saving to, or loading from, a slow store."""

_control: dist.ProcessGroup | None = None
"""The group of control messages (votes, strings, barriers, checkpoints on their way to all ranks): gloo, also beside
NCCL, so that they neither occupy the GPU nor end with NCCL's timeout. None outside `process_group`: the default one."""


@contextmanager
def process_group(world: World, *, timeout_s: int = 600, meet_s: float = MEET_S) -> Iterator[None]:
    """Join the other ranks for the length of the block; uses the group that exists.

    A single process makes a group of its own in memory (DeepSpeed wants one) and opens no port for it. After an error
    the groups are left as they are: to destroy them, NCCL waits for the other ranks, which wait for this one, and the
    error would never be told. The process has to end then; its end is what the other ranks notice.

    timeout_s: of a collective operation. meet_s: how long to wait for the other ranks to come.

    Raises:
        UsageError: several processes that have no place to meet, or share a GPU.
        ProcessError: some did not come, or another one stopped within the block.
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
            _leave(ours)
        elif isinstance(error, RuntimeError) and _lost_another(error):
            raise _lost(world, error) from error
        raise
    _leave(ours)


def _join(world: World, timeout_s: int, meet_s: float) -> None:
    cuda = world.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(world.device)
    if world.size == 1:
        store: Store = HashStore()
    else:
        store = meet(world.rank, world.size, card=_card(world), within_s=meet_s)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=world.rank, world_size=world.size,
        timeout=timedelta(seconds=timeout_s), device_id=world.device if cuda else None,
    )  # fmt: skip


def _card(world: World) -> str:
    """What no other GPU of this host is called; empty without one."""
    if world.device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(world.device)
    return f"{properties.name.replace(' ', '-')}/{properties.uuid}"


def _leave(ours: bool) -> None:
    global _control
    if dist.is_initialized():
        if ours:
            dist.destroy_process_group()
        elif _control is not None:
            dist.destroy_process_group(_control)
    _control = None


_LOST = (
    "closed by peer", "reset by peer", "closed by remote peer", "remote process exit", "broken pipe", "pair closure",
    "connection was likely closed", "timed out waiting",
)  # fmt: skip


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; gloo and NCCL tell it in the text alone.

    NCCL's other errors (a wrong interface, a device's error) are not: they name their own cause.
    """
    text = str(error).lower()
    return any(words in text for words in _LOST)


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


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, one rank behind the other; a rank's gradient is the sum of what all ranks make of its rows."""

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
    """The rows [B_r ...] of all ranks as one tensor [sum of B_r ...], in rank order, with gradient. A collective call,
    also in the backward pass. Ranks may have unequal numbers of rows."""
    return cast(Tensor, _GatherRows.apply(rows)) if _several() else rows


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over the ranks, in place. A collective call."""
    if not _several() or not tensors:
        return
    flat = torch.cat([x.detach().reshape(-1).float() for x in tensors])
    dist.all_reduce(flat)
    for x, mean in zip(tensors, torch.split(flat / dist.get_world_size(), [x.numel() for x in tensors])):
        x.copy_(mean.view_as(x))


def gather_objects(obj: Any) -> list[Any]:
    """Every rank's small object in rank order, on every rank (numbers and strings, not tensors of size)."""
    if not _several():
        return [obj]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, obj, group=_control)
    return out


def from_first(obj: Any) -> Any:
    """The first rank's small object, on every rank."""
    if not _several():
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0, group=_control)
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
    out = {}
    for name, shape, dtype in parts:
        out[name] = own.pop(name) if world.is_first else torch.empty(shape, dtype=dtype)
        dist.broadcast(out[name], src=0, group=_control)
    return out


def highest(values: Sequence[int]) -> list[int]:
    """The largest of each number over all ranks."""
    if not _several():
        return list(values)
    box = torch.tensor(values)
    dist.all_reduce(box, op=dist.ReduceOp.MAX, group=_control)
    return box.tolist()


def barrier() -> None:
    """Wait until every rank is here."""
    if _several():
        dist.barrier(group=_control)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
