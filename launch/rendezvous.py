"""Rendezvous of a job's processes, with a test of the network, before torch is imported. A host that cannot be reached,
or an interface that does not exist, ends the job within a minute with a message that names it; gloo or NCCL would hang.

The first rank listens at a port that all ranks know. The others connect and send their addresses. Then one process of
every host tries to reach every other host, and the first rank sends the result to all.
"""

import array
import fcntl
import json
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from dfer.config import ConfigProblem, from_plain
from dfer.errors import DferError, ProcessError, UsageError, message

PORTS = (20_000, 32_000)
REACH_S = 5.0
"""Timeout of one connection between two hosts."""
_SIOCGIFADDR = 0x8915
_MAX_LINE = 1 << 20
_REMEDY = "Set `interface:` in the cluster file to the network between the hosts, and let its ports through firewalls."


@dataclass(frozen=True, kw_only=True)
class Member:
    """Rank info of one process for the others. listens: port at which other hosts test whether they can reach it.
    problem: why it cannot take part."""

    rank: int
    host: str
    address: str
    listens: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """The rendezvous of one process. token: identifies this start of this job; processes with another token are
    ignored.

    host, port: at which the first rank listens. interface: network interface, None = the one that routes to `host`.
    within_s: timeout, from the start of the first process to that of the slowest.
    """

    rank: int
    size: int
    host: str
    port: int
    token: str = ""
    interface: str | None = None
    within_s: float = 30.0

    def meet(self) -> dict[str, str]:
        """Meet all ranks; return the variables that torch needs: MASTER_ADDR, MASTER_PORT, interface of gloo and NCCL.
        COLLECTIVE.

        Raises:
            UsageError: the cluster file names an interface that a host does not have.
            ProcessError: on all ranks that can be reached, when some do not join or hosts cannot reach each other.
        """
        if self.size == 1:
            return {}
        deadline = time.monotonic() + self.within_s
        with socket.create_server(("", 0), backlog=128) as listener:
            me = self._introduce(listener.getsockname()[1])
            with ExitStack() as stack:
                if self.rank == 0:
                    members, port = _host(self, me, deadline, stack)
                else:
                    members, port = _join(self, me, deadline, stack)
        first, own = members[0], members[self.rank]
        found = {"MASTER_ADDR": first.address, "MASTER_PORT": str(port)}
        device = self.interface or _interface_of(own.address)
        if device:
            found["GLOO_SOCKET_IFNAME"] = device
        if self.interface:
            found["NCCL_SOCKET_IFNAME"] = self.interface
        return found

    def _introduce(self, listens: int) -> Member:
        host, problem, address = socket.gethostname(), "", ""
        if self.interface:
            address = interfaces().get(self.interface, "")
            there = ", ".join(f"{name} {ip}" for name, ip in interfaces().items())
            if not address:
                do = "Correct `interface:` in the cluster file."
                problem = message(host, expected=f"network interface {self.interface}", got=there, do=do)
        return Member(rank=self.rank, host=host, address=address, listens=listens, problem=problem)


