"""Daemon threads, which do not delay the end of their process.

Python waits at exit for threads of `concurrent.futures`: a worker would hang on a store that does not answer.
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
    """Runs submitted work in up to `count` threads, in order of submission. Threads start with the first work and end
    when this object is deleted."""

    def __init__(self, count: int, *, name: str) -> None:
        self._count, self._name = count, name
        self._work: _Queue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Run `work` in a thread; the future holds its result or its error."""
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
        del item, future, call  # otherwise the result stays in memory until the next work is submitted


def _fill(future: "Future[T]", work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        del future  # error -> traceback -> this frame -> future -> error
