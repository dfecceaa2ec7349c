"""Run a blocking call with a timeout."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dfer.errors import StorageError, message

T = TypeVar("T")
BUSY = 0.01
"""A process that uses at least this share of a core is computing; one that waits for a store uses far less."""
LEAST_S = 0.005
"""CPU time in seconds below which a process is not computing: waking up takes some, too."""
MORE_S = 300.0
"""How much longer a computing process may take, for example to import a client on a busy machine."""


def with_timeout(seconds: float, work: Callable[[], T], *, what: str) -> T:
    """Return the result of `work`, or raise its error. what: the address that it needs, for the message.

    Raises:
        StorageError: there is no result and the process has not computed for `seconds`, or `seconds` + MORE_S are over.
            The daemon thread in which the call hangs ends with the process.
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
    """Wait until the thread ends, this process has not computed for `seconds`, or `seconds` + MORE_S are over."""
    waited, last = 0.0, time.monotonic() + seconds + MORE_S
    while thread.is_alive() and waited < seconds and time.monotonic() < last:
        began, computed = time.monotonic(), time.process_time()
        thread.join(seconds / 5)
        passed = time.monotonic() - began
        computes = time.process_time() - computed >= max(BUSY * passed, LEAST_S)
        waited = 0.0 if computes else waited + passed
