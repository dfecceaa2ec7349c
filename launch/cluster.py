"""Cluster files, `configs/clusters/*.yaml`: the resources of a job. They do not change what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from dfer.config import ConfigProblem, key
from dfer.config_files import load

_OWN = {"array", "comment", "dependency", "error", "job-name", "no-requeue", "output", "requeue", "signal"}
"""Options of sbatch that the launcher sets itself, to find, signal and requeue its jobs."""

PREFIX = "cluster."
"""Prefix of overrides of the cluster file: `cluster.nodes=2`."""

T = TypeVar("T", bound="SlurmCluster | RayCluster")


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """Resources of one part on a SLURM cluster; every part is one task of a job array.

    partition, account, qos, constraint, exclude: as in sbatch, none = the cluster's default. nodes: hosts of a part;
    min_nodes: fewest hosts it may start on, none = exactly `nodes`. gpus_per_node: GPUs, with one process each; if 0,
    processes_per_node CPU processes run instead. gpus_per_process: GPUs of a part that is one independent process; a
    process of a group always has one. cpus_per_process: for the process and its data workers. memory_gb: of a node,
    none = the partition's default. hours: time limit between two requeues; a longer run is requeued and resumes.
    signal_s: seconds before the limit at which the run gets a stop request. max_timeouts: times that a run may reach
    the limit before it is given up. max_failures: restarts after the loss of a process, not counting failures of a host
    that SLURM itself detects first. parallel_parts: most parts at a time. interface: network interface between the
    hosts, none = the one with the route to the first host. meet_s: timeout of the rendezvous. setup: shell commands
    before the processes start, such as `module load`; they are stored as plain text, so keep credentials out. python:
    interpreter on the hosts, none = the one that submits. folder: shared folder for scripts and logs, none =
    RUN/launch. options: further options of sbatch by name. report: options of sbatch for the job that writes the table,
    such as a partition without GPUs.
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
    gpus_per_process: int = 1
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
        _at_least(self, 1, "nodes", "min_nodes", "processes_per_node", "gpus_per_process", "cpus_per_process")
        _at_least(self, 1, "signal_s", "parallel_parts")
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
        if self.gpus_per_process > max(1, self.gpus_per_node):
            most, got = f"gpus_per_node={self.gpus_per_node}", self.gpus_per_process
            raise ConfigProblem(f"gpus_per_process: expected at most {most}, got {got}. Correct one of them")

    def of(self, *, grouped: bool) -> "SlurmCluster":
        """Return the resources of a part that is a process group or (grouped=False) one independent process."""
        if grouped:
            return replace(self, gpus_per_process=1)
        return replace(self, nodes=1, min_nodes=None, processes_per_node=1, gpus_per_node=self.gpus)

    @property
    def processes(self) -> int:
        """Number of processes on a host: one per GPU, or per `gpus_per_process` of them; or the CPU processes."""
        return self.gpus_per_node // self.gpus_per_process or self.processes_per_node

    @property
    def gpus(self) -> int:
        """GPUs of an independent part."""
        return min(self.gpus_per_process, self.gpus_per_node)

    @property
    def elastic(self) -> bool:
        """Whether a part may start on fewer hosts."""
        return self.min_nodes is not None and self.min_nodes < self.nodes

    @property
    def minutes(self) -> int:
        """Time limit between two requeues, in whole minutes as SLURM needs it."""
        return max(1, round(self.hours * 60))

    @property
    def worlds(self) -> list[int]:
        """Numbers of processes a part may run with."""
        return [nodes * self.processes for nodes in range(self.min_nodes or self.nodes, self.nodes + 1)]


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Resources of one part on a Ray cluster; parts run concurrently.

    address: of `ray.init`, none = RAY_ADDRESS or the cluster of this job. workers: processes of a part; min_workers:
    fewest it may run with, none = exactly `workers` (otherwise it shrinks if hosts are lost, and grows again). grow_s:
    seconds between two checks whether a shrunken part can grow; it grows by a restart from its last checkpoint. gpu:
    one GPU per process; gpus_per_process: more, for a part that is one independent process. cpus_per_worker: for the
    process and its data workers. resources: further resources of a process by name. max_failures: restarts of a part
    after the loss of a process. parallel_parts: most parts at a time, none = as many as fit into the cluster.
    interface, meet_s: as for SLURM. wait_s: timeout for enough resources to start any part. env_vars: environment
    variables of every process; they are stored as plain text, so keep credentials out.
    """

    address: str | None = None
    workers: int = 1
    min_workers: int | None = None
    grow_s: float = 60.0
    gpu: bool = False
    gpus_per_process: int = 1
    cpus_per_worker: int = 1
    resources: dict[str, float] = field(default_factory=dict)
    max_failures: int = 3
    parallel_parts: int | None = None
    interface: str | None = None
    meet_s: float = 30.0
    wait_s: float = 45.0
    env_vars: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 1, "workers", "min_workers", "gpus_per_process", "cpus_per_worker", "parallel_parts")
        _at_least(self, 0, "max_failures")
        _above_zero(self, "grow_s", "meet_s", "wait_s")
        if self.min_workers is not None and self.min_workers > self.workers:
            most = self.workers
            raise ConfigProblem(f"min_workers: expected at most workers={most}, got {self.min_workers}. Correct it")
        if self.gpus_per_process > 1 and not self.gpu:
            raise ConfigProblem(f"gpus_per_process: expected 1 without gpu, got {self.gpus_per_process}. Set gpu: true")

    def of(self, *, grouped: bool) -> "RayCluster":
        """Return the resources of a part that is a process group or (grouped=False) one independent process."""
        if grouped:
            return replace(self, gpus_per_process=1)
        return replace(self, workers=1, min_workers=None)

    @property
    def elastic(self) -> bool:
        """Whether a part may run with fewer processes."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def worlds(self) -> list[int]:
        """Numbers of processes a part may run with."""
        return list(range(self.min_workers or self.workers, self.workers + 1))

    @property
    def gpus(self) -> int:
        """GPUs of a process."""
        return self.gpus_per_process if self.gpu else 0

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of one process, as Ray names them."""
        return {"CPU": float(self.cpus_per_worker), **({"GPU": float(self.gpus)} if self.gpu else {}), **self.resources}


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
    """Split overrides into those of the run and those of the cluster file; the latter lose their prefix."""
    ours = [text.removeprefix(PREFIX) for text in overrides if text.startswith(PREFIX)]
    return [text for text in overrides if not text.startswith(PREFIX)], ours


def load_cluster(path: Path, kind: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a cluster file. Raises ConfigProblem that lists every problem with its key."""
    return load([path], kind, overrides)
