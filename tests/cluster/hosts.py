"""Virtual hosts on one machine: what SLURM, Ray and torch take for separate computers.

A host has namespaces of its own for network, processes, mounts, IPC and host name, so it has an address, a process
table, a /dev/shm, a host name and an /etc/hosts of its own. The file system is shared, as on a cluster with NFS, except
/var/tmp, the host's local disk, which outlives a power loss. Hosts are joined by one bridge; the tests themselves stand
at the bridge's own address. No packet leaves the bridge: there is no route out of it.

A network takes the first free of sixteen ranges 10.77.K.0/24, held by a lock, so test runs do not meet. Everything dies
with the process that made it; what a killed run leaves behind (bridge, folder) is removed by the next one.
"""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.commands import WITH_US, BedError, run, wait_until
from tests.processes import children

# The host waits for its network before it says it is ready. Its first process then does nothing but reap orphans.
_INIT = """
read -r _
hostname "$1"
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$2/disk" /var/tmp
echo ready
exec </dev/null >/dev/null 2>&1
while :; do sleep infinity & wait; done
"""
_FIREWALL = "bed"
DISK_CACHE = "/var/tmp/dfer-cache"
"""For DFER_CACHE: on each host's local disk, as on a cluster."""


def ip(*words: str) -> None:
    run(["ip", *words], timeout=10)


