"""Connect to the Ray cluster, query its free resources, and turn its errors into one-line messages."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfer.errors import UsageError, message
from dfer.storage import Folder
from launch.cluster import RayCluster

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PLACES_S = 10
"""Timeout of an elastic part's placement. After a host's death Ray still counts it for a moment and requests resources
that will never be available; only after this timeout (Ray's default: 60 s) it reads the available resources again."""

CONNECT_S = 10.0
"""Timeout of a test connection to the head before Ray is started: Ray itself would try for a quarter of an hour."""


def in_ray_job() -> bool:
    """Whether `ray job submit` started this process."""
    return _JOB_CONFIG in os.environ


def submission_id() -> str:
    """Return the id of the job that `ray job submit` made; empty outside such a job."""
    return str(_job_config("metadata").get("job_submission_id", ""))


def _job_config(name: str) -> dict[str, Any]:
    """Read a part of the configuration that `ray job submit` passed to this process; empty outside a job."""
    try:
        return dict(json.loads(os.environ[_JOB_CONFIG])[name])
    except (KeyError, TypeError, ValueError):
        return {}


def refuse_working_folder(places: Mapping[str, str]) -> None:
    """Refuse paths below the working folder that Ray unpacked for this job: it is deleted with the job, each host has
    its own copy, and files that git ignores, such as data/, are not in it.

    places: paths and URLs by their keys in the configuration.

    Raises:
        UsageError: one of them is there.
    """
    if str(_job_config("runtime_env").get("working_dir") or "local://").startswith("local://"):
        return  # not unpacked by Ray
    for key, value in places.items():
        local = Folder(value, what=key).local
        if local is not None and local.resolve().is_relative_to(Path.cwd().resolve()):
            expected, got = "a folder that outlives the job", "one in its working folder"
            do = f"Give {key}=URL, or an absolute path on storage that all hosts share."
            raise UsageError(message(key, expected=expected, got=got, do=do))


@contextmanager
def connected(cluster: RayCluster, runtime_env: Mapping[str, Any]) -> Iterator[str]:
    """Connect to the cluster; gives the address of its job server.

    Raises:
        UsageError: no cluster answers, or it refuses this driver.
    """
    # So a stale address, left by an earlier `ray start`, is given up after a minute.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    import ray
    from ray.exceptions import RayError

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it would print every line of a process twice
    if cluster.elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACES_S))
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "auto"
    _test_connection(address)
    try:
        context = ray.init(
            address=address, runtime_env=dict(runtime_env), log_to_driver=True, logging_level=logging.WARNING
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise _not_connected(address, error) from error
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def _test_connection(address: str) -> None:
    """Raise UsageError for an address, HOST:PORT, that does not accept a connection."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _not_connected(address, ConnectionError(str(error))) from error


def _not_connected(address: str, error: Exception) -> UsageError:
    """Make the error for a cluster that does not answer, which Ray reports in two ways, or that refuses this driver
    (another version, too much to upload)."""
    expected, do = "a connection to the cluster", "Correct the cluster file or the installation."
    if isinstance(error, ConnectionError) or "connect to GCS" in str(error):
        expected = "a cluster"
        do = "Start one (`ray start --head`), set RAY_ADDRESS or cluster.address, or use `dfer-launch local`."
    return UsageError(message(f"Ray at {address}", expected=expected, got=in_a_line(error), do=do))


def room_in(cluster: RayCluster) -> int:
    """Return how many parts fit into the cluster, counted host by host, since a process cannot span two hosts."""
    import ray

    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processes = sum(_processes_in(host, cluster.per_worker) for host in hosts)
    least = cluster.min_workers or cluster.workers
    return max(processes // cluster.workers, int(processes >= least))


def _processes_in(host: Mapping[str, float], need: Mapping[str, float]) -> int:
    return int(min(host.get(name, 0.0) // amount for name, amount in need.items() if amount))


def too_small(cluster: RayCluster) -> UsageError:
    """Make the error for a cluster without room for a part: total resources against those of a part."""
    import ray

    do = "Lower `workers:` or what each needs in the cluster file, or add hosts."
    expected = f"room for {_processes(cluster)}"
    got = _amounts(cluster, ray.cluster_resources())
    return UsageError(message("the Ray cluster", expected=expected, got=got, do=do))


def room_needed(cluster: RayCluster) -> str:
    """Describe the resources that a part needs and those that are free."""
    import ray

    return f"{_processes(cluster)}, free are {_amounts(cluster, ray.available_resources())}"


def _processes(cluster: RayCluster) -> str:
    least = cluster.min_workers or cluster.workers
    return f"{least} process{'es' if least > 1 else ''} of {_amounts(cluster, cluster.per_worker)}"


def _amounts(cluster: RayCluster, there: Mapping[str, float]) -> str:
    return ", ".join(f"{there.get(name, 0.0):g} {name}" for name in cluster.per_worker)


def in_a_line(error: BaseException) -> str:
    """Shorten an error's text to one line; Ray's texts have several paragraphs."""
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
