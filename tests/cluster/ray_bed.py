"""A real Ray cluster over virtual hosts: a head and workers, one raylet each, jobs through the head's dashboard.

Authentication is Ray's token mode with a token of this bed's own, for servers and clients alike.
"""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.commands import run, wait_until
from tests.cluster.hosts import DISK_CACHE, Bed, Host, Network

PORT, DASHBOARD = 6379, 8265
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
# Sockets and logs on the host's own disk: the hosts would take each other's for theirs in a shared /tmp/ray.
_TEMPORARY = "/var/tmp/ray"


class RayBed(Bed):
    """Ray on `workers` + 1 new hosts of a network: `head`, `worker1`, `worker2`, ... Use it as a context manager.

    environment: what `ray start` is given on every host besides, such as a store's keys.
    """

    def __init__(
        self, network: Network, workers: int = 2, *, cpus: int = 2, environment: Mapping[str, str] | None = None
    ) -> None:
        self.network, self.cpus, self.environment = network, cpus, environment or {}
        self.hosts: dict[str, Host] = {}
        self._first = workers
        self._lost: set[str] = set()
        self.token = network.folder / "ray_token"

    def close(self) -> None:
        for host in self.hosts.values():
            host.power_off()

    def _up(self) -> None:
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.hosts["head"] = self.network.add("head")
        self._start_raylet("head")
        for _ in range(self._first):
            self._add()
        self.wait_alive(self.hosts)
        wait_until(self._answers, 60, "the job server", every=0.2)

    # --- addresses and commands

    @property
    def address(self) -> str:
        """For `ray.init` on one of the hosts."""
        return f"{self.hosts['head'].address}:{PORT}"

    @property
    def jobs_address(self) -> str:
        """The job server, for `ray job submit` and `JobSubmissionClient` from outside."""
        return f"http://{self.hosts['head'].address}:{DASHBOARD}"

    def env(self) -> dict[str, str]:
        """The environment in which Ray's clients, and what calls them, reach this cluster from outside."""
        return self._environment() | {"RAY_ADDRESS": self.jobs_address}

    def _environment(self) -> dict[str, str]:
        """What servers and clients must agree on; deaths are noticed in seconds rather than half a minute."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return inherited | {
            **self.environment,
            # As whoever starts Ray from an activated environment has it: jobs call `dfer-launch`.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DFER_CACHE": DISK_CACHE,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            # Other users of the machine must not make Ray kill tasks.
            "RAY_memory_monitor_refresh_ms": "0",
        }

    def run_on(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, as `Host.run`; `ray.init()` there finds the cluster."""
        return self.hosts[host].run(argv, **{"env": self._environment() | {"RAY_ADDRESS": self.address}, **options})

    def ray(self, *words: str, timeout: float = 60) -> str:
        """Standard output of a `ray` command given from outside."""
        return run([RAY, *words], timeout=timeout, env=self.env()).stdout

    def get(self, path: str) -> Any:
        """An answer of the dashboard, from JSON."""
        request = urllib.request.Request(f"{self.jobs_address}{path}")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def states(self) -> dict[str, str]:
        """ALIVE or DEAD by host, as Ray sees it; of a host that came back the newest."""
        rows = self._raylets()
        alive = {name for _, name, state in rows if state == "ALIVE"}
        return {name: "ALIVE" if name in alive else "DEAD" for _, name, _ in rows}

    def wait_alive(self, names: Collection[str], timeout: float = 60) -> None:
        """Wait until Ray counts exactly these hosts as alive, and none of them for what it was before a power loss."""

        def reached() -> bool:
            try:
                alive = {number: name for number, name, state in self._raylets() if state == "ALIVE"}
            except OSError:
                return False
            return sorted(alive.values()) == sorted(names) and not self._lost & set(alive)

        wait_until(reached, timeout, f"exactly {', '.join(names)} to be alive", every=0.2)

    def _raylets(self) -> list[tuple[str, str, str]]:
        """(id, host, state) of all raylets there ever were."""
        names = {host.address: name for name, host in self.hosts.items()}
        rows = self.get("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        return [(row["node_id"], names[row["node_ip"]], row["state"]) for row in rows]

    def _is_free(self) -> bool:
        rows = self.get("/api/v0/placement_groups?limit=1000")["data"]["result"]["result"]
        return all(row["state"] == "REMOVED" for row in rows)

    def _answers(self) -> bool:
        try:
            return isinstance(self.get("/api/jobs/"), list)
        except OSError:
            return False

    # --- faults and mending

    def add_host(self, cpus: int | None = None) -> str:
        """One more worker, alive; its name."""
        alive = [name for name, state in self.states().items() if state == "ALIVE"]
        name = self._add(cpus)
        self.wait_alive([*alive, name])
        return name

    def _add(self, cpus: int | None = None) -> str:
        name = f"worker{len(self.hosts)}"
        self.hosts[name] = self.network.add(name)
        self._start_raylet(name, cpus)
        return name

    def power_off(self, name: str) -> None:
        """Power loss of a host; Ray notices after about 9 s."""
        if name != "head":
            self._lost |= {number for number, host, _ in self._raylets() if host == name}
        self.hosts[name].power_off()

    def power_on(self, name: str) -> None:
        """Start a host and its raylet again. With the head everything that Ray knew is gone: see `reset`."""
        self.hosts[name].power_on()
        self._start_raylet(name)

    def black_hole(self, name: str) -> None:
        self.hosts[name].black_hole()

    def kill_worker(self, name: str, pattern: str = "^ray::", *, signal: str = "KILL") -> int:
        """A signal to the processes of a host that run tasks and actors; how many there were."""
        return self.hosts[name].kill(pattern, whole_line=True, signal=signal)

    def reset(self) -> None:
        """As new for the next test: no submitted jobs, the first hosts on and alive, later ones gone."""
        first = list(self.hosts)[: self._first + 1]
        for host in self.hosts.values():
            if host.alive:
                host.reconnect()
        states = self.states() if self.hosts["head"].alive else {}
        for name, host in self.hosts.items():
            if name not in first or states.get(name) != "ALIVE":
                # A raylet that was declared dead while unreachable ends itself when it hears of it.
                host.power_off()
            if name in first and not host.alive:
                self.power_on(name)
        wait_until(self._answers, 60, "the job server", every=0.2)
        for job in self.get("/api/jobs/"):
            if job["type"] == "SUBMISSION" and job["status"] in ("PENDING", "RUNNING"):
                self.ray("job", "stop", job["submission_id"])
        self.wait_alive(first)
        # An elastic fold would start with what is left.
        wait_until(self._is_free, 60, "what ended jobs held", every=0.2)

    def _start_raylet(self, name: str, cpus: int | None = None) -> None:
        host = self.hosts[name]
        words = [RAY, "start", f"--node-ip-address={host.address}", f"--num-cpus={cpus or self.cpus}", "--num-gpus=0"]
        words += ["--object-store-memory=100000000", f"--temp-dir={_TEMPORARY}", "--disable-usage-stats"]
        if name == "head":
            words += ["--head", f"--port={PORT}", f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD}"]
            host.run(words, timeout=90, env=self._environment())
        else:
            # Left to itself, so that several start at a time; `wait_alive` is where a failure shows.
            host.start([*words, f"--address={self.address}"], f"{name}.ray", env=self._environment())
