"""The proxy of the tests does what it says; no test through it means anything else."""

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.fault_proxy import fault_proxy

BODY = bytes(range(256)) * 1000


class Files(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_PUT(self) -> None:
        size = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(201 if size == len(BODY) else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(url: str, **options: object) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=2) as answer:  # type: ignore[arg-type]
        data: bytes = answer.read()
    return data


def test_without_faults_all_passes_and_is_counted(endpoint: str) -> None:
    with fault_proxy(endpoint) as proxy:
        assert get(proxy.endpoint + "/a?x=1") == BODY and get(proxy.endpoint + "/b") == BODY
        assert get(proxy.endpoint + "/b", data=BODY, method="PUT") == b""
        counts = proxy.counts()
        assert (counts["requests"], counts["bytes"], counts["faults"]) == (3, 2 * len(BODY), {})
        assert counts["bytes_of"] == {"/a": len(BODY), "/b": len(BODY)}


@pytest.mark.slow("waits until a stalled body is given up")
@pytest.mark.parametrize(
    ("fault", "error"),
    [("resets", (ConnectionResetError, http.client.IncompleteRead)), ("stalls", TimeoutError)],
)
def test_bodies_that_do_not_come_to_their_end(endpoint: str, fault: str, error: type[Exception]) -> None:
    with fault_proxy(endpoint, **{fault: 1.0}, match="a$") as proxy:
        with pytest.raises(error):
            get(proxy.endpoint + "/a")
        assert get(proxy.endpoint + "/b") == BODY
        assert proxy.counts()["faults"] == {fault: 1}


def test_answers_that_are_wrong(endpoint: str) -> None:
    with fault_proxy(endpoint, slow_down=1.0) as proxy:
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(proxy.endpoint + "/a")
        assert caught.value.code == 503 and b"<Code>SlowDown</Code>" in caught.value.read()
        caught.value.close()
        proxy.set(slow_down=0, shorts=1.0)
        assert get(proxy.endpoint + "/a") == BODY[: len(BODY) // 2]
        proxy.set(shorts=0, flips=1.0)
        damaged = get(proxy.endpoint + "/a")
        assert sum((a ^ b).bit_count() for a, b in zip(damaged, BODY, strict=True)) == 1


def test_shares_are_those_asked_for(endpoint: str) -> None:
    with fault_proxy(endpoint, slow_down=0.3, seed=4) as proxy:
        failed = 0
        for _ in range(200):
            try:
                get(proxy.endpoint + "/a")
            except urllib.error.HTTPError as error:
                failed += 1
                error.close()
        assert failed == 60 and proxy.counts()["faults"] == {"slow_down": failed}
