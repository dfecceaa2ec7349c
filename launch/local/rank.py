"""One process of a job on this machine: `python -m launch.local.rank VERB ...` is `dfer VERB ...` tied to its launcher.

Without the tie, ranks of a launcher that was killed would train on, or wait for each other for ever.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

from dfer.exit import ProcessExit

LAUNCHER = "DFER_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Run the command and exit with its code."""
    end_with_launcher()
    process_exit = ProcessExit()
    sys.argv = ["dfer", *sys.argv[1:]]  # recorded in environment.json
    from dfer.__main__ import main as dfer  # imported after `end_with_launcher`: the import takes long

    process_exit.run_and_exit(lambda: dfer(sys.argv[1:]))


def end_with_launcher() -> None:
    """Have the kernel kill this process when its parent dies; end now if the parent is already dead."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
