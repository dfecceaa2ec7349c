"""metrics.jsonl, line by line: appended to on a disk, and elsewhere sent as a whole from time to time."""

import json
import os
import threading
from collections.abc import Callable
from typing import IO

from dfer.errors import DferError
from dfer.storage import Folder, storage_error

SEND_EVERY_S = 15.0


class Journal:
    """The lines of one file. Continuing at `start_step` drops what was recorded after it.

    check: called before anything is written; raises when this process may not write any more.

    Raises (also `add`, `sync`):
        StorageError: it cannot be written. What `check` raises.
    """

    def __init__(self, folder: Folder, name: str, *, start_step: int, check: Callable[[], None]) -> None:
        self._folder, self._name, self._check = folder, name, check
        self._lines = kept_lines(folder.text(name) or "", start_step)
        self._file: IO[str] | None = None
        self._sender: _Sender | None = None
        check()
        # A new file in the place of the old one: a copy of this run that still has that open writes into nothing.
        self._send()
        if folder.local is None:
            self._sender = _Sender(self._send)
        else:
            self._lines = []
            self._file = (folder.local / name).open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        """One more line; it is in the file at once on a disk, after some seconds elsewhere."""
        if self._file is not None:
            self._check()
            self._on_disk(lambda file: file.write(line + "\n"))
        else:
            assert self._sender is not None
            self._lines.append(line)
            self._sender.wake()

    def sync(self) -> None:
        """Return when everything is where it outlives this machine's power."""
        if self._file is not None:
            self._on_disk(lambda file: os.fsync(file.fileno()))
        else:
            self._send()

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._on_disk(lambda file: file.close())
        elif self._sender is not None:
            self._sender.close()

    def _on_disk(self, work: Callable[[IO[str]], object]) -> None:
        assert self._file is not None
        try:
            work(self._file)
            if not self._file.closed:
                self._file.flush()
        except OSError as error:
            raise storage_error(self._folder.where(self._name), error, doing="to write metrics") from error

    def _send(self) -> None:
        self._check()
        self._folder.write(self._name, "".join(f"{line}\n" for line in self._lines).encode())


class _Sender:
    """Sends in a thread, so that training does not wait for the store; an error is told at the next occasion."""

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self._problem: DferError | None = None
        self._dirty, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._raise()
        self._dirty.set()

    def close(self) -> None:
        self._end.set()
        self._dirty.set()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        while not self._end.is_set():
            self._dirty.wait()
            self._dirty.clear()
            try:
                self._send()
            except DferError as error:
                self._problem = error
                return
            self._end.wait(SEND_EVERY_S)
        try:
            self._send()
        except DferError as error:
            self._problem = error


def kept_lines(text: str, start_step: int) -> list[str]:
    """Lines up to `start_step`; later ones will be written again, and a line cut short by a crash is dropped."""
    keep = []
    for line in text.splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(step, int) and step <= start_step:
            keep.append(line)
    return keep
