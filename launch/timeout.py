"""Run a blocking call with a timeout."""

import threading
from collections.abc import Callable
from typing import TypeVar

from dfer.errors import StorageError, message

T = TypeVar("T")


def with_timeout(seconds: float, work: Callable[[], T], *, what: str) -> T:
    """Return the result of `work`, or raise its error. what: the address that it needs, for the message.

    Raises:
        StorageError: it takes longer than `seconds`. The daemon thread in which it hangs ends with the process.
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
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        do = "Check the URL, the network and the credentials that the store needs."
        raise StorageError(message(what, expected=f"an answer within {seconds:g} s", got="none", do=do))
    return results[0]
