"""Requeue a job whose processes failed, if a retry can help. Called at the end of the batch script.

A lost process (killed, out of memory, a partner that vanished), a store that did not answer and an unexpected error are
retried, at most `max_failures` times. Usage errors, damaged data, a loss that is not finite, a GPU that is too small, a
fenced run folder and a stop are not.
"""

import json
import os
import sys
from pathlib import Path

from dfer.errors import DferError, ProcessError, StoppedError, StorageError
from launch.slurm.tools import SlurmError, show_job, slurm, with_retries

_REQUEUED = 255
"""Exit code of a process through which submitit has requeued the job."""


def main(folder: Path, most: int, code: int) -> int:
    """Requeue if a retry can help; returns the exit code for the script, which is that of the processes."""
    job, start = _job(), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if not _may_help(code, folder / f"{job}_failure.json", start):
        return code
    counter = folder / f"{job}_failures"
    before = int(counter.read_text()) if counter.exists() else 0
    if before >= most:
        print(f"error: exit code {code}, {before} restarts after failures: not tried again", file=sys.stderr)
        return code
    try:
        if int(with_retries(lambda: show_job(job)).get("Restarts", "0")) != start:
            return code  # SLURM presumed this start dead; a newer one runs elsewhere
        print(f"note: exit code {code}; restart {before + 1} of {most} after a failure", file=sys.stderr, flush=True)
        # Written before the call, which ends this script; if it fails, the count is restored.
        counter.write_text(str(before + 1))
        with_retries(lambda: slurm("scontrol", "requeue", job))
    except SlurmError as error:
        counter.write_text(str(before))
        print(f"error: not requeued: {error}", file=sys.stderr)
    return code


def _job() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _may_help(code: int, failure: Path, start: int) -> bool:
    if code in (0, _REQUEUED, StoppedError.exit_code):
        return False
    try:
        said = json.loads(failure.read_text())
        own, by = said["code"], said["start"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return by != start or own in (DferError.exit_code, ProcessError.exit_code, StorageError.exit_code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
