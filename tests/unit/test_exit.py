"""How a process ends: nothing of Python's own tidying up is skipped, whichever library was imported first."""

import subprocess
import sys

import pytest

CODE = """
import sys
if sys.argv[1:] == ["multiprocessing first"]:
    import multiprocessing.util
from dfer.exit import ProcessExit
process_exit = ProcessExit()
import multiprocessing
kept = multiprocessing.get_context("forkserver").Lock()  # has a name in the system, and who is told to remove it
process_exit.exit_with(7)
"""


@pytest.mark.parametrize("order", ["multiprocessing first", "multiprocessing later"])
def test_semaphores_are_removed(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, order], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")
