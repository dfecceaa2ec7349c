"""How a process ends: nothing of Python's own tidying up is skipped, whichever library was imported first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

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


READS = """
import gc, sys

gc.disable()  # as luck has it: a loader in a cycle may live until the process ends
if sys.argv[1] == "first":
    from dfer.exit import ProcessExit
    process_exit = ProcessExit()
from dfer.data.loader import read_batches
if sys.argv[1] == "later":
    from dfer.exit import ProcessExit
    process_exit = ProcessExit()

class Reader:
    def __getitem__(self, number):
        return {"number": number}

if __name__ == "__main__":
    batches = read_batches(Reader(), list(range(9)), workers=1)
    print(next(batches), flush=True)
    process_exit.exit_with(7)
"""


@pytest.mark.slow("a program of its own that imports torch, with a worker process that does the same")
@pytest.mark.parametrize("order", ["first", "later"])
def test_data_workers_that_are_still_there_are_ended(order: str, tmp_path: Path) -> None:
    # They block SIGTERM, by which multiprocessing would end them before it waits for them.
    script = tmp_path / "reads.py"
    script.write_text(READS)
    done = subprocess.run(
        [sys.executable, script, order],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "{'number': 0}\n", "")
