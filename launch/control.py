"""`dfer-launch logs` and `cancel`: show the logs of a run's processes, and stop them."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dfer.errors import UsageError, message
from dfer.storage import Folder
from launch.ray.cluster import in_a_line
from launch.records import Record, records, tag
from launch.slurm.tools import followed, queued, slurm

T = TypeVar("T")


def logs(run: str, part: str | None, *, lines: int) -> str:
    """Return the last lines of the newest logs of a part, or of the report (part None).

    Raises:
        UsageError: nothing was submitted there, or Ray's job server does not answer.
    """
    home = Folder(run, what="the run folder")
    kept = [record for record in records(home) if part is None or part in record.tasks]
    if not kept:
        what = "the report" if part is None else part
        do = "List the parts: dfer-launch status RUN."
        raise UsageError(message(home, expected=f"a submission of {what}", got="none", do=do))
    record = kept[-1]
    if record.launcher == "ray":
        return _ray_logs(record, lines)
    return _slurm_logs(record, record.report if part is None else record.tasks[part], lines)


def _slurm_logs(record: Record, job: str, lines: int) -> str:
    """Return the ends of the logs of all processes, with their file names; each process's error log comes first."""
    folder = Path(record.folder)
    files = sorted(folder.glob(f"{job}_[0-9]*_log.*")) or sorted(folder.glob(f"{job}_log.*"))
    ends = [f"==> {file}\n{end_of(file, lines)}" for file in files if file.stat().st_size]
    return "\n".join(ends) or f"{folder}: job {job} has written nothing yet"


def end_of(file: Path, lines: int) -> str:
    """Return the last lines of a text file."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 400 * lines))
        return "\n".join(opened.read().decode(errors="replace").splitlines()[-lines:])


def _ray_logs(record: Record, lines: int) -> str:
    if not record.address:
        return f"the driver ran on {record.host}, process {record.pid}: its output went to its terminal"
    text: str = _ask_ray(record, lambda server: server.get_job_logs(record.job))
    return "\n".join(text.splitlines()[-lines:])


def _ask_ray(record: Record, ask: Callable[[Any], T]) -> T:
    """Query the job server that the job was submitted to.

    Raises:
        UsageError: the server cannot be reached from this host, requires a token, or does not know the job.
    """
    from ray.job_submission import JobSubmissionClient

    named = os.environ.get("RAY_ADDRESS", "")
    address = named if named.startswith("http") else record.address
    # The client prefers RAY_ADDRESS to its argument; on the hosts of a cluster that variable is not a job server's.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return ask(JobSubmissionClient(address))
    except Exception as error:  # errors of Ray and of requests, or due to another kind of server at the address
        do = (
            "Run this where the job server can be reached, as on the head node, or set RAY_ADDRESS to its address. "
            "`ray start --head --dashboard-host=0.0.0.0` opens it to other hosts."
        )
        where, expected = f"Ray's job server at {address}", f"an answer about job {record.job}"
        raise UsageError(message(where, expected=expected, got=in_a_line(error), do=do)) from error


def cancel(run: str) -> list[str]:
    """Send a stop request to every job of a run: each saves and ends, and is not restarted. Returns one line per job.

    Raises:
        UsageError: nothing was submitted there, the driver runs on another host, or Ray's job server does not answer.
    """
    home = Folder(run, what="the run folder")
    kept = records(home)
    out = _cancel_slurm(run, sure=any(record.launcher == "slurm" for record in kept))
    if not kept and not out:
        do = "Correct the address; a run of `dfer-launch local` ends with Ctrl-C."
        raise UsageError(message(home, expected="a submission to SLURM or Ray", got="none", do=do))
    newest = next((record for record in reversed(kept) if record.launcher == "ray"), None)
    if newest is not None and not out and not ended(newest):
        out.append(_cancel_ray(newest))
    return out or ["no job of this run is waiting or running"]


def ended(record: Record) -> bool:
    """Whether all parts of a Ray job have ended, according to its record."""
    return not {state.partition(":")[0] for state in record.states.values()} & {"waiting", "running"}


def _cancel_slurm(run: str, *, sure: bool) -> list[str]:
    """Cancel a run's SLURM jobs. sure: whether jobs were submitted, so that an unanswered query is an error."""
    names = [f"dfer-{tag(run)}-{what}" for what in ("report", "parts")]
    found = [queued(name) if sure else followed(name) for name in names]
    jobs = sorted({task.job.partition("_")[0] for tasks in found if not isinstance(tasks, str) for task in tasks})
    if jobs:
        slurm("scancel", *jobs)
    return [f"cancelled job {job}" for job in jobs]


def _cancel_ray(record: Record) -> str:
    if record.address:
        _ask_ray(record, lambda server: server.stop_job(record.job))
        return f"stopped Ray job {record.job}"
    if record.host != socket.gethostname():
        do = f"Send SIGTERM to process {record.pid} there."
        raise UsageError(message(record.job, expected="a driver on this host", got=record.host, do=do))
    if not _is_driver(record.pid):
        return f"the driver, process {record.pid}, has ended"
    os.kill(record.pid, signal.SIGTERM)
    return f"sent a stop request to process {record.pid}"


def _is_driver(pid: int) -> bool:
    """Whether the process is a `dfer-launch ray`: the pid in a record may belong to another process by now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"ray" in words and any(b"launch" in word for word in words)