class Network:
    """One bridge and its hosts. Use it as a context manager."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self._lock, self.number = _lock_range()
        self.bridge = f"dfer{self.number}"
        self._remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"dfer-bed-{self.number}-"))
        # Daemons of the hosts keep their logs here; tests show them when something fails.
        self.logs = self.folder / "log"
        self.logs.mkdir()
        # A fixed hardware address: otherwise it changes with the ports and neighbours keep a stale one for seconds.
        ip("link", "add", self.bridge, "address", self.hardware_address(254), "type", "bridge")
        ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")

    @property
    def gateway(self) -> str:
        """The address under which hosts reach the tests' own namespace, and what is served there."""
        return self.address(254)

    def address(self, number: int) -> str:
        return f"10.77.{self.number}.{number}"

    def hardware_address(self, number: int) -> str:
        return f"02:77:00:00:{self.number:02x}:{number:02x}"

    def add(self, name: str) -> "Host":
        """A new host, switched on."""
        if name in self.hosts:
            raise BedError(f"there is a host {name} already")
        host = self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        self.write_hosts_files()
        host.power_on()
        return host

    def write_hosts_files(self) -> None:
        """Names of all hosts in each host's /etc/hosts. Written in place: the file is mounted, not its folder."""
        names = [f"{host.address} {host.name}" for host in self.hosts.values()]
        for host in self.hosts.values():
            own = [f"{host.own_address} {host.name}"] if host.own_address != host.address else []
            lines = ["127.0.0.1 localhost", *own, *names, f"{self.gateway} {os.uname().nodename}"]
            (host.folder / "hosts").write_text("\n".join(lines) + "\n")

    def log(self, lines: int = 15) -> str:
        """The end of every daemon's log."""
        logs = {path.name: path.read_text(errors="replace").splitlines()[-lines:] for path in self.logs.iterdir()}
        return "\n".join("\n".join([f"--- {name}", *logs[name]]) for name in sorted(logs) if logs[name])

    def close(self) -> None:
        for host in self.hosts.values():
            host.power_off()
        self._remove_leftovers()
        os.close(self._lock)

    def _remove_leftovers(self) -> None:
        """What an earlier network of this range left, if its process was killed. Ours alone: we hold the range."""
        for link in sorted(_links()):
            if link == self.bridge or link.startswith(f"{self.bridge}-"):
                run(["ip", "link", "del", link], check=False, timeout=10)
        for folder in Path(tempfile.gettempdir()).glob(f"dfer-bed-{self.number}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Host:
    """One virtual host. `Network.add` makes it."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.network, self.name, self.number = network, name, number
        self.address = self.own_address = network.address(number)
        self.port = f"{network.bridge}-{number}"
        self.folder = network.folder / name
        (self.folder / "disk").mkdir(parents=True)
        # Names come from /etc/hosts alone: without a name server gloo waits 10 to 20 s for reverse look-ups.
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        self._unshare: subprocess.Popen[str] | None = None
        self._init = 0

    @property
    def alive(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is None

    def power_on(self) -> None:
        """Start the host with its network; what ran on it before does not come back by itself."""
        if self.alive:
            return
        options = ["--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--mount-proc", "--kill-child=KILL"]
        first = ["bash", "-euc", _INIT, "init", self.name, str(self.folder)]
        with (self.network.logs / f"{self.name}.init").open("a") as log:
            self._unshare = process = subprocess.Popen(
                [*WITH_US, "unshare", *options, *first],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdin and process.stdout
        wait_until(lambda: children(process.pid), 10, f"the first process of {self.name}", every=0.005)
        self._init = children(process.pid)[0]
        self._plug_in()
        process.stdin.write("go\n")
        process.stdin.close()
        ready, _, _ = select.select([process.stdout], [], [], 10)
        if not ready or process.stdout.readline() != "ready\n":
            self.power_off()
            raise BedError(f"{self.name} did not come up")
        process.stdout.close()

    def power_off(self) -> None:
        """Power loss: the network falls silent first, so nobody hears a connection closing, then all processes die."""
        if self._unshare is None:
            return
        if self.alive:
            self.black_hole()
            os.kill(self._init, signal.SIGKILL)
        self._unshare.wait(timeout=10)
        for pipe in (self._unshare.stdin, self._unshare.stdout):
            if pipe:
                pipe.close()
        self._unshare = None
        run(["ip", "link", "del", self.port], check=False, timeout=10)

    def black_hole(self) -> None:
        """The switch drops every packet from and to the host; both sides see a link that is up."""
        run(["bridge", "link", "set", "dev", self.port, "state", "disabled"], timeout=10)

    def close_ports(self, first: int, last: int) -> None:
        """A firewall on the host: whoever knocks at these TCP ports from outside gets no answer."""
        chain = f"type filter hook input priority 0\niifname != lo tcp dport {first}-{last} drop\n"
        self._inside("nft", f"table inet {_FIREWALL} {{\nchain input {{\n{chain}}}\n}}")

    def reconnect(self) -> None:
        """End of `black_hole` and `close_ports`."""
        run(["bridge", "link", "set", "dev", self.port, "state", "forwarding"], timeout=10)
        self._inside("nft", f"add table inet {_FIREWALL}; delete table inet {_FIREWALL}")

    def add_dead_end(self, interface: str = "eth1") -> str:
        """A second network interface that is up and has an address but leads nowhere; returns the address."""
        address = f"10.78.{self.network.number}.{self.number}"
        self._inside("ip", "link", "add", interface, "type", "veth", "peer", "name", f"{interface}-end")
        self._inside("ip", "addr", "add", f"{address}/24", "dev", interface)
        self._inside("ip", "link", "set", interface, "up")
        self._inside("ip", "link", "set", f"{interface}-end", "up")
        return address

    def call_itself(self, address: str | None = None) -> None:
        """What the host finds for its own name, as with Debian's `127.0.1.1 NAME`; `None`: its real address again."""
        self.own_address = address or self.address
        self.network.write_hosts_files()

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as if logged in there."""
        return run([*self.enter(cwd), *argv], timeout=timeout, check=check, env=env)

    def start(self, argv: Iterable[str], log: str, env: Mapping[str, str] | None = None) -> None:
        """Start a daemon on the host that its power loss ends; its output goes to `log` in the network's logs."""
        script = 'log=$1; shift; exec "$@" >>"$log" 2>&1'
        detached = ["setsid", "--fork", "sh", "-c", script, "sh", str(self.network.logs / log), *argv]
        self.run(detached, timeout=10, env=env)

    def kill(self, pattern: str, *, whole_line: bool = False, signal: str = "KILL") -> int:
        """A signal to the host's processes of that exact name, or whose command line matches; how many there were."""
        match = ["-f"] if whole_line else ["-x"]
        killed = self.run(["pkill", f"-{signal}", "--echo", *match, pattern], check=False)
        return len(killed.stdout.splitlines())

    def runs(self, name: str) -> bool:
        """Whether a process of that exact name lives on the host."""
        return not self.run(["pgrep", "-x", name], check=False).returncode

    def enter(self, cwd: str | os.PathLike[str] = "/") -> list[str]:
        """The words that put a command onto the host."""
        if not self.alive:
            raise BedError(f"{self.name} is switched off")
        namespaces = ["--net", "--uts", "--mount", "--pid", "--ipc"]
        return ["nsenter", "--target", str(self._init), *namespaces, "--", "env", "-C", os.fspath(cwd)]

    def _plug_in(self) -> None:
        run(["ip", "link", "del", self.port], check=False, timeout=10)
        # The same hardware address every time: neighbours would keep the old one for seconds after a restart.
        hardware = self.network.hardware_address(self.number)
        peer = ["peer", "name", "eth0", "address", hardware, "netns", str(self._init)]
        ip("link", "add", self.port, "type", "veth", *peer)
        ip("link", "set", self.port, "master", self.network.bridge, "up")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "eth0", "up")

    def _inside(self, *argv: str) -> None:
        run(["nsenter", "--target", str(self._init), "--net", "--", *argv], timeout=10)


def _links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def _lock_range() -> tuple[int, int]:
    """The first of sixteen address ranges that no other run holds and that the machine does not use otherwise."""
    taken = run(["ip", "-o", "-4", "addr"], timeout=10).stdout
    for number in range(16):
        lock = os.open(f"/run/dfer-bed-{number}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        others = [line for line in taken.splitlines() if f" 10.77.{number}." in line and f" dfer{number} " not in line]
        if not others:
            return lock, number
        os.close(lock)
    raise BedError("none of the ranges 10.77.0.0/24 to 10.77.15.0/24 is free: other test runs, or a real network?")


class Bed(ABC):
    """Servers on hosts of a network. Used as a context manager: all that was begun is ended, also when it does not come
    up."""

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End everything that `_up` began; it may have come any distance."""

    @abstractmethod
    def _up(self) -> None: ...
