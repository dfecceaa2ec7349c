"""Private names of Python's multiprocessing, all in this module; `tests/unit/test_private_names.py` holds it."""

import sys
from collections.abc import Callable


def finish() -> None:
    """What multiprocessing does at the end of a process, where it was imported: it ends children, removes semaphores
    and temporary folders. It does so once, however often it is called."""
    if multiprocessing := sys.modules.get("multiprocessing.util"):
        multiprocessing._exit_function()


def on_unsent(handle: Callable[[Exception, object], None]) -> None:
    """Have `handle(error, object)` called in this process when a queue cannot send an object: Python would print the
    error and go on, and who waits for the object would wait for ever."""
    from multiprocessing import queues

    queues.Queue._on_queue_feeder_error = staticmethod(handle)  # type: ignore[attr-defined]
