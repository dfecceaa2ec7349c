"""A wish to stop: made by a signal or a launcher at any moment, granted between two steps, when all is saved."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM: kill, schedulers' preemption; SIGUSR1, SIGUSR2: what SLURM is told to send some time before the end."""


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
        """Take these signals as wishes for the length of the block; only the main thread can, others pass."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.request(signal.Signals(number).name)

        before = {number: signal.signal(number, handle) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
