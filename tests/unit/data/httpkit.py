"""An HTTP server of a folder that answers Range requests, counts them, and can be told to err."""

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Fault = Callable[[bytes], bytes | int | None]
"""From the body to what is sent instead: bytes under the old length, a status, or None for a connection cut off."""


@dataclass
class Site:
    """A running server. asked: (path, first byte, bytes) of every answered GET; faults: by path, for the next ones;
    together: answers are held back until so many requests wait for one."""

    folder: Path
    url: str = ""
    ranges: bool = True
    tags: bool = True
    together: threading.Barrier | None = None
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)

    def fault(self, path: str) -> Fault | None:
        left = self.faults.get(path, [])
        return left.pop(0) if left else self.always.get(path)

    def bytes_of(self, suffix: str) -> int:
        return sum(size for path, _, size in self.asked if path.endswith(suffix))


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Serve a folder until the block ends."""
    state = Site(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            try:
                data = (folder / path).read_bytes()
            except FileNotFoundError:
                self._answer(404, b"")
                return
            start, status, wanted = 0, 200, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and state.ranges:
                start, status = int(wanted[1]), 206
                data = data[start : int(wanted[2]) + 1]
                if not data:
                    self._answer(416, b"")
                    return
            if state.together:
                state.together.wait(60)
            state.asked.append((path, start, len(data)))
            fault = state.fault(path)
            sent = fault(data) if fault else data
            if isinstance(sent, int):
                self._answer(sent, b"")
            elif sent is None:
                self.close_connection = True
            else:
                self._answer(status, sent, length=len(data))

        def do_HEAD(self) -> None:
            try:
                status = (folder / self.path.lstrip("/")).stat()
                self._answer(200, b"", length=status.st_size, tag=f"{status.st_mtime_ns}-{status.st_size}")
            except FileNotFoundError:
                self._answer(404, b"")

        def _answer(self, status: int, body: bytes, *, length: int | None = None, tag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            if tag and state.tags:
                self.send_header("ETag", f'"{tag}"')
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = length not in (None, len(body))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            server.shutdown()
