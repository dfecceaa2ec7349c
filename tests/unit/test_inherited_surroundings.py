"""The tests' own surroundings are the same however the test run was started; test_inherited.py starts it oddly."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import surroundings


def ignored_and_blocked(status: str) -> tuple[set[int], set[int]]:
    """Signals of a process's /proc/PID/status, without those that the C library keeps for itself (32 and 33)."""
    masks = [int(re.search(rf"^{name}:\s*(\w+)", status, re.MULTILINE)[1], 16) for name in ("SigIgn", "SigBlk")]  # type: ignore[index]
    ignored, blocked = ({n for n in signal.valid_signals() if mask >> (n - 1) & 1} for mask in masks)
    return ignored, blocked


def test_a_started_process_has_every_signal_as_the_system_makes_it() -> None:
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert ignored_and_blocked(status) == (set(), set())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_files_locale_and_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    code = "import sys; from pathlib import Path; print(sys.stdout.encoding, Path.home(), 'é漢')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"utf-8 {os.environ['HOME']} é漢\n"
    assert os.access(os.environ["HOME"], os.W_OK) and "dfer-test-home-" in os.environ["HOME"]


def test_reset_mends_what_was_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, since it is about the whole of one."""
    code = (
        "import os, signal, sys; from tests import surroundings\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "surroundings.reset(home=sys.argv[1])\n"
        "names = [n for n in ('LANG', 'LC_CTYPE', 'PYTHONIOENCODING', 'XDG_CACHE_HOME') if n in os.environ]\n"
        "os.execvp('sh', ['sh', '-c', 'umask; cat /proc/self/status; echo $# $HOME $LC_ALL', 'sh', *names])"
    )
    odd = {
        "LANG": "xx",
        "LC_CTYPE": "C",
        "PYTHONIOENCODING": "latin-1",
        "XDG_CACHE_HOME": "/nowhere",
        "HOME": "/nowhere",
    }
    start = 'umask 077; trap "" INT HUP TERM USR1 CHLD; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", start, "sh", sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, **odd},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    ignored, blocked = ignored_and_blocked(done.stdout)
    assert (ignored - {int(number) for number in surroundings.PYTHON_IGNORES}, blocked) == (set(), set())
    lines = done.stdout.splitlines()
    assert lines[0] == "0022" and lines[-1] == f"0 {tmp_path} {surroundings.LOCALE}"
