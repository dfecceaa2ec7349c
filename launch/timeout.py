"""Run a blocking call with a timeout."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dfer.errors import StorageError, message

T = TypeVar("T")
BUSY = 0.01
"""Share of a core from which on a process computes: one that waits for a store takes far less."""
LEAST_S = 0.005
"""Least CPU time that counts as computing: waking up takes some, too."""
MORE_S = 300.0
"""Most time beyond the timeout for a process that computes, for example imports a client while the machine is busy."""


def with_timeout(seconds: float, work: Callable[[], T], *, what: str) -> T:
    """Return the result of `work`, or raise its error. what: the address that it needs, for the message.

    Raises:
        StorageError: for `seconds` nothing was computed, or it takes MORE_S longer than that. The daemon thread in
            which it hangs ends with the process.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _wait(thread, seconds)
    if errors:
        raise errors[0]
    if not results:
        do = "Check the URL, the network and the credentials that the store needs."
        raise StorageError(message(what, expected=f"an answer within {seconds:g} s", got="none", do=do))
    return results[0]


def _wait(thread: threading.Thread, seconds: float) -> None:
    """Wait for the end of a thread until this process has not computed for `seconds`."""
    waited, last = 0.0, time.monotonic() + seconds + MORE_S
    while thread.is_alive() and waited < seconds and time.monotonic() < last:
        began, computed = time.monotonic(), time.process_time()
        thread.join(seconds / 5)
        passed = time.monotonic() - began
        computes = time.process_time() - computed >= max(BUSY * passed, LEAST_S)
        waited = 0.0 if computes else waited + passed
