"""Processes forked from the warm parent are what `subprocess` would have started, as far as tests can tell."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.integration.commands import ROOT, environment
from tests.processes import alive, children, command_line

pytestmark = pytest.mark.integration

LOOK = """
import atexit, json, os, signal, sys, threading, warnings
# Set by torch, deepspeed, open_clip and cv2 when they are imported, which a new program does later.
LIBRARIES = ("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH")
atexit.register(print, "at the end \\udc00")

def stream_of(stream):
    names = "name", "mode", "encoding", "errors", "newlines", "line_buffering", "write_through", "closed"
    inner = getattr(stream.buffer, "raw", stream.buffer)
    own = repr(stream), repr(stream.buffer), stream.seekable(), stream.isatty(), inner.name, inner.mode, inner.closefd
    return [*own, *(getattr(stream, name) for name in names)]

print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "pid": os.getpid(), "parent": os.getppid(),
    "group": os.getpgrp(), "own session": os.getsid(0) == os.getpid(), "name": __name__, "mine": os.environ.get("MINE"),
    "variables": sorted(set(os.environ) - {"LC_CTYPE", *LIBRARIES}), "files": sorted(os.listdir("/proc/self/fd")),
    "threads": threading.active_count(), "sigint": str(signal.getsignal(signal.SIGINT)),
    "sigterm": str(signal.getsignal(signal.SIGTERM)), "optimize": sys.flags.optimize, "stdin": sys.stdin.read(),
    "executable": sys.executable, "main": sys.modules["__main__"].__dict__ is globals(),
    "streams": [stream_of(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
}))
sys.stdout.reconfigure(errors="backslashreplace")
print("to the error stream", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also where everything else is to start cold."""
    monkeypatch.delenv(warm.COLD, raising=False)
    yield


def forked(pid: int) -> bool:
    """Whether a process came from the warm parent: it has that one's command line."""
    return "warm_parent.py" in command_line(pid)


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("how", ["-c", "file", "-m"])
def test_a_process_sees_what_a_new_program_sees(tmp_path: Path, how: str, session: bool) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    words = {"-c": ["-c", LOOK], "file": [str(tmp_path / "look.py")], "-m": ["-m", "look"]}[how]
    both: list[tuple[dict[str, Any], str]] = []
    for start in (warm.run, subprocess.run):
        done = start(
            [sys.executable, *words, "a", "b c"],
            env=environment(MINE="1"),
            cwd=tmp_path,
            input="read me",
            capture_output=True,
            text=True,
            start_new_session=session,
        )
        first, *rest = done.stdout.splitlines()
        assert (done.returncode, rest, done.stderr) == (3, ["at the end \\udc00"], "to the error stream\n")
        both.append((json.loads(first), done.stderr))
    ours, theirs = (seen for seen, _ in both)
    assert ours.pop("pid") != theirs.pop("pid") and ours["parent"] == os.getpid()
    if session:
        assert ours.pop("group") != theirs.pop("group") and ours["own session"]
    assert ours == theirs


def test_it_is_forked_and_dies_of_the_signal_it_is_sent() -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = warm.Popen(
            [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        assert forked(process.pid) and process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=30) == -number
        process.stdout.close()


def test_an_error_is_a_traceback_and_a_one() -> None:
    done = warm.run([sys.executable, "-c", "1 / 0"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([sys.executable, "-c", "import time; time.sleep(60)"], env=environment(), timeout=0.5)


@pytest.mark.parametrize(
    "variables", [{"OMP_NUM_THREADS": "2"}, {"PYTHONWARNINGS": "error"}, {"TORCH_LOGS": "+dynamo"}]
)
def test_what_libraries_read_on_import_makes_a_new_program(variables: dict[str, str]) -> None:
    for command in ([sys.executable, "-c", "input()"], [sys.executable, "-W", "error", "-c", "input()"]):
        own = environment(**variables) if command[1] == "-c" else environment()
        process = warm.Popen(command, env=own, stdin=subprocess.PIPE)
        assert not forked(process.pid)
        process.communicate(b"\n")


def test_what_libraries_set_themselves_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a test that trained in its own process."""
    code = "import os, torch, deepspeed; print(dict(os.environ))"
    before = {key: value for key, value in environment().items() if "TORCH" not in key}
    done = subprocess.run([sys.executable, "-c", code], env=before, capture_output=True, text=True)
    after = ast.literal_eval(done.stdout.splitlines()[-1])
    new = {key: value for key, value in after.items() if key not in before and key.startswith(warm.AT_IMPORT)}
    assert new, "no library sets a variable any more: this test can go"
    for name, value in new.items():
        monkeypatch.setenv(name, value)
    process = warm.Popen([sys.executable, "-c", "input()"], env=environment(), stdin=subprocess.PIPE)
    assert forked(process.pid)
    process.communicate(b"\n")


def test_cold_means_a_new_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("block", "variable"):
        if way == "variable":
            monkeypatch.setenv(warm.COLD, "1")
            process = warm.Popen([sys.executable, "-c", "input()"], env=environment(), stdin=subprocess.PIPE)
        else:
            with warm.cold():
                process = warm.Popen([sys.executable, "-c", "input()"], env=environment(), stdin=subprocess.PIPE)
        assert not forked(process.pid)
        process.communicate(b"\n")


LAUNCHER = """
import os, subprocess, sys
own = {"start_new_session": True, "stderr": subprocess.PIPE}
alone = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
words = [sys.executable, "-m", sys.argv[2], "train", *sys.argv[3:]]
ranks = [subprocess.Popen(words, env={**os.environ, **alone}, **own) for _ in range(2)]
ranks.append(subprocess.Popen([*words[:3], "no-such-verb"], **own))
print(*(rank.pid for rank in ranks[:2]), flush=True)
told = ranks[2].communicate()[1].decode()
print(ranks[2].returncode, "invalid choice: 'no-such-verb'" in told, flush=True)
input()
print([rank.wait() for rank in ranks], flush=True)
"""


@pytest.mark.parametrize("kill", ["ranks", "launcher"])
def test_ranks_of_a_forked_launcher_are_its_children_and_die_with_it(tmp_path: Path, kill: str) -> None:
    """They wait for a first rank that never comes; each has a session, and the kernel ends it with its launcher."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        config = ROOT / "configs" / "demo.yaml"
        port, run = silent.getsockname()[1], f"run={tmp_path / 'run'}"
        words = [sys.executable, "-c", LAUNCHER, port, warm.RANK, config, run]
        launcher = warm.Popen(words, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert launcher.stdout is not None
        ranks = [int(word) for word in launcher.stdout.readline().split()]
        # A rank that ended told why, and the launcher has its code: the others have asked to die with it by then.
        assert launcher.stdout.readline() == "2 True\n"
        assert children(launcher.pid) == ranks and all(forked(rank) for rank in ranks)
        assert [os.getsid(rank) for rank in ranks] == ranks
        if kill == "launcher":
            launcher.kill()
            launcher.communicate()
            until = time.monotonic() + 20
            while any(alive(rank) for rank in ranks):
                assert time.monotonic() < until
                time.sleep(0.05)
        else:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            assert launcher.communicate("\n", timeout=60)[0] == "[-9, -9, 2]\n"
            assert launcher.returncode == 0
