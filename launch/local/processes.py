"""Start the ranks of one job on this machine, forward their output, and end them together.

When a rank fails, the others end too: they notice by themselves (exit code 7) or are killed after GRACE_S. The job's
exit code is that of the first rank that failed by a root cause, not by the loss of another rank.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dfer.errors import ProcessError, StoppedError, message
from launch.local.rank import LAUNCHER
from launch.rendezvous import free_port

GRACE_S = 30.0
"""Time for the other ranks to notice that one failed, before they are killed."""
POLL_S = 0.05
# Printed by every rank; the launcher prints each distinct line once.
_LAST_WORDS = (b"error: ", b"interrupted; ")


@dataclass
class Rank:
    """One process. label: name of its job among several; prefix of each line that is forwarded.

    last_words: lines of its stderr that say why it ended. Those of the first rank are forwarded at once, those of the
    others are kept until all ranks have ended.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    label: str = ""
    partial: bytes = b""
    last_words: list[bytes] = field(default_factory=list)
    code: int | None = None
    killed: bool = False

    def listen(self) -> None:
        """Forward new lines of its stderr, except the last words. The first rank of a job without a label has no pipe
        and writes to the launcher's stderr itself."""
        pipe = self.process.stderr
        if pipe is None:
            return
        while data := _available(pipe.fileno()):
            *lines, self.partial = (self.partial + data).split(b"\n")
            for line in lines:
                self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        if self.number and line.startswith(_LAST_WORDS):
            self.last_words.append(line)
        else:
            _say(line, self.label)

    def finish(self) -> None:
        """Forward the remaining output of a process that has ended."""
        self.listen()
        if self.partial:
            self._pass_on(self.partial)
        if self.process.stderr is not None:
            self.process.stderr.close()


class Group:
    """All ranks of one job. Call `step` until `code` is set.

    label: name of this job among others that run at the same time. Its lines are then printed with the label, and
    without progress bars, which would overwrite each other.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        processes: int,
        environment: Mapping[str, str],
        grace_s: float = GRACE_S,
        label: str = "",
    ) -> None:
        self._grace_s, self._failed_at, self._forwarded = grace_s, 0.0, set[int]()
        self._label = label
        self._ended: list[Rank] = []
        self.code: int | None = None
        own = {**environment, **meeting_place(processes), LAUNCHER: str(os.getpid())}
        self.ranks = [_start(arguments, own, number, label) for number in range(processes)]

    def step(self) -> None:
        """Forward output, record ranks that ended, and kill the others once GRACE_S has passed after a failure."""
        for rank in [rank for rank in self.ranks if rank.code is None]:
            rank.listen()
            if (code := rank.process.poll()) is not None:
                rank.code = code
                rank.finish()
                self._ended.append(rank)
                if code and not self._failed_at:
                    self._failed_at = time.monotonic()
        if self._failed_at and time.monotonic() - self._failed_at > self._grace_s:
            self.kill()
        if len(self._ended) == len(self.ranks) and self.code is None:
            self.code = self._conclude()

    def forward(self, number: int) -> None:
        """Send a signal to every running rank."""
        self._forwarded.add(number)
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def kill(self) -> None:
        """Kill every rank and the workers that it started."""
        for rank in self.ranks:
            if rank.code is None and not rank.killed:
                rank.killed = True
                _kill_session(rank.process.pid)

    def _conclude(self) -> int:
        """Determine the exit code; first print the last words of the ranks that ended with it."""
        own = [rank for rank in self._ended if not rank.killed and rank.code not in (0, ProcessError.exit_code)]
        if own and own[0].code is not None and own[0].code < 0:
            return self._killed(own[0], -own[0].code)
        if own:
            code = own[0].code or 0
        elif any(rank.code == ProcessError.exit_code for rank in self._ended):
            code = ProcessError.exit_code
        else:
            code = int(any(rank.killed for rank in self._ended))
        self._tell(code)
        return code

    def _tell(self, code: int) -> None:
        """Print the last words of the ranks that ended with this code, each distinct line once. Those of the first rank
        are printed already."""
        if self.ranks[0].code == code:
            return
        for line in dict.fromkeys(line for rank in self._ended if rank.code == code for line in rank.last_words):
            _say(line, self._label)

    def _killed(self, rank: Rank, number: int) -> int:
        where = f"process {rank.number} of {len(self.ranks)}"
        name = signal.Signals(number).name
        error: ProcessError | StoppedError
        if number in self._forwarded:
            do = "Nothing was lost; the same command starts or continues the run."
            expected, got = "a stop request after the start", f"{name} while it was starting"
            error = StoppedError(message(where, expected=expected, got=got, do=do))
        else:
            do = "The same command continues from the last checkpoint; SIGKILL often means that memory ran out."
            error = ProcessError(message(where, expected="to run to its end", got=name, do=do))
        _say(f"error: {error}".encode(), self._label)
        return error.exit_code


def meeting_place(processes: int) -> dict[str, str]:
    """Return the variables for the rendezvous address and the number of ranks."""
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **sizes}


def _start(arguments: Sequence[str], environment: Mapping[str, str], number: int, label: str) -> Rank:
    """Start a rank in its own session, so that a terminal's Ctrl-C reaches it once, through the launcher."""
    own = {**environment, "RANK": str(number), "LOCAL_RANK": str(number)}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.local.rank", *arguments],
        env=own,
        start_new_session=True,
        stderr=subprocess.PIPE if number or label else None,
    )
    if process.stderr is not None:
        os.set_blocking(process.stderr.fileno(), False)
    return Rank(number, process, label)


def _available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _kill_session(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _say(line: bytes, label: str) -> None:
    text = line.decode(errors="replace")
    print(f"{label}: {text}" if label else text, file=sys.stderr, flush=True)


def wait(groups: Sequence[Group]) -> None:
    """Sleep until a rank writes to stderr, at most POLL_S."""
    with selectors.DefaultSelector() as selector:
        for group in groups:
            for rank in group.ranks:
                if rank.process.stderr is not None and not rank.process.stderr.closed:
                    selector.register(rank.process.stderr, selectors.EVENT_READ)
        selector.select(POLL_S)
