"""Cluster files, `configs/clusters/*.yaml`: where a job runs and with what, never what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dfer.config import ConfigProblem, key
from dfer.config_files import load

_OWN = {"array", "comment", "dependency", "error", "job-name", "no-requeue", "output", "requeue", "signal"}
"""Options of sbatch with which the launcher finds, signals and requeues its jobs."""

PREFIX = "cluster."
"""Of an override that goes to the cluster file: `cluster.nodes=2`."""

T = TypeVar("T", bound="SlurmCluster | RayCluster")


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """What one part gets on a SLURM cluster; every part is one task of a job array.

    partition, account, qos, constraint, exclude: as sbatch knows them, none = the cluster's default. nodes: hosts of a
    part; min_nodes: fewest it may start on, none = exactly `nodes`. gpus_per_node: one process a GPU; where it is 0,
    processes_per_node CPU processes. cpus_per_process: for the process and its data workers. memory_gb: of a node, none
    = the partition's default. hours: time limit of one stretch; a run that needs longer is requeued and continues.
    signal_s: how long before the limit it is told to save. max_timeouts: stretches cut by the limit before giving up.
    max_failures: restarts after a process was lost for a reason other than a host's failure that SLURM found out first.
    parallel_parts: at most so many at a time. interface: network interface between the hosts, none = the one that leads
    to the first host. meet_s: how long hosts may take to find each other. setup: lines of shell before the processes
    start, such as `module load`; they are stored in the open, keep credentials out. python: on the hosts, none = that
    which submits. folder: shared folder for scripts and logs, none = RUN/launch. options: further options of sbatch by
    name. report: options of sbatch for the job that writes the table, such as a partition without GPUs.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodes: int = 1
    min_nodes: int | None = None
    gpus_per_node: int = 0
    processes_per_node: int = 1
    cpus_per_process: int = 1
    memory_gb: float | None = None
    hours: float = 24.0
    signal_s: int = 120
    max_timeouts: int = 100
    max_failures: int = 3
    parallel_parts: int = 5
    interface: str | None = None
    meet_s: float = 30.0
    setup: tuple[str, ...] = ()
    python: str | None = None
    folder: str | None = key(None, path=True)
    options: dict[str, str] = field(default_factory=dict)
    report: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 1, "nodes", "min_nodes", "processes_per_node", "cpus_per_process", "signal_s", "parallel_parts")
        _at_least(self, 0, "gpus_per_node", "max_timeouts", "max_failures")
        _above_zero(self, "hours", "memory_gb", "meet_s")
        for where, options in (("options", self.options), ("report", self.report)):
            if own := _OWN.intersection(name.replace("_", "-") for name in options):
                expected = "no option that the launcher itself needs"
                raise ConfigProblem(f"{where}: expected {expected}, got {', '.join(sorted(own))}. Remove it")
        if self.signal_s >= 60 * self.minutes:
            limit = 60 * self.minutes
            raise ConfigProblem(
                f"signal_s: expected less than hours ({limit} s), got {self.signal_s}. Correct one of them"
            )
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ConfigProblem(f"min_nodes: expected at most nodes={self.nodes}, got {self.min_nodes}. Correct it")

    def of(self, *, grouped: bool) -> "SlurmCluster":
        """What a part gets whose processes form a group, or (grouped=False) that is one independent process."""
        if grouped:
            return self
        return replace(self, nodes=1, min_nodes=None, processes_per_node=1, gpus_per_node=min(1, self.gpus_per_node))

    @property
    def processes(self) -> int:
        """Processes on a host: one a GPU, or CPU processes."""
        return self.gpus_per_node or self.processes_per_node

    @property
    def elastic(self) -> bool:
        """Whether a part may start on fewer hosts."""
        return self.min_nodes is not None and self.min_nodes < self.nodes

    @property
    def minutes(self) -> int:
        """Time limit of one stretch in whole minutes, as SLURM counts."""
        return max(1, round(self.hours * 60))

    @property
    def worlds(self) -> list[int]:
        """Numbers of processes a part may run with."""
        return [nodes * self.processes for nodes in range(self.min_nodes or self.nodes, self.nodes + 1)]


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """What one part gets on a Ray cluster; parts run beside each other.

    address: `ray.init`'s, none = RAY_ADDRESS or the cluster of this job. workers: processes of a part; min_workers:
    fewest it may run with, none = exactly `workers` (else it shrinks when hosts are lost and grows again). grow_s: how
    often a part that has fewer looks for room; it grows by starting anew from its last checkpoint. gpu: one GPU a
    process. cpus_per_worker: for the process and its data workers. resources: further resources of a process by
    name. max_failures: restarts of a part after a process was lost. parallel_parts: at most so many at a time, none =
    what the cluster has room for. interface, meet_s: as for SLURM. wait_s: how long to wait for enough resources to
    start any part. env_vars: variables of every process; they are stored in the open, keep credentials out.
    """

    address: str | None = None
    workers: int = 1
    min_workers: int | None = None
    grow_s: float = 60.0
    gpu: bool = False
    cpus_per_worker: int = 1
    resources: dict[str, float] = field(default_factory=dict)
    max_failures: int = 3
    parallel_parts: int | None = None
    interface: str | None = None
    meet_s: float = 30.0
    wait_s: float = 45.0
    env_vars: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 1, "workers", "min_workers", "cpus_per_worker", "parallel_parts")
        _at_least(self, 0, "max_failures")
        _above_zero(self, "grow_s", "meet_s", "wait_s")
        if self.min_workers is not None and self.min_workers > self.workers:
            most = self.workers
            raise ConfigProblem(f"min_workers: expected at most workers={most}, got {self.min_workers}. Correct it")

    def of(self, *, grouped: bool) -> "RayCluster":
        """What a part gets whose processes form a group, or (grouped=False) that is one independent process."""
        return self if grouped else replace(self, workers=1, min_workers=None)

    @property
    def elastic(self) -> bool:
        """Whether a part may run with fewer processes."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def worlds(self) -> list[int]:
        """Numbers of processes a part may run with."""
        return list(range(self.min_workers or self.workers, self.workers + 1))

    @property
    def per_worker(self) -> dict[str, float]:
        """Ray's resources of one process."""
        return {"CPU": float(self.cpus_per_worker), **({"GPU": 1.0} if self.gpu else {}), **self.resources}


def _at_least(cluster: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(cluster, name)
        if value is not None and value < least:
            raise ConfigProblem(f"{name}: expected at least {least}, got {value}. Correct it")


def _above_zero(cluster: object, *names: str) -> None:
    for name in names:
        value = getattr(cluster, name)
        if value is not None and value <= 0:
            raise ConfigProblem(f"{name}: expected more than 0, got {value}. Correct it")


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the run and, without their prefix, those of the cluster file."""
    ours = [text.removeprefix(PREFIX) for text in overrides if text.startswith(PREFIX)]
    return [text for text in overrides if not text.startswith(PREFIX)], ours


def load_cluster(path: Path, kind: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a cluster file. Raises ConfigProblem, with every problem, each with its key."""
    return load([path], kind, overrides)
