"""An HTTP proxy in front of an object store that answers some requests with the faults real stores have.

It is a process of its own, so that it takes no time from the interpreter of the test. Faults are drawn from a seed and
may be changed while it runs.

    with rclone(folder) as server, fault_proxy(server.endpoint, slow_down=0.05, resets=0.02, stalls=0.01) as proxy:
        environment = S3(proxy.endpoint).environment
        ...
        proxy.counts()["bytes"]
"""

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PIECE = 64 * 1024
CONTROL = "/-/fault-proxy"
KINDS = ("slow_down", "resets", "stalls", "shorts", "flips")
DECK = 100
"""Of so many requests one after another each kind of fault meets exactly its share, in a random order."""
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of the requests whose path fits `match`, 0 to 1, in hundredths; at most one fault a request.

    slow_down: 503 SlowDown at once. resets: the connection is reset midway in the body. stalls: nothing more comes from
    midway on, for `stall_s`. shorts: a whole answer of half the length. flips: one bit of the body is wrong. rate:
    bytes a second of one connection, 0 = as fast as it goes. latency_s: before every answer.
    """

    slow_down: float = 0.0
    resets: float = 0.0
    stalls: float = 0.0
    shorts: float = 0.0
    flips: float = 0.0
    stall_s: float = 3600.0
    rate: float = 0.0
    latency_s: float = 0.0
    match: str = ""
    seed: int = 1


@dataclass(frozen=True)
class FaultProxy:
    """A running proxy. endpoint: what clients are given instead of the store's own."""

    endpoint: str

    def counts(self) -> dict[str, Any]:
        """requests, bytes (of the bodies of answers passed on), faults by name, and bytes_of: GET bytes by path."""
        with urllib.request.urlopen(self.endpoint + CONTROL, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def set(self, **changes: Any) -> None:
        """Change faults while it runs."""
        data = json.dumps(changes).encode()
        with urllib.request.urlopen(self.endpoint + CONTROL, data=data, timeout=10) as answer:
            assert answer.status == 200


@contextmanager
def fault_proxy(endpoint: str, *, port: int = 0, **faults: Any) -> Iterator[FaultProxy]:
    """Run a proxy before `endpoint` (http://HOST:PORT) until the block ends. port: its own; 0 = any that is free."""
    settings = json.dumps(asdict(Faults(**faults)))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), endpoint, settings, str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield FaultProxy(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@dataclass
class _Head:
    """First line and headers of a request or an answer."""

    first: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def without(self, *names: str) -> "_Head":
        return _Head(self.first, [(key, value) for key, value in self.headers if key.lower() not in names])

    def bytes(self) -> bytes:
        lines = [self.first, *(f"{key}: {value}" for key, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Proxy:
    def __init__(self, endpoint: str, faults: Faults) -> None:
        address = urllib.parse.urlsplit(endpoint)
        self.host, self.port = address.hostname or "", address.port or 80
        self.set(faults)
        self.counts: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.bytes_of: Counter[str] = Counter()

    def set(self, faults: Faults) -> None:
        self.faults, self.random, self.deck = faults, random.Random(faults.seed), list[str]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (head := await _read_head(reader)) is not None:
                if head.get("expect"):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = b"".join([piece async for piece in _body(reader, _length(head))])
                if head.first.split()[1] == CONTROL:
                    writer.write(self._control(body))
                elif (fault := self._draw(head)) == "slow_down":
                    writer.write(_slow_down(head))
                else:
                    store = store or await asyncio.open_connection(self.host, self.port, limit=2**20)
                    await self._pass_on(head, body, fault, store, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, _Cut):
            pass
        finally:
            _abort(writer)
            if store:
                _abort(store[1])

    def _draw(self, head: _Head) -> str:
        self.counts["requests"] += 1
        if not re.search(self.faults.match, urllib.parse.unquote(head.first.split()[1])):
            return ""
        if not self.deck:
            self.deck = [name for name in KINDS for _ in range(round(DECK * getattr(self.faults, name)))]
            self.deck += [""] * (DECK - len(self.deck))
            self.random.shuffle(self.deck)
        fault = self.deck.pop()
        if fault:
            self.faulty[fault] += 1
        return fault

    async def _pass_on(self, head: _Head, body: bytes, fault: str, store: Any, writer: asyncio.StreamWriter) -> None:
        store[1].write(head.without("expect").bytes() + body)
        await asyncio.sleep(self.faults.latency_s)
        answer = await _read_head(store[0])
        if answer is None:
            raise _Cut
        wire = _length(answer, empty=head.first.startswith("HEAD"))
        length = wire or 0
        at = self.random.randrange(length) if length else 0
        kept = length // 2 if fault == "shorts" else length
        if kept != length:
            answer = _Head(answer.first, [*answer.without("content-length").headers, ("Content-Length", str(kept))])
        writer.write(answer.bytes())
        passed = 0
        async for piece in _body(store[0], wire):
            if kept != length:
                piece = piece[: max(0, kept - passed)]
            if fault in ("resets", "stalls") and passed + len(piece) >= at:
                await self._cut(writer, piece[: at - passed], fault)
            if fault == "flips" and passed <= at < passed + len(piece):
                piece = piece[: at - passed] + bytes([piece[at - passed] ^ 1]) + piece[at - passed + 1 :]
            writer.write(piece)
            await writer.drain()
            passed += len(piece)
            self._count(head, len(piece))
            if self.faults.rate:
                await asyncio.sleep(len(piece) / self.faults.rate)
        if fault in ("resets", "stalls") and not length:
            await self._cut(writer, b"", fault)

    async def _cut(self, writer: asyncio.StreamWriter, piece: bytes, fault: str) -> None:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(self.faults.stall_s if fault == "stalls" else 0)
        raise _Cut

    def _count(self, head: _Head, size: int) -> None:
        self.counts["bytes"] += size
        method, path, *_ = head.first.split()
        if method == "GET":
            self.bytes_of[urllib.parse.unquote(path.partition("?")[0])] += size

    def _control(self, body: bytes) -> bytes:
        if body:
            self.set(replace(self.faults, **json.loads(body)))
        plain = {**self.counts, "faults": self.faulty, "bytes_of": self.bytes_of}
        data = json.dumps({"requests": 0, "bytes": 0} | plain).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


class _Cut(Exception):
    """The connection is to end here."""


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return _Head(first, [(key, value.strip()) for key, _, value in pairs])


def _length(head: _Head, *, empty: bool = False) -> int | None:
    """Bytes of the body behind this head, None = chunked."""
    if empty:
        return 0
    if (head.get("transfer-encoding") or "").lower() == "chunked":
        return None
    return int(head.get("content-length") or 0)


async def _body(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """The body's bytes as they are on the wire, chunked encoding included."""
    while length is None:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        yield line + await reader.readexactly(size + 2)
        if size == 0:
            return
    while length:
        piece = await reader.read(min(length, PIECE))
        if not piece:
            raise _Cut
        length -= len(piece)
        yield piece


def _slow_down(head: _Head) -> bytes:
    body = b"" if head.first.startswith("HEAD") else SLOW_DOWN
    start = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
    return start % len(SLOW_DOWN) + body


def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset rather than close, so that what is still under way is lost as well."""
    own = writer.get_extra_info("socket")
    if own is not None:
        with suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def _main(endpoint: str, settings: str, port: str) -> None:
    proxy = _Proxy(endpoint, Faults(**json.loads(settings)))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", int(port), limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
