"""Threads that end with their process, whatever they are doing.

Those of `concurrent.futures` are waited for at exit: a worker would hang on a store that does not answer.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_Queue = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class Threads:
    """Up to `count` threads that do what is submitted, first come first served. They start with the first work, and end
    when this object goes."""

    def __init__(self, count: int, *, name: str) -> None:
        self._count, self._name = count, name
        self._work: _Queue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have a thread do it; the future gives its result or its error."""
        future: Future[T] = Future()
        self._work.put((future, work))
        with self._lock:
            if self._started < self._count:
                self._started += 1
                threading.Thread(
                    target=_run, args=(self._work,), daemon=True, name=f"{self._name}-{self._started}"
                ).start()
                weakref.finalize(self, self._work.put, None)
        return future


def _run(work: "_Queue") -> None:
    while (item := work.get()) is not None:
        future, call = item
        if future.set_running_or_notify_cancel():
            _fill(future, call)
        del item, future, call  # or their results stay in memory until the next work comes


def _fill(future: "Future[T]", work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        del future  # error -> traceback -> this frame -> future -> error