class _Line:
    """Sends and receives JSON lines over a socket, with a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._read = connection, b""

    def send(self, content: Mapping[str, Any]) -> None:
        self.connection.settimeout(REACH_S)
        self.connection.sendall(json.dumps(content).encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """Receive the next line; None if the connection is closed, the deadline passes, or it is no JSON object."""
        try:
            while b"\n" not in self._read:
                self.connection.settimeout(max(0.01, deadline - time.monotonic()))
                data = self.connection.recv(1 << 16)
                if not data or len(self._read) > _MAX_LINE:
                    return None
                self._read += data
            line, _, self._read = self._read.partition(b"\n")
            content = json.loads(line)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None


# --- the first rank


def _host(rendezvous: Rendezvous, me: Member, deadline: float, stack: ExitStack) -> tuple[list[Member], int]:
    try:
        listener = stack.enter_context(socket.create_server(("", rendezvous.port), backlog=1024))
    except OSError as error:
        where, do = f"{me.host}, port {rendezvous.port}", "Another program holds it: submit again to get another port."
        raise ProcessError(message(where, expected="to listen there for the others", got=str(error), do=do)) from error
    lines, members = _gather(rendezvous, me, listener, deadline, stack)
    problem = next((m.problem for m in members.values() if m.problem), "")
    members = _resolved(members, lines)
    problem = problem or (_loopback(members) if rendezvous.interface else "")
    usage = bool(problem)  # a mistake in the cluster file, for which a retry cannot help
    problem = problem or _absent(rendezvous, members) or _loopback(members)
    _send_all(
        lines, {"problem": problem, "usage": usage, "members": [asdict(members[rank]) for rank in sorted(members)]}
    )
    if problem:
        raise _error(problem, usage)
    everybody = [members[rank] for rank in range(rendezvous.size)]
    problems = _try_others(everybody, me.rank)
    until = time.monotonic() + 3 * REACH_S
    for rank in sorted(lines):
        answer = lines[rank].receive(until)
        problems += answer["problems"] if answer else [f"no answer any more from rank {rank} on {members[rank].host}"]
    port = free_port()
    _send_all(lines, {"problem": _unreachable(problems), "port": port})
    if problems:
        raise ProcessError(_unreachable(problems))
    return everybody, port


def _gather(
    rendezvous: Rendezvous, me: Member, listener: socket.socket, deadline: float, stack: ExitStack
) -> tuple[dict[int, _Line], dict[int, Member]]:
    """Accept all members that connect before the deadline; a newer connection of the same rank replaces the older."""
    lines: dict[int, _Line] = {}
    members = {me.rank: me}
    while len(members) < rendezvous.size and (left := deadline - time.monotonic()) > 0:
        if not select.select([listener], [], [], left)[0]:
            break
        connection = stack.enter_context(listener.accept()[0])
        line = _Line(connection)
        member = _member(line.receive(min(deadline, time.monotonic() + REACH_S)), rendezvous)
        if member is not None:
            lines[member.rank], members[member.rank] = line, member
    return lines, members


def _member(hello: dict[str, Any] | None, rendezvous: Rendezvous) -> Member | None:
    """Parse a member's first message; None for processes of another job or malformed messages."""
    if hello is None or hello.pop("token", None) != rendezvous.token:
        return None
    try:
        member = from_plain(Member, hello)
    except ConfigProblem:
        return None
    return member if 0 < member.rank < rendezvous.size else None


def _resolved(members: Mapping[int, Member], lines: Mapping[int, _Line]) -> dict[int, Member]:
    """Complete the members' addresses: the first rank and others on its host get the address at which it was reached.

    A host may resolve its own name to a loopback address, which other hosts cannot use.
    """
    reached = [line.connection.getsockname()[0] for line in lines.values()]
    outside = [address for address in reached if not _is_loopback(address)]
    own = members[0].address or next(iter(outside or reached), "")
    out = {}
    for rank, member in members.items():
        near = member.host == members[0].host
        address = own if near and (not member.address or _is_loopback(member.address)) else member.address
        out[rank] = Member(**{**asdict(member), "address": address})
    return out


def _absent(rendezvous: Rendezvous, members: Mapping[int, Member]) -> str:
    missing = [rank for rank in range(rendezvous.size) if rank not in members]
    if not missing:
        return ""
    where = f"{socket.gethostname()}, port {rendezvous.port}"
    got = f"no answer from rank {', '.join(map(str, missing))}"
    do = f"Look at their logs; if they started, {socket.gethostname()} cannot be reached from their hosts. {_REMEDY}"
    return message(where, expected=f"{rendezvous.size} processes within {rendezvous.within_s:.0f} s", got=got, do=do)


def _loopback(members: Mapping[int, Member]) -> str:
    if len({member.host for member in members.values()}) == 1:
        return ""
    for member in members.values():
        if _is_loopback(member.address):
            got = f"{member.address}, which only {member.host} itself can reach"
            return message(member.host, expected="an address for the other hosts", got=got, do=_REMEDY)
    return ""


def _send_all(lines: Mapping[int, _Line], content: Mapping[str, Any]) -> None:
    for line in lines.values():
        try:
            line.send(content)
        except OSError:
            continue  # its missing answer is noticed later


# --- the others


