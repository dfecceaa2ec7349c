"""A real SLURM over virtual hosts: slurmctld, slurmdbd on a MariaDB of its own, munge, one slurmd a host.

The controller and its database run on a host of their own, `controller`; munge is reached over a socket in the shared
file system. Partitions: `batch` (default), `low` whose jobs a job in `high` requeues, `closed` that starts nothing,
`small` that starts nothing above one host and two minutes. Account `research`; any other is refused. What the bed's
methods call hosts is what SLURM calls nodes.
"""

import os
import re
import secrets
import stat
import string
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.commands import BedError, run, start, stop, wait_until
from tests.cluster.hosts import DISK_CACHE, Bed, Host, Network

ACCOUNT = "research"
PARTITIONS = ("batch", "low", "high", "closed", "small")
ROOT = Path(__file__).parents[2]
_USABLE = {"idle", "mixed", "allocated", "completing"}
_TEMPLATE = Path(__file__).with_name("slurm.conf")
_MARIADB = """
CREATE DATABASE slurm_acct_db;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
"""


class SlurmBed(Bed):
    """A SLURM cluster on `count` new hosts of a network: `node1`, `node2`, ... Use it as a context manager."""

    def __init__(
        self, network: Network, count: int = 4, *, cpus: int = 4, gpus: int = 2, host_timeout: int = 6
    ) -> None:
        self.network, self.cpus, self.gpus, self.host_timeout = network, cpus, gpus, host_timeout
        self.folder = network.folder / "slurm"
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self.hosts: dict[str, Host] = {}
        self._munged: subprocess.Popen[bytes] | None = None

    # --- up and down

    def close(self) -> None:
        for host in [*self.hosts.values(), *([self.controller] if hasattr(self, "controller") else [])]:
            host.power_off()
        if self._munged:
            stop(self._munged)

    def _up(self) -> None:
        self.folder.mkdir()
        self.controller = self.network.add("controller")
        self.hosts = {name: self.network.add(name) for name in self.names}
        self._start_munge()
        self._configure()
        self._start_database()
        self._start_accounting()
        self.start_slurmctld()
        for name in self.names:
            self.start_slurmd(name)
        self.wait_usable()

    def _start_munge(self) -> None:
        folder = self.network.folder / "munge"
        folder.mkdir(mode=0o755)
        # munged refuses sockets and keys in folders that others may write to or cannot pass through.
        self.network.folder.chmod(0o755)
        self.munge = folder / "socket"
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        options = ["--foreground", "--force", "--num-threads=2", f"--key-file={key}", f"--socket={self.munge}"]
        options += [f"--pid-file={folder / 'pid'}", f"--seed-file={folder / 'seed'}"]
        self._munged = start(["munged", *options], self.network.logs / "munged")
        wait_until(self.munge.is_socket, 10, "munge's socket")

    def _configure(self) -> None:
        words = {
            "folder": self.folder,
            "logs": self.network.logs,
            "munge": self.munge,
            "controller": self.controller.name,
            "controller_address": self.controller.address,
            "cpus": self.cpus,
            "gpus": self.gpus,
            "memory": 4000,
            "host_timeout": self.host_timeout,
            "names": ",".join(self.names),
            "nodes": "\n".join(f"NodeName={host.name} NodeAddr={host.address}" for host in self.hosts.values()),
        }
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(string.Template(_TEMPLATE.read_text()).substitute(words))
        # Twins of /dev/null pass for GPUs: only their number counts, it ends up in CUDA_VISIBLE_DEVICES.
        for number in range(self.gpus):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")

    def _start_database(self) -> None:
        data, socket = self.folder / "mariadb", self.folder / "mariadb.socket"
        self._password = secrets.token_hex(16)
        method = "--auth-root-authentication-method=normal"
        run(["mariadb-install-db", "--no-defaults", f"--datadir={data}", method, "--skip-test-db", "--user=root"])
        options = ["--user=root", f"--datadir={data}", f"--socket={socket}", "--bind-address=127.0.0.1"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF", "--skip-log-bin"]
        self.controller.start(["mariadbd", "--no-defaults", *options], "mariadbd")
        client = ["mariadb", "--no-defaults", f"--socket={socket}", "--user=root"]
        wait_until(lambda: not run([*client, "-e", "SELECT 1"], check=False).returncode, 20, "MariaDB")
        run(client, input=_MARIADB.format(password=self._password))

    def _start_accounting(self) -> None:
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)
        lines = ["AuthType=auth/munge", f"AuthInfo=socket={self.munge}", f"DbdHost={self.controller.name}"]
        lines += ["SlurmUser=root", "StorageType=accounting_storage/mysql", "StorageHost=127.0.0.1"]
        lines += ["StorageUser=slurm", f"StoragePass={self._password}", "StorageLoc=slurm_acct_db"]
        lines += [f"LogFile={self.network.logs / 'slurmdbd'}", f"PidFile={self.folder / 'slurmdbd.pid'}"]
        conf.write_text("\n".join(lines) + "\n")
        self.controller.run(["slurmdbd"], env=self.env())
        manage = ["sacctmgr", "--immediate", "add"]
        wait_until(lambda: not self._try([*manage, "cluster", "bed"]).returncode, 20, "slurmdbd")
        self.command([*manage, "account", ACCOUNT, "cluster=bed"])
        self.command([*manage, "user", "root", f"account={ACCOUNT}", "cluster=bed"])
        self.command(["sacctmgr", "--immediate", "modify", "user", "root", "set", f"defaultaccount={ACCOUNT}"])

    # --- commands

    def env(self) -> dict[str, str]:
        """The environment in which SLURM's commands, and what calls them, reach this cluster and jobs our packages."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": str(ROOT), "DFER_CACHE": DISK_CACHE}
        return inherited | own

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this very process submit to the cluster, by `env`."""
        for key in ("SLURM_CONF", "PYTHONPATH"):
            monkeypatch.setenv(key, self.env()[key])

    def command(self, argv: Sequence[str], *, timeout: float = 30.0) -> str:
        """Standard output of a command given from outside the hosts, as on a login node."""
        return run(argv, timeout=timeout, env=self.env()).stdout

    def _try(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return run(argv, timeout=15, check=False, env=self.env())

    def run_on(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, as `Host.run`, with SLURM's environment."""
        return self.hosts[host].run(argv, **{"env": self.env(), **options})

    def squeue(self, *words: str) -> str:
        return self.command(["squeue", "--noheader", *words])

    def scontrol(self, *words: str) -> str:
        return self.command(["scontrol", *words])

    def sacct(self, job: str | int, *fields: str) -> list[list[str]]:
        """The fields of every row the accounting has for a job; it lags behind the controller by up to a second."""
        names = f"--format={','.join(fields or ('JobID', 'State', 'NodeList'))}"
        lines = self.command(["sacct", "--noheader", "--parsable2", "--duplicates", names, f"--jobs={job}"])
        return [line.split("|") for line in lines.splitlines()]

    # --- jobs

    def submit(self, script: str, *options: str) -> str:
        """Submit a shell script with sbatch; its number. Output goes nowhere unless an option says where."""
        words = ["sbatch", "--parsable", "--output=/dev/null", f"--chdir={self.folder}", *options]
        return run(words, env=self.env(), input=f"#!/bin/sh\n{script}\n").stdout.strip()

    def job(self, job: str | int) -> dict[str, str]:
        """What the controller knows of a job or of an array's first: JobState, Reason, Restarts, NodeList, ..."""
        first = self.scontrol("show", "job", "--oneliner", str(job)).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(\S*)", first))

    def wait_job(self, job: str | int, states: Collection[str] = ("COMPLETED",), timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of the states; what `job` says then. Fails at once in another final state."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
        now: dict[str, str] = {}

        def reached() -> bool:
            now.update(self.job(job))
            if now["JobState"] in final - set(states):
                raise BedError(f"job {job} is {now['JobState']}, expected {'/'.join(states)}: {now}")
            return now["JobState"] in states

        wait_until(reached, timeout, f"job {job} to be {'/'.join(states)}", every=0.1)
        return now

    def preempt(self, hosts: Collection[str], seconds: float = 3, partition: str = "high") -> str:
        """Take whole hosts for some seconds with a job in `high`; its number. Jobs of `low` there are requeued."""
        where = [f"--nodelist={','.join(hosts)}", f"--nodes={len(hosts)}", "--exclusive"]
        return self.submit(f"sleep {seconds}", f"--partition={partition}", "--job-name=preempt", *where)

    def fill(self, partition: str = "batch", seconds: float = 300) -> str:
        """Take all hosts of a partition, so that whatever comes next has to wait; the number of the job that does."""
        job = self.preempt(self.names, seconds, partition)
        self.wait_job(job, ("RUNNING",))
        return job

    # --- faults and mending

    def power_off(self, host: str) -> None:
        """Power loss. The controller notices after about `host_timeout` s to three times that; see `mark_down`."""
        self.hosts[host].power_off()

    def power_on(self, host: str) -> None:
        """Start a host and its slurmd again."""
        self.hosts[host].power_on()
        self.start_slurmd(host)

    def mark_down(self, host: str) -> None:
        """Tell the controller that a host is dead, what it would find out by itself only later."""
        self.scontrol("update", f"nodename={host}", "state=down", "reason=test")

    def black_hole(self, host: str) -> None:
        self.hosts[host].black_hole()

    def kill_slurmd(self, host: str) -> None:
        """slurmd alone dies; what it had started runs on as an orphan."""
        if not self.hosts[host].kill("slurmd"):
            raise BedError(f"no slurmd on {host}")

    def start_slurmd(self, host: str) -> None:
        spool = self.folder / f"spool.{host}"
        spool.mkdir(exist_ok=True)
        self.hosts[host].run(["slurmd"], env=self.env())

    def restart_slurmctld(self, *, crash: bool = False) -> None:
        """The controller ends, having saved its state, and starts again. A crash forgets jobs of the last seconds."""
        self.controller.run(["pkill", "-KILL" if crash else "-TERM", "-x", "slurmctld"])
        wait_until(lambda: not self.controller.runs("slurmctld"), 20, "slurmctld to end")
        self.start_slurmctld()

    def start_slurmctld(self) -> None:
        self.controller.run(["slurmctld"], env=self.env())
        wait_until(lambda: not self._try(["scontrol", "ping"]).returncode, 20, "slurmctld")

    def states(self) -> dict[str, str]:
        """The state of every host, such as `idle`; a trailing * says that it does not answer."""
        lines = self.command(["sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N %T"]).splitlines()
        return dict(line.split() for line in lines)

    def wait_usable(self, timeout: float = 30) -> None:
        """Wait until every host can take jobs, resuming those that are marked down."""

        def usable() -> bool:
            states = self.states()
            for host, state in states.items():
                if state.startswith(("down", "drain", "fail")):
                    self._try(["scontrol", "update", f"nodename={host}", "state=resume"])
            return set(states) == set(self.names) and set(states.values()) <= _USABLE

        wait_until(usable, timeout, f"all of {', '.join(self.names)} to be usable", every=0.1)

    def reset(self) -> None:
        """As new for the next test: no jobs, all hosts on, connected and idle."""
        for host in self.hosts.values():
            if host.alive:
                host.reconnect()
        self.command(["scancel", "--user=root"])
        for name, host in self.hosts.items():
            if host.own_address != host.address:
                host.call_itself()
            # A host without slurmd may hold orphans of a job: only a power cycle ends those.
            if not host.alive or not host.runs("slurmd"):
                host.power_off()
                self.power_on(name)
        wait_until(lambda: not self.squeue(), 30, "jobs to end")
        self.wait_usable()
        # What SLURM preempts or how many hosts it takes depends on those that are idle at that moment.
        wait_until(lambda: set(self.states().values()) == {"idle"}, 30, "all hosts to be idle", every=0.1)
