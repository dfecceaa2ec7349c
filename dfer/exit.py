"""Exit a process of a job with `os._exit` once Python's exit handlers have run, before C++ libraries run theirs.

During C++ teardown, gloo threads that still run sometimes abort a process whose work is done, so that its job would
count as failed; NCCL waits there for the other ranks.
"""

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from dfer import multiprocessing_internals


class ProcessExit:
    """Ends the process with a known code. Create it before importing libraries: its atexit handler then runs last."""

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._at_exit)

    def set_code(self, code: int) -> int:
        """Fix the exit code, whatever happens during the rest of the exit; returns it."""
        self._code = code
        return code

    def run_and_exit(self, command: Callable[[], int]) -> NoReturn:
        """Run a command and exit with its code; print the traceback of an unexpected error first and exit with 1."""
        try:
            code = command()
        except SystemExit as end:  # from argparse, which has printed the reason
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        self.exit_with(code)

    def exit_with(self, code: int) -> NoReturn:
        """Exit with this code by `sys.exit`, so that Python's exit handlers run."""
        sys.exit(self.set_code(code))

    def _at_exit(self) -> None:
        if self._code is not None:
            # If multiprocessing was imported before this object was created, its handler would come after this one, so
            # never. It removes semaphores and temporary folders.
            multiprocessing_internals.finish()
            exit_now(self._code)


def exit_now(code: int) -> NoReturn:
    """Flush stdout and stderr, then `os._exit`: no exit handlers of Python or of libraries run."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