def _join(rendezvous: Rendezvous, me: Member, deadline: float, stack: ExitStack) -> tuple[list[Member], int]:
    line = _Line(stack.enter_context(_connect(rendezvous, me, deadline)))
    address = me.address or line.connection.getsockname()[0]
    line.send({**asdict(me), "address": address, "token": rendezvous.token})
    first = _receive(rendezvous, line, deadline + 3 * REACH_S)
    members = [Member(**plain) for plain in first["members"]]
    line.send({"problems": _try_others(members, me.rank)})
    last = _receive(rendezvous, line, time.monotonic() + 6 * REACH_S)
    return members, int(last["port"])


def _connect(rendezvous: Rendezvous, me: Member, deadline: float) -> socket.socket:
    """Connect to the first rank, with retries: it may start later than this process."""
    got = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection((rendezvous.host, rendezvous.port), timeout=min(REACH_S, left))
        except OSError as error:
            got = str(error) or type(error).__name__
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    where = f"rank {rendezvous.rank} on {me.host}"
    do = f"Look whether rank 0 started; if so, that host cannot be reached from {me.host}. {_REMEDY}"
    expected = f"rank 0 at {rendezvous.host}, port {rendezvous.port}, within {rendezvous.within_s:.0f} s"
    raise ProcessError(message(where, expected=expected, got=got, do=do))


def _receive(rendezvous: Rendezvous, line: _Line, deadline: float) -> dict[str, Any]:
    """Receive a message of the first rank; raises the problem that it reports."""
    answer = line.receive(deadline)
    if answer is None:
        where, do = f"{rendezvous.host}, port {rendezvous.port}", "Look at the log of rank 0."
        raise ProcessError(message(where, expected="an answer of rank 0", got="none", do=do))
    if answer["problem"]:
        raise _error(str(answer["problem"]), bool(answer.get("usage")))
    return answer


# --- both


def _error(problem: str, usage: bool) -> DferError:
    return UsageError(problem) if usage else ProcessError(problem)


def _try_others(members: Sequence[Member], rank: int) -> list[str]:
    """Try to reach every other host; returns the failures. Only the first process of each host tries."""
    firsts: dict[str, Member] = {}
    for member in members:
        firsts.setdefault(member.host, member)
    me = members[rank]
    if firsts[me.host].rank != rank:
        return []
    others = [member for member in firsts.values() if member.host != me.host]
    with ThreadPoolExecutor(max_workers=max(1, min(64, len(others)))) as pool:
        return [problem for problem in pool.map(_reach(me), others) if problem]


def _reach(me: Member) -> Callable[[Member], str]:
    def reach(other: Member) -> str:
        try:
            with socket.create_connection((other.address, other.listens), timeout=REACH_S):
                return ""
        except OSError as error:
            got = str(error) or type(error).__name__
            device = _interface_of(other.address if other.host == me.host else me.address)
            return f"{me.host} ({device or 'unknown interface'}) to {other.host} at {other.address}: {got}"

    return reach


def _unreachable(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    got = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
    return message("the hosts of this job", expected="all to reach each other", got=got, do=_REMEDY)


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of every network interface of this host that has one, by name."""
    out = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request, True)
            except OSError:
                continue
            out[name] = socket.inet_ntoa(bytes(request[20:24]))
    return out


def _interface_of(address: str) -> str:
    return next((name for name, ip in interfaces().items() if ip == address), "")


def _is_loopback(address: str) -> bool:
    return address.startswith("127.")


def free_port() -> int:
    """Find a port at which no process listens. Its range is below that of outgoing connections, so it stays free."""
    for _ in range(100):
        port = random.SystemRandom().randrange(*PORTS)
        try:
            with socket.create_server(("", port)):
                return port
        except OSError:
            continue
    raise ProcessError(message("this host", expected="a free port", got="none of 100", do="End their programs."))


def port_of(number: int) -> int:
    """Return the port for a job of this number, the same on all hosts, in the range PORTS."""
    return PORTS[0] + number % (PORTS[1] - PORTS[0])


def export(found: Mapping[str, str]) -> None:
    """Set the variables found by the rendezvous in the environment, where torch reads them."""
    os.environ.update(found)
