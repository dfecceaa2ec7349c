"""Where the processes of a job meet, found and tried before torch is imported: a host that cannot be reached, or an
interface that is none, ends the job within a minute with its name, instead of a hang in gloo or NCCL.

The first rank listens at a port all know; the others tell it where they are; then one process of every host tries to
reach every other host, and all hear the verdict.
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
"""For one connection between two hosts."""
_SIOCGIFADDR = 0x8915
_MAX_LINE = 1 << 20
_REMEDY = "Set `interface:` in the cluster file to the network between the hosts, and let its ports through firewalls."


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process as the others see it. listens: port where it can be tried. problem: why it cannot take part."""

    rank: int
    host: str
    address: str
    listens: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Who is to meet where. token: of this start of this job, so that processes of another one are not taken for ours.

    host, port: where the first rank waits. interface: network interface, none = the one that leads there.
    within_s: how long the slowest process may be behind the first.
    """

    rank: int
    size: int
    host: str
    port: int
    token: str = ""
    interface: str | None = None
    within_s: float = 30.0

    def hold(self) -> dict[str, str]:
        """Meet, and return the variables that torch needs: MASTER_ADDR, MASTER_PORT, the interface of gloo and NCCL.

        Raises:
            UsageError: the cluster file names an interface that a host does not have.
            ProcessError: on all ranks that could be told, when some do not come or cannot reach each other.
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
                    members, port = _visit(self, me, deadline, stack)
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
    """JSON lines over a socket, none later than a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._read = connection, b""

    def send(self, content: Mapping[str, Any]) -> None:
        self.connection.settimeout(REACH_S)
        self.connection.sendall(json.dumps(content).encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next line; None when the other side is gone, silent too long, or speaks otherwise."""
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


def _host(meeting: Meeting, me: Member, deadline: float, stack: ExitStack) -> tuple[list[Member], int]:
    try:
        door = stack.enter_context(socket.create_server(("", meeting.port), backlog=1024))
    except OSError as error:
        where, do = f"{me.host}, port {meeting.port}", "Another program holds it; submit again for another port."
        raise ProcessError(message(where, expected="to wait there for the others", got=str(error), do=do)) from error
    lines, members = _gather(meeting, me, door, deadline, stack)
    problem = next((m.problem for m in members.values() if m.problem), "")
    members = _resolved(members, lines)
    problem = problem or (_loopback(members) if meeting.interface else "")
    ours = bool(problem)  # a mistake in the cluster file, which trying again does not mend
    problem = problem or _absent(meeting, members) or _loopback(members)
    _tell(lines, {"problem": problem, "lasting": ours, "members": [asdict(members[rank]) for rank in sorted(members)]})
    if problem:
        raise _error(problem, ours)
    everybody = [members[rank] for rank in range(meeting.size)]
    problems = _try_others(everybody, me.rank)
    until = time.monotonic() + 3 * REACH_S
    for rank in sorted(lines):
        answer = lines[rank].receive(until)
        problems += answer["problems"] if answer else [f"no word from rank {rank} on {members[rank].host} any more"]
    port = free_port()
    _tell(lines, {"problem": _verdict(problems), "port": port})
    if problems:
        raise ProcessError(_verdict(problems))
    return everybody, port


def _gather(
    meeting: Meeting, me: Member, door: socket.socket, deadline: float, stack: ExitStack
) -> tuple[dict[int, _Line], dict[int, Member]]:
    """Everybody who comes before the deadline, the newest of each rank."""
    lines: dict[int, _Line] = {}
    members = {me.rank: me}
    while len(members) < meeting.size and (left := deadline - time.monotonic()) > 0:
        if not select.select([door], [], [], left)[0]:
            break
        connection = stack.enter_context(door.accept()[0])
        line = _Line(connection)
        member = _member(line.receive(min(deadline, time.monotonic() + REACH_S)), meeting)
        if member is not None:
            lines[member.rank], members[member.rank] = line, member
    return lines, members


def _member(hello: dict[str, Any] | None, meeting: Meeting) -> Member | None:
    """Who introduces itself; none for strangers, who may say anything."""
    if hello is None or hello.pop("token", None) != meeting.token:
        return None
    try:
        member = from_plain(Member, hello)
    except ConfigProblem:
        return None
    return member if 0 < member.rank < meeting.size else None


