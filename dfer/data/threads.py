"""Threads that end with their process, whatever they are doing.

Those of `concurrent.futures` are waited for at exit: a worker would hang on a store that does not answer.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Up to `count` threads that do what is submitted, first come first served. They start with the first work."""

    def __init__(self, count: int, *, name: str) -> None:
        self._count, self._name = count, name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have a thread do it; the future gives its result or its error."""
        future: Future[T] = Future()
        self._work.put((future, work))
        with self._lock:
            if self._started < self._count:
                self._started += 1
                threading.Thread(target=self._run, daemon=True, name=f"{self._name}-{self._started}").start()
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            if future.set_running_or_notify_cancel():
                _fill(future, work)
            del future, work  # or their results stay in memory until the next work comes


def _fill(future: "Future[T]", work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        del future  # error -> traceback -> this frame -> future -> error
