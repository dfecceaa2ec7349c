"""Run one function over many items in processes, with a progress bar, ordered results and a clean shutdown."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeVar

import cv2
from tqdm import tqdm

from dfer.errors import StorageError, message

A = TypeVar("A")
B = TypeVar("B")

TURN_S = 0.2
"""Seconds between two looks at the workers' progress and at Ctrl-C."""

_on_tick: Callable[[int], None] | None = None


class Stopped(Exception):
    """Raised in a worker when the run is being stopped."""


def tick(amount: int) -> None:
    """Report `amount` units of progress from within the function. Raises Stopped if the run is being stopped."""
    if _on_tick is not None:
        _on_tick(amount)


def run(function: Callable[[A], B], items: Sequence[A], *, jobs: int, bar: "tqdm[Any]") -> list[B]:
    """Compute `[function(item) for item in items]` in up to `jobs` processes; the bar shows the sum of `tick`.

    Raises:
        StorageError: a process was killed from outside.
        Exception: the first one that the function raised; the other processes stop at their next `tick`.
    """
    if jobs <= 1 or len(items) <= 1:
        return _run_here(function, items, bar)
    context = multiprocessing.get_context("spawn")
    ticks, stop = context.Value("Q", 0), context.Event()
    workers = min(jobs, len(items))
    with (
        _ctrl_c_as_flag() as raise_if_interrupted,
        ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(ticks, stop)) as pool,
    ):
        with _interrupts_held():
            futures = [pool.submit(function, item) for item in items]
        try:
            _follow(futures, ticks, bar, raise_if_interrupted)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise StorageError(
                message(
                    "worker process",
                    expected="to finish its work",
                    got="killed, most likely because memory ran out",
                    do="Run the same command again with fewer --jobs; what is finished is kept.",
                )
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def progress_bar(total: int, *, label: str, unit: str, show: bool = True) -> "tqdm[Any]":
    """Make a progress bar on the error stream; in a log file it prints only one line every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        desc=label,
        unit=f" {unit}",
        unit_scale=total >= 100_000,
        disable=not show,
        mininterval=interval,
        smoothing=0.1,
        file=sys.stderr,
    )


def default_jobs() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def _run_here(function: Callable[[A], B], items: Sequence[A], bar: "tqdm[Any]") -> list[B]:
    global _on_tick

    def show(amount: int) -> None:
        bar.update(amount)

    _on_tick = show
    try:
        return [function(item) for item in items]
    finally:
        _on_tick = None


def _follow(
    futures: "Sequence[Future[Any]]", ticks: Any, bar: "tqdm[Any]", raise_if_interrupted: Callable[[], None]
) -> None:
    """Show progress until every future is done. Raises the first error of a future, and KeyboardInterrupt."""
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    left = len(futures)
    while left:
        raise_if_interrupted()
        with suppress(Empty):
            done.get(timeout=TURN_S).result()
            left -= 1
        bar.update(ticks.value - bar.n)


@contextmanager
def _ctrl_c_as_flag() -> Iterator[Callable[[], None]]:
    """Make Ctrl-C (SIGINT) set a flag within the block. The yielded function raises KeyboardInterrupt if the flag is
    set, and so does the end of the block; a second Ctrl-C raises at once.

    A KeyboardInterrupt at any other point could leave a lock of the pool or of `ticks` taken, and the shutdown of the
    pool would wait for it for ever. Does nothing outside the main thread, and if SIGINT is ignored or has a handler.
    """
    came = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def raise_if_came() -> None:
        if came:
            raise KeyboardInterrupt

    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        yield raise_if_came
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield raise_if_came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    raise_if_came()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT (Ctrl-C) in this process and in processes started within the context; `_start_worker` then makes
    these ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(ticks: Any, stop: Any) -> None:
    """Set up a new process: count ticks, ignore Ctrl-C, which the parent handles, and end with the parent."""
    global _on_tick

    def count(amount: int) -> None:
        if stop.is_set():
            raise Stopped
        with ticks.get_lock():
            ticks.value += amount

    _on_tick = count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Otherwise a worker that waits for tasks would continue after its parent was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
