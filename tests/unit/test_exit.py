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


FEEDS = """
import multiprocessing, threading, time
from multiprocessing import synchronize
from dfer.exit import ProcessExit
process_exit = ProcessExit()
remove, begun = synchronize.sem_unlink, threading.Event()

def remove_slowly(name):
    remove(name)
    if threading.current_thread() is not threading.main_thread():
        begun.set()
        time.sleep(0.3)  # the message that it is removed comes later

class SlowToSend:
    def __reduce__(self):
        time.sleep(0.3)
        return (int, ())

synchronize.sem_unlink = remove_slowly
queue = multiprocessing.get_context("forkserver").Queue()
queue.put(SlowToSend())
time.sleep(0.1)  # its thread now holds what the queue consists of
queue.cancel_join_thread()  # as torch's DataLoader does
queue.close()
del queue
assert begun.wait(10)
process_exit.exit_with(7)
"""


def test_a_thread_that_removes_a_semaphore_finishes() -> None:
    done = subprocess.run([sys.executable, "-c", FEEDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")
