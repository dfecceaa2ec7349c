"""A wish to stop: made by a signal or a launcher at any moment, granted between two steps, when all is saved.

The same signal once more, AGAIN_S or more later, ends the process at once: it may be stuck in a collective operation or
on a store, where no step ends and Python's own handlers do not run.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: kill, schedulers' preemption; SIGUSR1, SIGUSR2: what SLURM is told to send some time before the end."""
INSISTENT = (signal.SIGTERM, signal.SIGINT)
"""Those that end the process when they come again. The others only ever ask."""
AGAIN_S = 1.0
"""Within this time the same signal counts once: a terminal and a launcher may both pass it on."""


class Stop:
    """Holds at most one wish. Made once a process and passed on as a value; ranks agree on it between steps."""

    def __init__(self) -> None:
        self.reason = ""

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason stays. Safe in a signal handler."""
        self.reason = self.reason or reason

    @property
    def requested(self) -> bool:
        return bool(self.reason)

    @contextmanager
    def on_signals(self, signals: Sequence[signal.Signals] = SIGNALS) -> Iterator["Stop"]:
        """Take these signals as wishes for the length of the block, and end the process when SIGTERM or SIGINT comes
        a second time; only the main thread can, others pass."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.request(signal.Signals(number).name)

        with _ending_on_the_second():
            before = {number: signal.signal(number, handle) for number in signals}
            try:
                yield self
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextmanager
def _ending_on_the_second() -> Iterator[None]:
    """Watch the signals that arrive from a thread of its own, which runs also while the main one is in C++."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True, name="second-signal")
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # the thread reads the end
        watch.join()
        os.close(reader)


def _watch(reader: int) -> None:
    first: dict[int, float] = {}
    while numbers := os.read(reader, 64):
        for number in numbers:
            began = first.setdefault(number, time.monotonic())
            if number in INSISTENT and time.monotonic() - began >= AGAIN_S:
                _end(signal.Signals(number))


def _end(number: signal.Signals) -> None:
    """End with the code of a process that the signal killed. Python's streams are not used: locks may be held."""
    text = f"interrupted; {number.name} came twice: ended without saving, the same command continues"
    os.write(2, f"{text} from the last checkpoint\n".encode())
    os._exit(128 + number)
