"""Write metrics.jsonl line by line: appended on a disk; on other stores rewritten as a whole from time to time."""

import json
import os
import threading
from collections.abc import Callable
from typing import IO

from dfer.errors import DferError
from dfer.storage import Folder, storage_error

SEND_EVERY_S = 15.0


class Journal:
    """Writer of one file of lines. A resume at `start_step` drops lines recorded after it.

    check: called before every write; raises when this process may no longer write.

    Raises (also `add`, `sync`):
        StorageError: the file cannot be written. Also any error that `check` raises.
    """

    def __init__(self, folder: Folder, name: str, *, start_step: int, check: Callable[[], None]) -> None:
        self._folder, self._name, self._check = folder, name, check
        self._lines = kept_lines(folder.text(name) or "", start_step)
        self._file: IO[str] | None = None
        self._sender: _Sender | None = None
        check()
        # Replace the file: an older copy of this run that still has it open then writes into the unlinked file.
        self._send()
        if folder.local is None:
            self._sender = _Sender(self._send)
        else:
            self._lines = []
            self._file = (folder.local / name).open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        """Add a line. It is in the file immediately on a disk, after some seconds on other stores."""
        if self._file is not None:
            self._check()
            self._on_disk(lambda file: file.write(line + "\n"))
        else:
            assert self._sender is not None
            self._lines.append(line)
            self._sender.wake()

    def sync(self) -> None:
        """Return when all lines are on stable storage and survive a power cut of this machine."""
        if self._file is not None:
            self._on_disk(lambda file: os.fsync(file.fileno()))
        else:
            self._send()

    def close(self) -> None:
        """Write remaining lines and close the file."""
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
    """Sends in a thread, so that training does not wait for the store; the next call raises an error of the thread."""

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
    """Return the lines up to `start_step`. Later steps are recorded again; a line truncated by a crash is dropped."""
    keep = []
    for line in text.splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(step, int) and step <= start_step:
            keep.append(line)
    return keep
