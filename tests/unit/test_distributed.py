"""Rendezvous, process groups and control messages of ranks, without other ranks."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dfer import distributed
from dfer.distributed import World, from_environment, highest, process_group
from dfer.errors import DataError, ProcessError, UsageError
from dfer.rendezvous import meet, refuse_shared_cards


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A free port, at which the ranks are to meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    yield number


def test_a_rank_that_finds_no_first_one_says_where_it_looked(port: int) -> None:
    with pytest.raises(ProcessError) as caught:
        meet(1, 2, card="", within_s=0.2)
    assert caught.value.exit_code == 7
    assert f"rank 1 of 2: expected rank 0 at 127.0.0.1:{port} within 0 s, got " in str(caught.value)
    assert "Connection refused. Start all of them (torchrun, dfer-launch local)." in str(caught.value)


def test_a_port_that_another_program_holds_is_named(port: int) -> None:
    with socket.create_server(("", port)), pytest.raises(ProcessError) as caught:
        meet(0, 2, card="", within_s=2.0)
    assert f"rank 0 of 2: expected a store at 127.0.0.1:{port}, got " in str(caught.value)
    assert str(caught.value).endswith("Set MASTER_PORT to a free one, the same for all ranks.")


@pytest.mark.parametrize("text", ["x", "0", "65536", "٣"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, port: int, text: str) -> None:
    monkeypatch.setenv("MASTER_PORT", text)
    with pytest.raises(UsageError, match="MASTER_PORT: expected a port, got "):
        meet(0, 2, card="", within_s=0.2)


def test_two_ranks_on_one_gpu_are_told_in_a_sentence() -> None:
    refuse_shared_cards({0: "node1 GPU-a", 1: "node1 GPU-b", 2: "node2 GPU-a"})
    refuse_shared_cards({0: "node1 ", 1: "node1 "})  # CPUs
    with pytest.raises(UsageError) as caught:
        refuse_shared_cards({0: "node1 GPU-a", 1: "node2 GPU-a", 2: "node1 GPU-a"})
    assert str(caught.value) == (
        "host node1: expected a GPU for each process, got GPU-a for the ranks 0, 2. Start as many processes on a host "
        "as it has GPUs; CUDA_VISIBLE_DEVICES says which ones they see."
    )


NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1, "
HELP = "It can be also caused by unexpected exit of a remote peer, ... if there is connection closure by a peer."


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("[/gloo/unbound_buffer.cc:1] Timed out waiting 600000ms for recv operation"), True),
        (dist.DistBackendError(f"{NCCL}remote process exited or there was a network error, NCCL version 2"), True),
        (dist.DistBackendError(f"{NCCL}unhandled system error. {HELP} Last error: Duplicate GPU detected"), False),
        (dist.DistBackendError(f"{NCCL}unhandled system error. {HELP} Bootstrap : no socket interface found"), False),
        (dist.DistBackendError(f"{NCCL}unhandled cuda error"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_which_errors_are_a_lost_partner(error: RuntimeError, lost: bool) -> None:
    assert distributed._lost_another(error) is lost


class Group:
    """Stands in for torch.distributed on a host with NCCL and two ranks; notes what is called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.there = False
        patch.setattr(World, "device", property(lambda world: torch.device("cuda", world.local_rank)))
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(distributed, "meet", lambda *_, **__: dist.HashStore())  # type: ignore[attr-defined]
        patch.setattr(distributed, "_card", lambda world: "")
        patch.setattr(dist, "is_initialized", lambda: self.there)
        patch.setattr(dist, "get_world_size", lambda: 2)
        patch.setattr(dist, "init_process_group", self.join)
        patch.setattr(dist, "new_group", lambda *, backend, timeout: self.note("new_group", backend) or "control")
        patch.setattr(dist, "all_reduce", lambda x, *, op, group: self.note("all_reduce", (x.device.type, group)))
        patch.setattr(dist, "destroy_process_group", lambda: self.note("destroy", None))

    def note(self, name: str, value: Any) -> None:
        self.calls.append((name, value))

    def join(self, backend: str, *, device_id: torch.device, **_: Any) -> None:
        self.there = True
        self.note("join", (backend, device_id))


def test_control_messages_go_over_gloo_beside_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(monkeypatch)
    with process_group(World(size=2, rank=1, local_rank=1, local_size=2)):
        assert highest([3]) == [3]
    assert group.calls == [
        ("join", ("nccl", torch.device("cuda", 1))),
        ("new_group", "gloo"),
        ("all_reduce", ("cpu", "control")),
        ("destroy", None),
    ]


def test_after_an_error_groups_are_not_destroyed_which_would_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(monkeypatch)
    with pytest.raises(DataError), process_group(World(size=2)):
        raise DataError("x: broken")
    assert [name for name, _ in group.calls] == ["join", "new_group"]
    monkeypatch.setattr(distributed, "_control", None)


def test_a_local_rank_without_other_ranks_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert from_environment() == World()
