"""Processes find each other, or say within their time which host, port and interface stand in the way."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dfer.errors import DferError, ProcessError, UsageError
from launch import rendezvous as module
from launch.rendezvous import Rendezvous, free_port, interfaces, port_of

PORT_RANGE = range(20_000, 32_000)
here = threading.local()


def meetings(size: int, **changes: object) -> list[Rendezvous]:
    base = Rendezvous(rank=0, size=size, host="127.0.0.1", port=free_port(), token="1.0", within_s=10)
    return [replace(base, rank=rank, **changes) for rank in range(size)]  # type: ignore[arg-type]


def all_hold(parts: list[Rendezvous], hosts: list[str] | None = None) -> list[dict[str, str] | DferError]:
    """What each rank gets or raises; hosts: what each takes its host's name to be."""

    def meet(part: Rendezvous) -> dict[str, str] | DferError:
        here.name = hosts[part.rank] if hosts else "host"
        try:
            return part.meet()
        except DferError as error:
            return error

    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        return list(pool.map(meet, parts))


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread is a host of its own name."""
    monkeypatch.setattr(module.socket, "gethostname", lambda: getattr(here, "name", "host"))


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for a network between hosts."""
    monkeypatch.setattr(module, "_is_loopback", lambda _: False)


def test_a_single_process_meets_nobody() -> None:
    assert meetings(1)[0].meet() == {}


def test_all_get_the_same_place_on_one_host() -> None:
    found = all_hold(meetings(4))
    assert all(answer == found[0] for answer in found)
    assert isinstance(found[0], dict) and found[0]["MASTER_ADDR"] == "127.0.0.1"
    assert int(found[0]["MASTER_PORT"]) in PORT_RANGE
    assert found[0]["GLOO_SOCKET_IFNAME"] == "lo" and "NCCL_SOCKET_IFNAME" not in found[0]


@pytest.mark.usefixtures("apart")
def test_several_hosts_reach_each_other_by_the_named_interface() -> None:
    found = all_hold(meetings(4, interface="lo"), ["a", "a", "b", "c"])
    assert all(answer == found[0] for answer in found)
    assert isinstance(found[0], dict) and found[0]["NCCL_SOCKET_IFNAME"] == "lo"


def test_the_first_rank_may_come_late() -> None:
    first, second = meetings(2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.meet)
        time.sleep(0.5)
        assert first.meet() == waiting.result()


def test_an_interface_that_is_none_is_a_mistake_told_to_all() -> None:
    parts = meetings(3)
    found = all_hold([*parts[:2], replace(parts[2], interface="eth77")])
    assert [type(answer) for answer in found] == [UsageError] * 3
    assert len({str(answer) for answer in found}) == 1
    assert "expected network interface eth77, got lo 127.0.0.1" in str(found[0])
    assert "Correct `interface:`" in str(found[0])


def test_an_address_of_one_host_alone_is_refused() -> None:
    assert [type(answer) for answer in all_hold(meetings(2), ["a", "b"])] == [ProcessError] * 2
    found = all_hold(meetings(2, interface="lo"), ["a", "b"])
    assert [type(answer) for answer in found] == [UsageError] * 2
    assert "a: expected an address for the other hosts, got 127.0.0.1, which only a itself can reach" in str(found[0])


def test_who_does_not_come_is_named_to_those_who_did() -> None:
    parts = meetings(3, within_s=1)
    start = time.monotonic()
    found = all_hold(parts[:2])
    assert time.monotonic() - start < 30
    for answer in found:
        assert isinstance(answer, ProcessError)
        assert f"port {parts[0].port}: expected 3 processes within 1 s, got no answer from rank 2" in str(answer)


def test_a_first_rank_that_does_not_come_is_named() -> None:
    part = meetings(2, within_s=1)[1]
    start = time.monotonic()
    with pytest.raises(ProcessError, match=rf"rank 1 on .*: expected rank 0 at 127.0.0.1, port {part.port}, within 1"):
        part.meet()
    assert time.monotonic() - start < 30


@pytest.mark.usefixtures("apart")
def test_two_hosts_that_do_not_reach_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._reach

    def reach(me: module.Member) -> Callable[[module.Member], str]:
        return real(replace(me)) if me.host != "b" else lambda other: f"b (lo) to {other.host} at x: timed out"

    monkeypatch.setattr(module, "_reach", reach)
    found = all_hold(meetings(3), ["a", "b", "c"])
    assert len({str(answer) for answer in found}) == 1 and isinstance(found[0], ProcessError)
    assert "got b (lo) to a at x: timed out; b (lo) to c at x: timed out. Set `interface:`" in str(found[0])


@pytest.mark.usefixtures("apart")
def test_a_port_nobody_listens_at_is_told() -> None:
    me = module.Member(rank=0, host="a", address="127.0.0.1", listens=1)
    other = module.Member(rank=1, host="b", address="127.0.0.1", listens=free_port())
    assert module._reach(me)(other).startswith("a (lo) to b at 127.0.0.1: ")


def test_processes_of_another_start_are_not_taken_for_ours() -> None:
    parts = meetings(2, within_s=1)
    found = all_hold([parts[0], replace(parts[1], token="1.1")])
    assert all(isinstance(answer, ProcessError) for answer in found)
    assert "no answer from rank 1" in str(found[0])


def test_a_stranger_at_the_door_disturbs_nobody() -> None:
    first, second = meetings(2)
    with ThreadPoolExecutor() as pool:
        hosting = pool.submit(first.meet)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                stranger = socket.create_connection(("127.0.0.1", first.port))
                break
            except OSError:
                time.sleep(0.02)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.close()
        for words in ({"token": "1.0"}, {"token": "1.0", "rank": 7, "host": "x", "address": "", "listens": 1}):
            with socket.create_connection(("127.0.0.1", first.port)) as liar:
                liar.sendall(json.dumps(words).encode() + b"\n")
        assert second.meet() == hosting.result()


def test_a_port_that_is_taken_is_told() -> None:
    part = meetings(2)[0]
    with socket.create_server(("", part.port)), pytest.raises(ProcessError, match="Another program holds it"):
        part.meet()


def test_names_that_a_host_knows_as_loopback_become_the_first_hosts_address() -> None:
    near = module.Member(rank=1, host="a", address="127.0.1.1", listens=1)
    far = module.Member(rank=2, host="b", address="10.0.0.2", listens=1)
    first = module.Member(rank=0, host="a", address="10.0.0.1", listens=1)
    resolved = module._resolved({0: first, 1: near, 2: far}, {})
    assert [resolved[rank].address for rank in range(3)] == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert module._loopback(resolved) == ""


def test_ports_follow_from_the_jobs_number() -> None:
    assert port_of(7) == port_of(7) == 20_007
    assert all(port_of(number) in PORT_RANGE for number in (0, 11_999, 12_000, 10**9))


def test_interfaces_have_addresses() -> None:
    assert interfaces()["lo"] == "127.0.0.1"
