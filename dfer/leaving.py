"""How a process of a job ends: at once, when Python has tidied up, without what C++ libraries do after it.

Threads of gloo that still run then now and then abort a process whose work is done, and its job would count as failed;
NCCL waits there for the other ranks.
"""

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class Leaving:
    """Made before libraries are imported, so that it acts last of all that Python calls at its end."""

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._leave)

    def will(self, code: int) -> int:
        """The exit code is known: end with it, however the end goes on; returns it."""
        self._code = code
        return code

    def after(self, command: Callable[[], int]) -> NoReturn:
        """Run a command and end with its exit code; of an error that nobody has foreseen, print the traceback first."""
        try:
            code = command()
        except SystemExit as end:  # of argparse, which has said why
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        self.now(code)

    def now(self, code: int) -> NoReturn:
        """End Python's way with this code."""
        sys.exit(self.will(code))

    def _leave(self) -> None:
        if self._code is not None:
            if multiprocessing := sys.modules.get("multiprocessing.util"):
                # Where it was imported before us its turn would be after us: it removes semaphores and temporary
                # folders, and does so once, however often it is called.
                multiprocessing._exit_function()
            at_once(self._code)


def at_once(code: int) -> NoReturn:
    """End without anything that Python or libraries do at the end, but what was printed is out."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
