"""The driver of a Ray job: runs each part in a thread, updates the record, and forwards stop requests."""

import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from dfer.cli import INTERRUPTED
from dfer.errors import DferError, FencedError, ProcessError, StoppedError, StorageError, message
from dfer.exit import exit_now
from dfer.storage import Folder
from launch.cluster import RayCluster
from launch.job import LAUNCH
from launch.ray.board import Ending, make_board, silent
from launch.ray.cluster import room_in, room_needed, submission_id, too_small
from launch.records import Record, keep, records

HEARTBEAT_S = 10.0
POLL_S = 0.5
HEARTBEAT_TIMEOUT_S = 30.0
"""A part without a heartbeat for this time has no running process."""
NOTE_S = 20.0
"""Time after which processes that have not started are reported; usually they take half of it."""


Fit = Callable[[str, Any, str], None]
"""Runs the part of a name, given the board and the driver's mark; returns when Ray has ended its processes for good."""


class Driver:
    """Runs as many parts at a time as fit into the cluster.

    closed: reason of a stop of all parts, empty without one. abandoned: parts whose threads still wait in Ray.
    """

    def __init__(
        self, cluster: RayCluster, home: Folder, parts: Sequence[str], fit: Fit, *, address: str, revision: str
    ) -> None:
        """parts: names of the parts to run. address: of the job server; revision: of the code."""
        self._cluster, self._home, self._waiting, self._do = cluster, home, list(parts), fit
        self._board: Any = make_board()
        self._threads: dict[str, threading.Thread] = {}
        self._codes: dict[str, int] = {}
        self._since: dict[str, float] = {}
        """Time at which each part began to wait for its processes."""
        self._told: set[str] = set()
        """Parts of which the wait was reported."""
        self._free = (float("-inf"), "")
        """Time of the last query of the cluster's free resources, and its result."""
        self._older: set[str] | None = None
        """Files of the records that existed before this job, and its own; None until they could be listed."""
        self.closed = ""
        self.abandoned: list[str] = []
        self._overtaken = self._unrecorded = self._unlisted = False
        self._lock = threading.Lock()
        """Protects `_record`, `_beaten` and `_codes`, which the parts' threads also change."""
        self._beaten = 0.0
        self._mark = "" if home.local is None else f"{LAUNCH}/.shared-{secrets.token_hex(8)}"
        number = submission_id()
        self._record = Record(
            launcher="ray",
            job=number or f"{socket.gethostname()}-{os.getpid()}",
            submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
            revision=revision,
            tasks=dict.fromkeys(parts, number or "driver"),
            states=dict.fromkeys(parts, "waiting"),
            address=address if number else "",
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def run(self) -> int:
        """Run until every part has ended; returns the exit code of the first that failed.

        Raises:
            UsageError: the cluster has no room for a part. StorageError: the run folder cannot be written.
        """
        room = self._room()
        keep(self._home, self._renewed())
        self._yield_to_newer_job()
        with self._marked(), self._signals():
            while self._waiting or self._threads:
                while self._waiting and len(self._threads) < room and not self.closed:
                    self._start(self._waiting.pop(0))
                if self.closed and not self._at_work():
                    break
                time.sleep(POLL_S)
                self._look_after()
        self._leave()
        self._write_heartbeat(force=True)
        codes = [code for code in self._codes.values() if code]
        if self._overtaken or FencedError.exit_code in codes:
            return FencedError.exit_code
        return next(iter(codes), 0)

    def _room(self) -> int:
        """Return how many parts can run at a time. Waits up to `wait_s` for hosts that are joining.

        Raises:
            UsageError: the cluster has no room for a part.
        """
        until = time.monotonic() + self._cluster.wait_s
        while (room := room_in(self._cluster)) < 1:
            if time.monotonic() > until:
                raise too_small(self._cluster)
            time.sleep(1)
        return min(room, self._cluster.parallel_parts or room)

    # --- a part from its start to its end

    def _start(self, part: str) -> None:
        thread = threading.Thread(target=self._fit, args=(part,), name=part, daemon=True)
        self._threads[part] = thread
        thread.start()

    def _fit(self, part: str) -> None:
        """Run a part (in its thread): Ray starts its processes, and restarts them when one is lost, up to
        `max_failures` times."""
        import ray

        problem = ""
        try:
            self._do(part, self._board, self._mark)
        except Exception as error:
            problem = _first_line(error)
        if part in self.abandoned:
            return
        ending: Ending | None = ray.get(self._board.endings.remote()).get(part)
        if ending is None and problem:
            do = "The same command continues from the last checkpoint."
            expected = f"at most {self._cluster.max_failures} lost processes"
            text = message(part, expected=expected, got=problem, do=do)
            ending = Ending(code=ProcessError.exit_code, text=text)
        self._end(part, ending or Ending(code=0, text=""))

    def _end(self, part: str, ending: Ending) -> None:
        with self._lock:
            if part in self._codes:
                return
            self._codes[part] = ending.code
        if ending.text:
            print(f"error: {ending.text}", file=sys.stderr, flush=True)
        self._say(part, _state(ending.code) + (f": {ending.text}" if ending.text else ""))

    def _look_after(self) -> None:
        import ray

        for note in ray.get(self._board.news.remote()):
            print(f"note: {note}", file=sys.stderr, flush=True)
        endings: dict[str, Ending] = ray.get(self._board.endings.remote())
        for part, ending in endings.items():
            self._end(part, ending)
        at_work = self._at_work()
        for part, thread in list(self._threads.items()):
            if not thread.is_alive():
                del self._threads[part]
            elif part in at_work:
                self._since.pop(part, None)
                self._told.discard(part)
                self._say_meanwhile(part, "running")
            elif part in endings:  # Ray would restart it only to return at once, and has no room
                self.abandoned.append(part)
                del self._threads[part]
            else:
                self._say_meanwhile(part, f"waiting: {self._wait(part)}")
        if FencedError.exit_code in self._codes.values() and not self.closed:
            self._close("a newer copy of this job is at work")
        self._write_heartbeat()

    def _at_work(self) -> list[str]:
        """List the parts with a recent heartbeat."""
        import ray

        silence: dict[str, float] = ray.get(self._board.since_heartbeat.remote())
        return [part for part in self._threads if silence.get(part, HEARTBEAT_TIMEOUT_S) < HEARTBEAT_TIMEOUT_S]

    def _wait(self, part: str) -> str:
        """Describe what a part without a process waits for; prints it once after NOTE_S."""
        now = time.monotonic()
        began = self._since.setdefault(part, now)
        if now - began < NOTE_S:
            return "its processes start"
        if now - self._free[0] > HEARTBEAT_S:
            self._free = (now, room_needed(self._cluster))
        why = f"no process of it has started or answers; it takes {self._free[1]}"
        if part not in self._told:
            do = "`ray status` shows what uses the resources."
            print(f"note: {part}: {why}. {do}", file=sys.stderr, flush=True)
            self._told.add(part)
        return why

    # --- the end of all

    def _close(self, reason: str) -> None:
        self.closed = reason
        self._board.request_stop.remote(reason)

    def _leave(self) -> None:
        """End parts that have no process to save and stop; their requests in Ray's queue end with the driver."""
        self.abandoned += [
            part for part, thread in self._threads.items() if thread.is_alive() and self._codes.get(part) != 0
        ]
        for part in (*self._threads, *self._waiting):
            self._end(part, silent(part, self.closed))

    def _yield_to_newer_job(self) -> None:
        """Request a stop when a newer job of this run has all of these parts: it may need their resources."""
        try:
            kept = {record.file: record for record in records(self._home) if record.launcher == "ray"}
        except DferError as error:  # the store does not answer, or a file is no record
            if not self._unlisted:
                note = f"note: newer jobs of this run cannot be looked for: {error}"
                print(note, file=sys.stderr, flush=True)
            self._unlisted = True
            return
        if self._older is None:
            self._older = {*kept, self._record.file}
        mine = {*self._waiting, *self._threads}
        for file in kept.keys() - self._older:
            wanted = {part for part, state in kept[file].states.items() if state.startswith(("waiting", "running"))}
            if not self.closed and mine and mine <= wanted:
                self._overtaken = True
                expected, got = "this to be the newest job of the run", f"{kept[file].job}, submitted after it"
                do = "The parts save and stop; that one continues them."
                print(f"error: {message(self._home, expected=expected, got=got, do=do)}", file=sys.stderr, flush=True)
                self._close("a newer job of this run was submitted")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn `ray job stop` and Ctrl-C into a stop request; a second Ctrl-C exits at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self.closed and number == signal.SIGINT:
                exit_now(INTERRUPTED)
            self._close(signal.Signals(number).name)

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- what is left in the run folder

    def _say(self, part: str, state: str) -> None:
        with self._lock:
            self._set(part, state)

    def _say_meanwhile(self, part: str, state: str) -> None:
        """As `_say`, unless the part's ending is already recorded."""
        with self._lock:
            if part not in self._codes:
                self._set(part, state)

    def _set(self, part: str, state: str) -> None:
        before = self._record.states.get(part, "")
        self._record = replace(self._record, states={**self._record.states, part: state})
        if before.partition(":")[0] != state.partition(":")[0]:
            self._beaten = 0.0  # a new state is written at once, a new detail of the same state with the next heartbeat

    def _renewed(self) -> Record:
        with self._lock:
            self._beaten = time.monotonic()
            return replace(self._record, beat=time.time())

    def _write_heartbeat(self, *, force: bool = False) -> None:
        """Write the heartbeat into the record, and look for newer jobs of the same run. When the store does not answer,
        retry at the next heartbeat: an error here would end all parts, which survive an outage by themselves."""
        if not force and time.monotonic() - self._beaten <= HEARTBEAT_S:
            return
        try:
            keep(self._home, self._renewed())
            self._unrecorded = False
        except StorageError as error:
            if not self._unrecorded:
                note = f"note: the parts go on, but `dfer-launch status` is behind: {error}"
                print(note, file=sys.stderr, flush=True)
            self._unrecorded = True
        if not self._unrecorded and not self.closed:
            self._yield_to_newer_job()

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Create a marker file in a run folder on a disk while parts run: each host checks that it sees the file."""
        if self._mark:
            self._home.write(self._mark, b"")
        try:
            yield
        finally:
            if self._mark:
                with suppress(StorageError):
                    self._home.remove(self._mark)


def _state(code: int) -> str:
    return {0: "finished", StoppedError.exit_code: "stopped", FencedError.exit_code: "stopped"}.get(code, "failed")


def _first_line(error: BaseException) -> str:
    """Shorten an error to its cause in one line; Ray's text is a page long."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {shlex.join(lines[-1:])[:300]}" if lines else type(cause).__name__
