"""One rank of a local job, which ends with its launcher.

    python -m launch.local.rank VERB ...             is `dfer VERB ...`
    python -m launch.local.rank part FILE NAME ...   is one part of the job in FILE; the rest is recorded as the command

Otherwise the ranks of a killed launcher would continue training, or wait for each other forever.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dfer.exit import ProcessExit

if TYPE_CHECKING:
    from launch.job import Place

PART = "part"
LAUNCHER = "DFER_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Run the command and exit with its code."""
    end_with_launcher()
    process_exit = ProcessExit()
    words = sys.argv[1:]
    if words[:1] == [PART]:
        sys.argv = ["dfer-launch", *words[3:]]  # recorded in environment.json
        process_exit.run_and_exit(lambda: _part(Path(words[1]), words[2]))
    sys.argv = ["dfer", *words]
    from dfer.__main__ import main as dfer  # imported after `end_with_launcher`: the import takes long

    process_exit.run_and_exit(lambda: dfer(words))


def _part(file: Path, name: str) -> int:
    """Run a part of the job in a file; returns the exit code."""
    from dfer.cli import exit_code, hide_notices
    from dfer.interruption import Stop
    from dfer.surroundings import accept_any_encoding
    from launch.job import Job, run_job

    job, stop, place = Job.from_json(file.read_text(encoding="utf-8")), Stop(), _place()

    accept_any_encoding()
    hide_notices()

    def work() -> None:
        with stop.on_signals():
            said = run_job(job, job.part(name), place, stop)
        if place.rank == 0:
            print(said, flush=True)

    said = "the same command continues from the last checkpoint"
    return exit_code(work, interrupted=said, prints_usage_errors=lambda: place.local_rank == 0)


def _place() -> "Place":
    """Read the rank info of this process from the launcher's variables."""
    from launch.job import Place

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    return Place(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def end_with_launcher() -> None:
    """Have the kernel kill this process when its parent dies; end now if the parent is already dead."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
