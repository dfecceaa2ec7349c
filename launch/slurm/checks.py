"""Check partition, limits and account before submission, so that no job waits forever. Explain sbatch's errors."""

from dfer.errors import UsageError, message
from launch.cluster import SlurmCluster
from launch.slurm.tools import Partition, accounts
from launch.slurm.tools import partitions as all_partitions

REPORT_MINUTES = 30
"""Time limit of the job that writes the report, which takes seconds."""


def check(cluster: SlurmCluster) -> list[str]:
    """Return notes on why the job will wait.

    Raises:
        UsageError: the job could never start.
    """
    known = all_partitions()
    partitions = _chosen(cluster.partition, known, key="partition")
    problems = [problem for partition in partitions if (problem := _problem(cluster, partition, known))]
    if len(problems) == len(partitions):
        raise problems[0]
    if cluster.account and (mine := accounts()) and cluster.account not in mine:
        raise _unknown_account(cluster)
    need, idle = cluster.min_nodes or cluster.nodes, sum(partition.idle for partition in partitions)
    if idle < need:
        names, there = ",".join(each.name for each in partitions), sum(each.nodes for each in partitions)
        got = f"{idle} of {there} hosts of partition {names} are idle, a part needs {need}"
        return [f"{got}: jobs wait their turn; `dfer-launch status` shows when they start"]
    return []


def report_minutes(cluster: SlurmCluster) -> int:
    """Return the time limit of the report's job in its partition.

    Raises:
        UsageError: the report's job could never start.
    """
    name = cluster.report.get("partition", cluster.partition)
    key = "report: {partition}" if "partition" in cluster.report else "partition"
    partitions = _chosen(name, all_partitions(), key=key)
    if not any(partition.up for partition in partitions):
        do = "Choose another one with `report: {partition: NAME}` in the cluster file."
        got = f"{','.join(partition.name for partition in partitions)}, which is down"
        raise UsageError(message("report", expected="a partition that starts jobs", got=got, do=do))
    return min(REPORT_MINUTES, *(partition.minutes or REPORT_MINUTES for partition in partitions if partition.up))


def _chosen(names: str | None, known: dict[str, Partition], *, key: str) -> list[Partition]:
    """Return the partitions in which a job may run: sbatch accepts several and uses the first with room."""
    found = names.split(",") if names else [partition.name for partition in known.values() if partition.default]
    missing = [name for name in found if name not in known]
    if missing or not found:
        got = missing[0] if missing else "none, and the cluster has no default"
        do = f"Correct `{key}:` in the cluster file."
        raise UsageError(message("partition", expected=f"one of {', '.join(sorted(known))}", got=got, do=do))
    return [known[name] for name in found]


def _problem(cluster: SlurmCluster, partition: Partition, known: dict[str, Partition]) -> UsageError | None:
    """Return why a part could never start in a partition, or None."""
    need = cluster.min_nodes or cluster.nodes
    where, choose = f"partition {partition.name}", "or choose another `partition:`."
    up = ", ".join(sorted(other.name for other in known.values() if other.up)) or "none"
    most = min(partition.nodes, partition.most_nodes or partition.nodes)
    if not partition.up:
        do = f"Wait until it is up, {choose} Up: {up}."
        return UsageError(message(where, expected="a partition that starts jobs", got="one that is down", do=do))
    if need > most:
        expected = f"room for {need} hosts a part"
        return UsageError(message(where, expected=expected, got=f"at most {most}", do=f"Lower `nodes:`, {choose}"))
    if partition.minutes is not None and cluster.minutes > partition.minutes:
        expected = f"a time limit of {cluster.minutes} minutes"
        do = f"Lower `hours:` (the run is requeued and continues), {choose}"
        return UsageError(message(where, expected=expected, got=f"at most {partition.minutes}", do=do))
    if cluster.gpus_per_node > partition.gpus:
        expected = f"{cluster.gpus_per_node} GPUs a host"
        do = f"Lower `gpus_per_node:`, {choose}"
        return UsageError(message(where, expected=expected, got=f"at most {partition.gpus}", do=do))
    return None


def explain(said: str, cluster: SlurmCluster, *, report: bool = False) -> UsageError:
    """Turn sbatch's error into a message with what to do. report: whether it refused the report's job."""
    lines = [line.strip() for line in said.splitlines() if "sbatch: error:" in line]
    got = "; ".join(line.partition("error:")[2].strip() for line in lines) or " ".join(said.split())[-300:]
    if "account" in got.lower():
        return _unknown_account(cluster, got)
    if report:
        do = "Correct `report:` in the cluster file and submit again: the parts submitted with it were cancelled."
        return UsageError(message("sbatch", expected="SLURM to take the report's job", got=got, do=do))
    do = "Correct the cluster file: partition, nodes, processes, cpus_per_process, memory_gb, constraint, qos, options."
    return UsageError(message("sbatch", expected="SLURM to take the job", got=got, do=do))


def _unknown_account(cluster: SlurmCluster, got: str = "") -> UsageError:
    mine = accounts()
    expected = f"one of {', '.join(mine)}" if mine else "one that may use this partition"
    named = cluster.account or "none"
    do = "Correct `account:` in the cluster file."
    return UsageError(message("account", expected=expected, got=f"{named} ({got})" if got else named, do=do))