def _resolved(members: Mapping[int, Member], lines: Mapping[int, _Line]) -> dict[int, Member]:
    """Members with addresses: the first rank's is the one at which others reached it, also for those of its host.

    A host may know its own name as a loopback address, which says nothing to the others.
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


def _absent(meeting: Meeting, members: Mapping[int, Member]) -> str:
    missing = [rank for rank in range(meeting.size) if rank not in members]
    if not missing:
        return ""
    where = f"{socket.gethostname()}, port {meeting.port}"
    got = f"no word from rank {', '.join(map(str, missing))}"
    do = f"Look at their logs; if they started, {socket.gethostname()} cannot be reached from their hosts. {_REMEDY}"
    return message(where, expected=f"{meeting.size} processes within {meeting.within_s:.0f} s", got=got, do=do)


def _loopback(members: Mapping[int, Member]) -> str:
    if len({member.host for member in members.values()}) == 1:
        return ""
    for member in members.values():
        if _is_loopback(member.address):
            got = f"{member.address}, which only {member.host} itself can reach"
            return message(member.host, expected="an address for the other hosts", got=got, do=_REMEDY)
    return ""


def _tell(lines: Mapping[int, _Line], content: Mapping[str, Any]) -> None:
    for line in lines.values():
        try:
            line.send(content)
        except OSError:
            continue  # its silence will be noticed


# --- the others


def _visit(meeting: Meeting, me: Member, deadline: float, stack: ExitStack) -> tuple[list[Member], int]:
    line = _Line(stack.enter_context(_knock(meeting, me, deadline)))
    address = me.address or line.connection.getsockname()[0]
    line.send({**asdict(me), "address": address, "token": meeting.token})
    first = _heard(meeting, line, deadline + 3 * REACH_S)
    members = [Member(**plain) for plain in first["members"]]
    line.send({"problems": _try_others(members, me.rank)})
    last = _heard(meeting, line, time.monotonic() + 6 * REACH_S)
    return members, int(last["port"])


def _knock(meeting: Meeting, me: Member, deadline: float) -> socket.socket:
    """A connection to the first rank, which may start later than this process."""
    got = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection((meeting.host, meeting.port), timeout=min(REACH_S, left))
        except OSError as error:
            got = str(error) or type(error).__name__
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    where = f"rank {meeting.rank} on {me.host}"
    do = f"Look whether rank 0 started; if so, that host cannot be reached from {me.host}. {_REMEDY}"
    expected = f"rank 0 at {meeting.host}, port {meeting.port}, within {meeting.within_s:.0f} s"
    raise ProcessError(message(where, expected=expected, got=got, do=do))


def _heard(meeting: Meeting, line: _Line, deadline: float) -> dict[str, Any]:
    answer = line.receive(deadline)
    if answer is None:
        where, do = f"{meeting.host}, port {meeting.port}", "Look at the log of rank 0."
        raise ProcessError(message(where, expected="word of rank 0", got="none", do=do))
    if answer["problem"]:
        raise _error(str(answer["problem"]), bool(answer.get("lasting")))
    return answer


# --- both


def _error(problem: str, lasting: bool) -> DferError:
    return UsageError(problem) if lasting else ProcessError(problem)


def _try_others(members: Sequence[Member], rank: int) -> list[str]:
    """What stands in the way from this host to the others; only the first process of a host tries."""
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


def _verdict(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    got = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
    return message("the hosts of this job", expected="all to reach each other", got=got, do=_REMEDY)


def interfaces() -> dict[str, str]:
    """IPv4 address by name of every network interface of this host that has one."""
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
    """A port that nobody listens at, below those the system gives to outgoing connections, so that it stays free."""
    for _ in range(100):
        port = random.SystemRandom().randrange(*PORTS)
        try:
            with socket.create_server(("", port)):
                return port
        except OSError:
            continue
    raise ProcessError(message("this host", expected="a free port", got="none of 100", do="End what takes them."))


def port_of(number: int) -> int:
    """A port for a job of this number, the same on all hosts, in the same range."""
    return PORTS[0] + number % (PORTS[1] - PORTS[0])


def export(found: Mapping[str, str]) -> None:
    """Let torch see what the meeting found."""
    os.environ.update(found)
