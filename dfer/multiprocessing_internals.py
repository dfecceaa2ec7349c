"""Private names of Python's multiprocessing, all in this module; `tests/unit/test_private_names.py` holds it."""

import sys
import threading
from collections.abc import Callable

FEEDER = "QueueFeederThread"
"""Name of the threads in which queues send what was put into them."""
FEEDER_END_S = 1.0


def finish() -> None:
    """Do what multiprocessing does at the end of a process that imported it: end children, remove semaphores and
    temporary folders. It is done once, however often this is called.

    A queue that was closed without joining its thread frees its semaphores in that thread, so wait for it: a process
    that exits between the removal of a semaphore and the message about it leaves a warning of a leak behind.
    """
    if multiprocessing := sys.modules.get("multiprocessing.util"):
        multiprocessing._exit_function()
        for thread in threading.enumerate():
            if thread.name == FEEDER:
                thread.join(FEEDER_END_S)


def before_children_end(function: Callable[[], None]) -> None:
    """Have `function()` called at the end of this process, before multiprocessing closes queues and ends its children.

    A function registered with `atexit` when its module is imported comes too late in a process that creates
    `dfer.exit.ProcessExit` after that. Processes forked from this one do not inherit the call.
    """
    from multiprocessing import util

    util.Finalize(None, function, exitpriority=100)  # queues have 10


def on_unsent(handle: Callable[[Exception, object], None]) -> None:
    """Have `handle(error, object)` called in this process when a queue cannot send an object: Python would print the
    error and go on, and who waits for the object would wait for ever."""
    from multiprocessing import queues

    queues.Queue._on_queue_feeder_error = staticmethod(handle)  # type: ignore[attr-defined]
