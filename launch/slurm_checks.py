"""What can be known before a job waits for ever: partition, limits, account; and sbatch's refusals in plain words."""

from dfer.errors import UsageError, message
from launch.cluster import SlurmCluster
from launch.slurm_tools import Partition, accounts, partitions


def check(cluster: SlurmCluster) -> list[str]:
    """Notes on what makes the job wait.

    Raises:
        UsageError: it could never start.
    """
    known = partitions()
    part = _chosen(cluster, known)
    _check_limits(cluster, part, known)
    if cluster.account and (mine := accounts()) and cluster.account not in mine:
        raise _unknown_account(cluster)
    need = cluster.min_nodes or cluster.nodes
    if part.idle < need:
        got = f"{part.idle} of {part.nodes} hosts of partition {part.name} are idle, a fold needs {need}"
        return [f"{got}: jobs wait their turn; `dfer-launch status` shows when they start"]
    return []


def _chosen(cluster: SlurmCluster, known: dict[str, Partition]) -> Partition:
    name = cluster.partition or next((part.name for part in known.values() if part.default), None)
    if name not in known:
        got = cluster.partition or "none, and the cluster has no default"
        do = "Correct `partition:` in the cluster file."
        raise UsageError(message("partition", expected=f"one of {', '.join(sorted(known))}", got=got, do=do))
    return known[name]


def _check_limits(cluster: SlurmCluster, part: Partition, known: dict[str, Partition]) -> None:
    need = cluster.min_nodes or cluster.nodes
    where, choose = f"partition {part.name}", "or choose another `partition:`."
    up = ", ".join(sorted(other.name for other in known.values() if other.up)) or "none"
    most = min(part.nodes, part.most_nodes or part.nodes)
    if not part.up:
        do = f"Wait until it is up, {choose} Up: {up}."
        raise UsageError(message(where, expected="a partition that starts jobs", got="one that is down", do=do))
    if need > most:
        expected = f"room for {need} hosts a fold"
        raise UsageError(message(where, expected=expected, got=f"at most {most}", do=f"Lower `nodes:`, {choose}"))
    if part.minutes is not None and cluster.minutes > part.minutes:
        expected = f"a time limit of {cluster.minutes} minutes"
        do = f"Lower `hours:` (the run is requeued and continues), {choose}"
        raise UsageError(message(where, expected=expected, got=f"at most {part.minutes}", do=do))
    if cluster.gpus_per_node > part.gpus:
        expected = f"{cluster.gpus_per_node} GPUs a host"
        raise UsageError(
            message(where, expected=expected, got=f"at most {part.gpus}", do=f"Lower `gpus_per_node:`, {choose}")
        )


def explain(said: str, cluster: SlurmCluster) -> UsageError:
    """What sbatch refused, with what to do."""
    lines = [line.strip() for line in said.splitlines() if "sbatch: error:" in line]
    got = "; ".join(line.partition("error:")[2].strip() for line in lines) or " ".join(said.split())[-300:]
    if "account" in got.lower():
        return _unknown_account(cluster, got)
    do = "Correct the cluster file: partition, nodes, processes, cpus_per_process, memory_gb, constraint, qos, options."
    return UsageError(message("sbatch", expected="SLURM to take the job", got=got, do=do))


def _unknown_account(cluster: SlurmCluster, got: str = "") -> UsageError:
    mine = accounts()
    expected = f"one of {', '.join(mine)}" if mine else "one that may use this partition"
    named = cluster.account or "none"
    do = "Correct `account:` in the cluster file."
    return UsageError(message("account", expected=expected, got=f"{named} ({got})" if got else named, do=do))
