"""Rendezvous of the ranks of a job before they form a process group: with a timeout, and interruptible by signals.

torch waits in C++ for missing ranks, ten minutes by default; Python's signal handlers do not run meanwhile, and its
error does not say which rank is missing. Here every rank writes its name into the store and polls for the others.
"""

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # documented

from dfer.errors import ProcessError, UsageError, message

MEET_S = 60.0
"""Timeout of the rendezvous. It can be short: ranks are started together."""
_POLL_S = 0.05
_LEFT_OVER = (
    "Start all of them (torchrun, dfer-launch local). For a single process unset WORLD_SIZE, RANK and MASTER_ADDR, "
    "which may come from a pod or another job."
)


def meet(rank: int, size: int, *, card: str, within_s: float) -> Store:
    """Wait until all `size` ranks have joined; return the store through which they form a process group. COLLECTIVE.

    card: identifier of the GPU this rank uses, empty for a CPU.

    Raises:
        UsageError: there is no MASTER_ADDR or MASTER_PORT, or two ranks use one GPU.
        ProcessError: not all ranks joined within `within_s` seconds, or the first rank's port is in use.
    """
    host, port = _place(size)
    deadline = time.monotonic() + within_s
    store = _store(host, port, rank=rank, size=size, deadline=deadline, within_s=within_s)
    try:
        store.set(str(rank), f"{socket.gethostname()} {card}")
        while not store.check([str(other) for other in range(size)]):
            if time.monotonic() > deadline:
                raise _absent(store, f"{host}:{port}", size, within_s)
            time.sleep(_POLL_S)
        came = {other: store.get(str(other)).decode() for other in range(size)}
    except dist.DistError as error:  # the rank that hosts the store has ended
        got = f"no answer any more ({_first_line(error)})"
        raise ProcessError(
            message(f"rank {rank} of {size}", expected=f"the store at {host}:{port}", got=got, do=_LEFT_OVER)
        ) from error
    refuse_shared_cards(came)
    return PrefixStore("group", store)


def refuse_shared_cards(came: Mapping[int, str]) -> None:
    """Raises UsageError when two ranks use the same GPU, which NCCL refuses. came: `HOST CARD` by rank."""
    users: dict[str, list[int]] = {}
    for rank, name in came.items():
        users.setdefault(name, []).append(rank)
    for name, ranks in users.items():
        host, _, card = name.partition(" ")
        if card and len(ranks) > 1:
            got = f"{card} for the ranks {', '.join(map(str, ranks))}"
            do = "Start as many processes on a host as it has GPUs; CUDA_VISIBLE_DEVICES says which ones they see."
            raise UsageError(message(f"host {host}", expected="a GPU for each process", got=got, do=do))


def _place(size: int) -> tuple[str, int]:
    """Read MASTER_ADDR and MASTER_PORT."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            expected = f"the address at which the {size} processes of WORLD_SIZE meet"
            do = "Start all of them with torchrun or `dfer-launch local`, or unset WORLD_SIZE."
            raise UsageError(message(name, expected=expected, got="nothing", do=do))
    port = os.environ["MASTER_PORT"]
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(message("MASTER_PORT", expected="a port", got=repr(port), do="Correct it, or use torchrun."))
    return os.environ["MASTER_ADDR"], int(port)


def _store(host: str, port: int, *, rank: int, size: int, deadline: float, within_s: float) -> Store:
    """Connect to the store: torchrun's if it provides one, else the one that the first rank hosts."""
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds = rank == 0 and not torchrun
    where = f"rank {rank} of {size}"
    if not holds:
        _wait_for(host, port, where=where, deadline=deadline, within_s=within_s)
    try:
        store = TCPStore(
            "localhost" if holds else host,
            port,
            size,
            is_master=holds,
            timeout=timedelta(seconds=within_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        do = "Set MASTER_PORT to a free one, the same for all ranks."
        got = _first_line(error)
        raise ProcessError(message(where, expected=f"a store at {host}:{port}", got=got, do=do)) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store survives a restart of the ranks
    return PrefixStore(f"dfer/{attempt}", store)


def _wait_for(host: str, port: int, *, where: str, deadline: float, within_s: float) -> None:
    """Wait until the port accepts connections. Polls in Python, so that signal handlers run."""
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                expected = f"rank 0 at {host}:{port} within {within_s:.0f} s"
                got = str(error) or type(error).__name__
                raise ProcessError(message(where, expected=expected, got=got, do=_LEFT_OVER)) from error
        time.sleep(4 * _POLL_S)


def _absent(store: Store, where: str, size: int, within_s: float) -> ProcessError:
    came = [rank for rank in range(size) if store.check([str(rank)])]
    missing = [rank for rank in range(size) if rank not in came]
    named = ", ".join(f"{rank} ({store.get(str(rank)).decode().partition(' ')[0]})" for rank in came[:8])
    more = f" and {len(came) - 8} more" if len(came) > 8 else ""
    absent = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    expected = f"{size} processes (WORLD_SIZE) within {within_s:.0f} s"
    return ProcessError(
        message(where, expected=expected, got=f"only rank {named}{more}, not rank {absent}", do=_LEFT_OVER)
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
