"""Call SLURM's commands, with a timeout and a message for errors: the queue, partitions, accounts."""

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dfer.errors import UsageError, message

T = TypeVar("T")

TIMEOUT_S = 20
CONTROLLER_S = 60.0
"""Longest wait for a controller that restarts."""
ENDING_S = 30.0
"""Longest wait for a job that is ending: it may return to the queue."""
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "PMI")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET")
"""Variables that select the cluster and authenticate the user."""
MAX_COMMENT = 1000
"""Characters of a job's comment; SLURM refuses more than 1,023."""
_FIELDS = "%P|%a|%D|%F|%l|%s|%G"


class SlurmError(UsageError):
    """A command of SLURM failed; `said` is its error output."""

    def __init__(self, text: str, said: str = "") -> None:
        super().__init__(text)
        self.said = said


def of_another_job(name: str) -> bool:
    """Whether a variable describes the job that this process runs in, or changes the answers of SLURM's commands.

    sbatch passes its whole environment to the job, where srun obeys SLURM_CPU_BIND, SLURM_MEM_PER_CPU and others.
    """
    return name.startswith(_OF_A_JOB) and name not in _OF_THE_CLUSTER


def environment() -> dict[str, str]:
    """Return the environment for SLURM's commands: this process's, without variables of the job that it runs in."""
    return {name: value for name, value in os.environ.items() if not of_another_job(name)}


def slurm(*words: str, timeout: float = TIMEOUT_S) -> str:
    """Run one of SLURM's commands and return its output.

    Raises:
        SlurmError: the command does not exist, fails or takes too long.
    """
    try:
        done = subprocess.run(
            words,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        do = "Go to a login node of the cluster, or use `dfer-launch local`."
        raise SlurmError(message(words[0], expected="SLURM's commands on this machine", got="none", do=do)) from error
    except subprocess.TimeoutExpired as error:
        do = "See whether slurmctld runs: scontrol ping. Then repeat the command."
        raise SlurmError(message(words[0], expected=f"an answer within {timeout:.0f} s", got="none", do=do)) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        do = "See whether the cluster is up: scontrol ping."
        raise SlurmError(message(words[0], expected="an answer of SLURM", got=said, do=do), said)
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job in the queue: `12_0` or `12`, its state, why it waits, hosts it runs on, the parts it was submitted for."""

    job: str
    state: str
    reason: str
    hosts: str
    comment: str

    @property
    def part(self) -> str | None:
        """Name of the part that this task runs, None for a report."""
        names = names_of(self.comment)
        if not names:
            return None
        index = int(self.job.partition("_")[2] or 0)
        return names[index] if index < len(names) else None


def comment_of(names: Sequence[str]) -> str:
    """Format the job comment that records in the queue which part each task of an array runs.

    Raises:
        UsageError: the names are longer than SLURM accepts.
    """
    comment = "parts=" + ",".join(names)
    if len(comment) > MAX_COMMENT:
        do = f"Submit some of them at a time: --only {names[0]},..."
        expected, got = f"names of at most {MAX_COMMENT} characters, which SLURM keeps", f"{len(names)} parts"
        raise UsageError(message("parts", expected=expected, got=got, do=do))
    return comment


def names_of(comment: str) -> list[str]:
    """Parse the names from a comment of `comment_of`, in the order of the array; empty for others."""
    match = re.fullmatch(r"parts=([\w./-]+(?:,[\w./-]+)*)", comment)
    return match[1].split(",") if match else []


def queued(name: str) -> list[Queued]:
    """List this user's jobs of a name that are waiting, running or ending."""
    words = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--name={name}"]
    lines = slurm(*words, "--format=%i|%T|%r|%N|%k").splitlines()
    out = []
    for line in lines:
        job, state, reason, hosts, comment = line.strip().split("|", 4)
        out.append(Queued(job=job, state=state, reason=reason, hosts=hosts, comment=comment))
    return out


def settled(name: str) -> list[Queued]:
    """As `queued`, but wait for jobs that are ending, at most ENDING_S."""
    until = time.monotonic() + ENDING_S
    while True:
        found = queued(name)
        if time.monotonic() > until or not any(task.state == "COMPLETING" for task in found):
            return found
        time.sleep(1)


def followed(name: str) -> list[Queued] | str:
    """As `queued`, but return the reason as text when the queue cannot be read; for `status` and `logs`."""
    if not shutil.which("squeue"):
        return "there is no squeue on this machine"
    try:
        return queued(name)
    except SlurmError as error:
        return str(error)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition as reported by sinfo. nodes, idle: hosts; minutes, most_nodes: limits of a job, None = unlimited."""

    name: str
    default: bool
    up: bool
    nodes: int
    idle: int
    minutes: int | None
    most_nodes: int | None
    gpus: int


def partitions() -> dict[str, Partition]:
    """List all partitions of the cluster by name."""
    out: dict[str, Partition] = {}
    for line in slurm("sinfo", "--noheader", "--all", "--noconvert", f"--format={_FIELDS}").splitlines():
        found = _partition(line)
        known = out.get(found.name)
        if known:  # hosts of another kind in the same partition
            nodes, idle, gpus = known.nodes + found.nodes, known.idle + found.idle, max(known.gpus, found.gpus)
            found = Partition(**{**vars(found), "nodes": nodes, "idle": idle, "gpus": gpus})
        out[found.name] = found
    return out


def _partition(line: str) -> Partition:
    name, up, nodes, counts, limit, sizes, gres = line.strip().split("|")
    most = sizes.rpartition("-")[2]
    cards = [int(number) for number in re.findall(r"gpu(?::[^:,()]+)*:(\d+)", gres)]
    return Partition(
        name=name.rstrip("*"),
        default=name.endswith("*"),
        up=up == "up",
        nodes=int(nodes),
        idle=int(counts.split("/")[1]),
        minutes=minutes_of(limit),
        most_nodes=int(most) if most.isdigit() else None,
        gpus=max(cards, default=0),
    )


def minutes_of(limit: str) -> int | None:
    """Convert SLURM's `1-02:30:00` or `30:00` to minutes; None for `infinite`."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, minutes, _ = (int(number or 0) for number in match.groups())
    return (days * 24 + hours) * 60 + minutes


def accounts() -> list[str]:
    """List the accounts that this user may charge. Empty if the cluster has no accounting or does not answer, or if the
    user has a number but no name, as in a container."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return []
    words = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account"]
    try:
        return sorted({line.strip() for line in slurm(*words).splitlines() if line.strip()})
    except SlurmError:
        return []


def show_job(job: str) -> dict[str, str]:
    """Return scontrol's fields of a job by name; `12_3` is a task of an array.

    Do not ask for a task by its own job number: the last one that starts has the number of the whole array.
    """
    found = slurm("scontrol", "show", "job", "--oneliner", job).splitlines()
    return dict(re.findall(r"(\w+)=(\S*)", found[0])) if found else {}


def with_retries(work: Callable[[], T], *, seconds: float = CONTROLLER_S) -> T:
    """Return the result of `work`, with retries while SLURM does not answer: its controller may be restarting.

    Raises:
        SlurmError: it still does not answer after `seconds`.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except SlurmError:
            if time.monotonic() > until:
                raise
        time.sleep(1)


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """Return the final states of jobs by their numbers, from the accounting; empty without accounting."""
    if not jobs:
        return {}
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(jobs)}"]
    try:
        rows = [line.split("|") for line in slurm(*words).splitlines()]
    except SlurmError:
        return {}
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}
