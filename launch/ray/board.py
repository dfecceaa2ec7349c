"""The board between the driver of a Ray job and the processes of its parts."""

import time
from dataclasses import dataclass
from typing import Any

from dfer.errors import StoppedError, message


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a part ended for a reason that trying again does not mend."""

    code: int
    text: str


def silent(part: str, reason: str) -> Ending:
    """How a part ends that is to stop while it has no process that could save."""
    do = "The same command continues from the last checkpoint, if there is one."
    text = message(part, expected=f"a process at work that saves before the stop ({reason})", got="none", do=do)
    return Ending(code=StoppedError.exit_code, text=text)


class Board:
    """Endings by part, signs of life, what is worth a note, and the wish to stop. Lives beside the driver."""

    def __init__(self) -> None:
        self._endings: dict[str, Ending] = {}
        self._heard: dict[str, float] = {}
        self._notes: list[str] = []
        self._wish = ""

    def end(self, part: str, ending: Ending) -> None:
        """The first ending of a part stays."""
        self._endings.setdefault(part, ending)

    def endings(self) -> dict[str, Ending]:
        """Of all parts that have ended; of others another start may go on."""
        return dict(self._endings)

    def note(self, text: str) -> None:
        """Add a note for the driver to print."""
        self._notes.append(text)

    def news(self) -> list[str]:
        """Return the notes since the last call."""
        news, self._notes = self._notes, []
        return news

    def wish(self, reason: str) -> None:
        """Ask all parts to stop."""
        self._wish = self._wish or reason

    def hear(self, part: str) -> str:
        """A process of the part is at work; why it is to stop, empty when it is not."""
        self._heard[part] = time.monotonic()
        return self._wish

    def silence(self) -> dict[str, float]:
        """Seconds since a process of a part was heard last; parts of which none ever was are missing."""
        now = time.monotonic()
        return {part: now - heard for part, heard in self._heard.items()}


def make_board() -> Any:
    """Start a board as a Ray actor on the driver's host."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
