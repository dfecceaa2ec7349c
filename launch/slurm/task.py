"""What runs in every process of a SLURM job: one part of it, or the report after all parts.

SLURM sends a signal some time before it takes the host away. It becomes a stop request, on which all ranks agree
between two steps; after saving, the first rank lets submitit requeue the job through `checkpoint()`. After a host's
failure there is no signal, and SLURM requeues by itself: the run resumes from the last periodic checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import UncompletedJobError

from dfer.errors import DferError, FencedError, ProcessError, StoppedError, message
from dfer.exit import ProcessExit
from dfer.interruption import Stop
from dfer.jobs.parts import Part
from dfer.surroundings import accept_any_encoding
from launch.job import Job, Place, report, run_job, share_cores
from launch.rendezvous import Rendezvous, port_of
from launch.slurm.tools import SlurmError, show_job, slurm, with_retries

OTHERS_REASON = 1
"""Exit code of a process that ends because another one did: below the codes of root causes, since srun returns the
highest."""

Requeue = Callable[[int, Any], None]


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """One part of a job, in each of its processes. cpus: of a process; gpu: one each; interface, meet_s: see
    SlurmCluster."""

    job: Job
    part: Part
    cpus: int
    gpu: bool
    interface: str | None
    meet_s: float

    def __call__(self) -> None:
        """Run the part; an error ends the process with its exit code."""
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's
        accept_any_encoding()
        process_exit, stop = ProcessExit(), Stop()
        with stop.on_signals():
            share_cores(self.cpus)
            forget_failure()
            try:
                said = run_job(self.job, self.part, place(self), stop)
            except StoppedError as error:
                stopped(error, requeue if callable(requeue) else None, process_exit)
            except DferError as error:
                failed(error, process_exit)
            except Exception as error:
                crashed(self, error)
                process_exit.set_code(DferError.exit_code)
                raise
        if rank() == 0:
            print(said, flush=True)
        process_exit.set_code(0)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the task that submitit starts after a requeue: the same one, since the run folder has the position."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class ReportTask:
    """Concludes a job, for example by writing the table, once all of its parts have ended, finished or not."""

    job: Job

    def __call__(self) -> None:
        """Conclude and print the conclusion; prints which parts are missing, if any, and then fails."""
        accept_any_encoding()
        try:
            report(self.job)
        except DferError as error:
            failed(error, ProcessExit())

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the same task."""
        return submitit.helpers.DelayedSubmission(self)


def rank() -> int:
    """Return the rank of this process in its job."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def place(task: PartTask) -> Place:
    """This process among those of its job, as SLURM describes it."""
    job = submitit.JobEnvironment()
    token = f"{job.job_id}.{restarts()}"
    return Place(
        rank=job.global_rank,
        size=job.num_tasks,
        local_rank=job.local_rank,
        local_size=job.num_tasks // job.num_nodes,
        rendezvous=Rendezvous(
            rank=job.global_rank,
            size=job.num_tasks,
            host=job.hostnames[0],
            # A new port at each restart: the last one may have caused the failure.
            port=port_of(int(job.raw_job_id) + 1009 * restarts()),
            token=token,
            interface=task.interface,
            within_s=task.meet_s,
        ),
        gpu=task.gpu,
    )


def restarts() -> int:
    """Return how often SLURM has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


# --- how a process ends


def failure_file() -> Path:
    """Return the file for the root cause of a failure, which `status` shows and which prevents useless retries."""
    return Path(os.environ["SUBMITIT_FOLDER"]) / f"{submitit.JobEnvironment().job_id}_failure.json"


def _said() -> dict[str, Any]:
    """Read the failure file; empty when there is none."""
    try:
        said = json.loads(failure_file().read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def forget_failure() -> None:
    """Remove the failure file of an earlier start."""
    if rank() == 0:
        failure_file().unlink(missing_ok=True)


def failed(error: DferError, process_exit: ProcessExit) -> NoReturn:
    """Print the error, record it in the failure file, and exit with its code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if not (isinstance(error, FencedError) and is_overtaken()):
        _keep(error)
    process_exit.exit_with(OTHERS_REASON if isinstance(error, ProcessError) else error.exit_code)


def crashed(task: PartTask, error: Exception) -> None:
    """Record an unexpected error; it may not recur, so the job is retried."""
    lines = str(error).strip().splitlines()
    got = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    do = f"`dfer-launch logs {task.job.run} {task.part.name}` shows where it occurred; please report it."
    if not is_overtaken():
        _keep(DferError(message(task.part.name, expected="no unexpected error", got=got, do=do)))


def _keep(error: DferError) -> None:
    """Keep the first root cause of this start; overwrite secondary errors and leftovers of earlier starts."""
    if (said := _said()) and (said.get("start") != restarts() or _worth(said.get("code")) < _worth(error.exit_code)):
        failure_file().unlink(missing_ok=True)
    with suppress(OSError), failure_file().open("x") as file:
        json.dump({"code": error.exit_code, "text": str(error), "start": restarts()}, file)


def _worth(code: object) -> int:
    """Return the rank of an error: 0 secondary (another process was lost), 1 unexpected (may be secondary), 2 root
    cause."""
    return {ProcessError.exit_code: 0, DferError.exit_code: 1}.get(code, 2) if isinstance(code, int) else 0


def is_overtaken() -> bool:
    """Whether SLURM has restarted this job because it presumed this start dead."""
    try:
        return int(show_job(submitit.JobEnvironment().job_id).get("Restarts", "0")) != restarts()
    except SlurmError:
        return False


def stopped(error: StoppedError, requeue: Requeue | None, process_exit: ProcessExit) -> NoReturn:
    """End after a stop, when everything is saved: the first rank requeues the job unless it was cancelled."""
    if rank() == 0:
        print(f"note: {error}", file=sys.stderr, flush=True)
        if requeue is not None and is_wanted():
            _requeue(requeue)
    process_exit.exit_with(error.exit_code)


def is_wanted() -> bool:
    """Whether this start is the job's newest and SLURM lets it run; waits for the controller.

    A job that is being cancelled is COMPLETING by now, and a requeue would restart it. So is one that SLURM itself is
    about to requeue.
    """
    try:
        job = with_retries(lambda: show_job(submitit.JobEnvironment().job_id))
    except SlurmError:
        return True
    return job.get("JobState") == "RUNNING" and int(job.get("Restarts", "0")) == restarts()


def _requeue(requeue: Requeue) -> None:
    """Requeue through submitit: it counts how often the time limit was reached, calls `checkpoint()` and requeues."""
    environment = submitit.JobEnvironment()
    pickle = environment.paths.submitted_pickle
    pickle.with_suffix(f"{pickle.suffix}.save_tmp").unlink(missing_ok=True)  # left by a start that was killed here
    try:
        requeue(int(signal.SIGUSR2), None)
    except UncompletedJobError as error:
        do = "Submit again to go on; raise `max_timeouts` in the cluster file."
        expected = "to be requeued by submitit"
        print(f"error: {message('this job', expected=expected, got=str(error), do=do)}", file=sys.stderr, flush=True)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"note: scontrol requeue failed ({error}); trying again", file=sys.stderr, flush=True)
        try:
            with_retries(lambda: slurm("scontrol", "requeue", environment.job_id))
        except SlurmError as last:
            print(f"error: not requeued: {last} All is saved; submit again to go on.", file=sys.stderr, flush=True)
