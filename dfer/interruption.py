"""A stop request, made by a signal or a launcher at any time and honoured between two steps, after saving.

The same signal again, REPEAT_S or more later, ends the process at once: it may be stuck in a collective operation or
on a store, where no step ends and Python's signal handlers do not run.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: kill, preemption by a scheduler. SIGUSR1, SIGUSR2: SLURM sends one some time before the time limit."""
ENDING_ON_REPEAT = (signal.SIGTERM, signal.SIGINT)
"""Signals that end the process when they are repeated. The others only ever request a stop."""
REPEAT_S = 1.0
"""Signals of one kind within this time count once: a terminal and a launcher may both forward the same one."""


class Stop:
    """A stop request, empty until one is made. Created once per process and passed as an argument; ranks agree on it
    between steps."""

    def __init__(self) -> None:
        self.reason = ""

    def request(self, reason: str) -> None:
        """Request a stop; the first reason is kept. Safe in a signal handler."""
        self.reason = self.reason or reason

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    @contextmanager
    def on_signals(self, signals: Sequence[signal.Signals] = SIGNALS) -> Iterator["Stop"]:
        """Turn these signals into stop requests within the block, and end the process when SIGTERM or SIGINT is
        repeated. Does nothing outside the main thread, where Python cannot set handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.request(signal.Signals(number).name)

        with _exit_on_repeat():
            before = {number: signal.signal(number, handle) for number in signals}
            try:
                yield self
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextmanager
def _exit_on_repeat() -> Iterator[None]:
    """Watch arriving signals in a separate thread, which also runs while the main thread is in C++."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True, name="repeated-signal")
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the thread reads end-of-file and returns
        watch.join()
        os.close(reader)


def _watch(reader: int) -> None:
    first: dict[int, float] = {}
    while numbers := os.read(reader, 64):
        for number in numbers:
            began = first.setdefault(number, time.monotonic())
            if number in ENDING_ON_REPEAT and time.monotonic() - began >= REPEAT_S:
                _exit(signal.Signals(number))


def _exit(number: signal.Signals) -> None:
    """Exit with the code of a process killed by the signal. Avoids Python's streams: their locks may be held."""
    text = f"interrupted; {number.name} came twice: ended without saving, the same command continues"
    os.write(2, f"{text} from the last checkpoint\n".encode())
    os._exit(128 + number)
