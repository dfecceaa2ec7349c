"""Commands and waits that end: every one has a bound in seconds and takes its whole process group along."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.processes import children

# What a bed starts in the machine's own namespaces dies with the tests, also when they are killed.
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


class BedError(RuntimeError):
    """The bed itself failed, or a command that a test expected to succeed."""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 30.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output; `BedError` when it fails (unless `check=False`) or outlives `timeout` s."""
    words = [os.fspath(word) for word in argv]
    process = subprocess.Popen(
        [*WITH_US, *words],
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
    )
    with process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            out, err = process.communicate(timeout=10)
            raise BedError(f"not done after {timeout} s: {' '.join(words)}\n{out}{err}") from None
        except BaseException:
            _kill_group(process)
            raise
    if check and process.returncode:
        raise BedError(f"exit code {process.returncode}: {' '.join(words)}\n{out}{err}")
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def start(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command in the background, its output in `log`. End it with `stop`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [*WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=env
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End what `start` began and everything in its process group."""
    _kill_group(process)
    process.wait(timeout=10)


def _kill_group(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    # Until we have waited for it the group's leader keeps the number from being given to somebody else.
    if process.returncode is not None:
        return
    # Its children first, so that it reaps them. As orphans they would wait for the machine's first process to do so,
    # which may take seconds, and a virtual host does not end while a dead process of it remains.
    for child in children(process.pid):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with suppress(BedError):
        wait_until(lambda: os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG), 1, "its end", 0.01)
    os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], timeout: float, what: str, every: float = 0.05) -> None:
    """Poll until `condition()` is true; `BedError` naming `what` after `timeout` s."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise BedError(f"waited {timeout} s for {what}")
        time.sleep(every)
