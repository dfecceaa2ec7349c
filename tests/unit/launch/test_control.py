"""logs, cancel of a Ray job: what its job server says, and that there is none."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from dfer.errors import UsageError
from dfer.storage import Folder
from launch import __main__ as cli
from launch import control
from launch.local.processes import free_port
from launch.records import Record, keep

DO = (
    "Run this where the job server can be reached, as on the head node, or set RAY_ADDRESS to its address. "
    "`ray start --head --dashboard-host=0.0.0.0` opens it to other hosts."
)


class JobServer(BaseHTTPRequestHandler):
    """Ray's, for one job; `answers` by the end of the path."""

    answers: dict[str, tuple[int, Any]]

    def _answer(self) -> None:
        code, text = next(answer for path, answer in self.answers.items() if self.path.endswith(path))
        data = json.dumps(text).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address."""
    answers = {
        "version": (200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}),
        "logs": (200, {"logs": "one\ntwo\nthree\n"}),
        "stop": (200, {"stopped": True}),
    }
    monkeypatch.setattr(JobServer, "answers", answers, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as opened:
        threading.Thread(target=opened.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{opened.server_port}"
        opened.shutdown()


@pytest.fixture(autouse=True)
def no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # no job server: not to be asked
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def submitted(run: Path, address: str) -> None:
    record = Record(
        launcher="ray",
        job="raysubmit_7",
        submitted="2026-01-01",
        revision="abc",
        tasks={"fold_1": "raysubmit_7"},
        states={"fold_1": "running"},
        address=address,
    )
    keep(Folder(run), record)


def test_the_job_server_is_asked_and_told(tmp_path: Path, server: str) -> None:
    submitted(tmp_path, server)
    assert control.logs(str(tmp_path), "fold_1", lines=2) == "two\nthree"
    assert control.cancel(str(tmp_path)) == ["stopped Ray job raysubmit_7"]


def test_the_environment_names_another_address_of_it(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(tmp_path, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_ADDRESS", server)
    assert control.logs(str(tmp_path), None, lines=1) == "three"


@pytest.mark.parametrize("command", ["logs", "cancel"])
def test_a_job_server_that_cannot_be_reached_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    submitted(tmp_path, address)
    assert cli.main([command, str(tmp_path)]) == 2
    got = f"Failed to connect to Ray at address: {address}"
    said = f"error: Ray's job server at {address}: expected an answer about job raysubmit_7, got {got}. {DO}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("answers", "got"),
    [
        (
            {"logs": (404, "Job raysubmit_7 does not exist\nTraceback")},
            "status code 404: .*Job raysubmit_7 does not exist",
        ),
        ({"version": (401, "no token")}, "Authentication required"),
        ({"version": (200, {"greeting": "hello"})}, "ray_version"),
    ],
)
def test_a_job_server_that_does_not_tell_says_why(
    answers: dict[str, tuple[int, Any]], got: str, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(tmp_path, server)
    monkeypatch.setattr(JobServer, "answers", {**JobServer.answers, **answers})
    with pytest.raises(UsageError, match=f"expected an answer about job raysubmit_7, got .*{got}") as caught:
        control.logs(str(tmp_path), "fold_1", lines=2)
    assert str(caught.value).endswith(DO) and "\n" not in str(caught.value)
