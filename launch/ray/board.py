"""An actor through which the driver of a Ray job and the processes of its parts exchange messages."""

import time
from dataclasses import dataclass
from typing import Any

from dfer.errors import StoppedError, message


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a part by an error that a retry cannot fix, or by a stop."""

    code: int
    text: str


def silent(part: str, reason: str) -> Ending:
    """Make the ending of a part that must stop while it has no process that could save."""
    do = "The same command continues from the last checkpoint, if there is one."
    text = message(part, expected=f"a running process that can save before the stop ({reason})", got="none", do=do)
    return Ending(code=StoppedError.exit_code, text=text)


class Board:
    """Holds endings by part, heartbeats, notes to print, and the stop request. Runs on the driver's host."""

    def __init__(self) -> None:
        self._endings: dict[str, Ending] = {}
        self._heartbeats: dict[str, float] = {}
        self._notes: list[str] = []
        self._stop_reason = ""

    def end(self, part: str, ending: Ending) -> None:
        """Record the ending of a part; the first one is kept."""
        self._endings.setdefault(part, ending)

    def endings(self) -> dict[str, Ending]:
        """Return the endings by part. Parts without one may be restarted."""
        return dict(self._endings)

    def note(self, text: str) -> None:
        """Add a note for the driver to print."""
        self._notes.append(text)

    def news(self) -> list[str]:
        """Return the notes since the last call."""
        news, self._notes = self._notes, []
        return news

    def request_stop(self, reason: str) -> None:
        """Request a stop of all parts; the first reason is kept."""
        self._stop_reason = self._stop_reason or reason

    def heartbeat(self, part: str) -> str:
        """Record a heartbeat of the part; returns the reason of the stop request, empty without one."""
        self._heartbeats[part] = time.monotonic()
        return self._stop_reason

    def since_heartbeat(self) -> dict[str, float]:
        """Return the seconds since the last heartbeat of each part; parts without any are missing."""
        now = time.monotonic()
        return {part: now - heard for part, heard in self._heartbeats.items()}


def make_board() -> Any:
    """Start a board as a Ray actor on the driver's host."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
