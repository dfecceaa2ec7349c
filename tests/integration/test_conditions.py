"""Processes started where containers and pods put them: a small /dev/shm, variables of a job that is not there."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm
from tests.integration.commands import Done, environment, refused

pytestmark = pytest.mark.integration

SMALL = "mount -t tmpfs -o size={size} tmpfs /dev/shm"


@pytest.fixture(scope="module")
def own_mounts() -> None:
    """A mount namespace of its own for a process, so that nobody else's /dev/shm changes."""
    probe = ["unshare", "-m", "sh", "-c", SMALL.format(size="1m")]
    try:
        done = subprocess.run(probe, capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode:
        pytest.skip("mounting needs privileges")


# As `unshare -m` does it: nothing that is mounted here is seen elsewhere.
OWN_MOUNTS = """
import ctypes, subprocess, sys
libc, namespace, private = ctypes.CDLL(None, use_errno=True), 0x20000, 0x40000 | 0x4000
assert libc.unshare(namespace) == 0 and libc.mount(b"none", b"/", None, private, None) == 0, ctypes.get_errno()
subprocess.run(sys.argv.pop(1).split(), check=True)
"""


def with_shared_memory(size: str, code: str, *words: object) -> tuple[Done, float]:
    """Run code and its words in a /dev/shm of this size; how it ended, and its seconds."""
    began = time.monotonic()
    done = warm.run(
        [sys.executable, "-c", OWN_MOUNTS + code, SMALL.format(size=size), *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, time.monotonic() - began


TRAINING = """
from dfer import __main__ as cli
process_exit = cli.ProcessExit()
{before}
process_exit.run_and_exit(lambda: cli.main(sys.argv[1:]))
"""


# 8 clips of 4 frames of 64 x 64: 384 KiB a batch.
def test_too_little_shared_memory_is_told_before_the_first_step(own_mounts: None, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done, seconds = with_shared_memory("1m", TRAINING.format(before=""), "train", tiny, f"run={run}", "data.workers=2")
    refused(
        done,
        2,
        f"host {socket.gethostname()}, /dev/shm: expected room for 1.1 MiB of batches (3 of 0.4 MiB from 2 "
        "workers), got 1.0 MiB free. Enlarge /dev/shm (docker run --shm-size=1g; in a pod a memory emptyDir), or set "
        "data.workers=0, or lower micro_batch.",
    )
    assert seconds < 60 and not run.exists()


UNSEEN = """
from dfer.data import loader
loader.lack = lambda need, ranks: ""
"""


def test_shared_memory_that_fills_up_later_is_an_error_and_no_hang(
    own_mounts: None, tiny: Path, tmp_path: Path
) -> None:
    """As when somebody else takes it after it was looked at."""
    code = TRAINING.format(before=UNSEEN)
    done, seconds = with_shared_memory("300k", code, "train", tiny, f"run={tmp_path / 'run'}", "data.workers=2")
    refused(
        done,
        6,
        f"host {socket.gethostname()}, /dev/shm: expected room for a batch of 0.4 MiB that a data worker has "
        "read, got ",
        " MiB free. Enlarge /dev/shm (docker run --shm-size=1g;",
    )
    assert seconds < 60 and not list(tmp_path.glob("run/results/*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


IMPATIENT = """
import sys
from dfer import __main__ as cli, distributed
distributed.process_group.__wrapped__.__kwdefaults__["meet_s"] = 3.0
cli.ProcessExit().run_and_exit(lambda: cli.main(sys.argv[1:]))
"""


def test_ranks_that_never_come(tiny: Path, tmp_path: Path) -> None:
    """Variables of a pod and one process. The first waits to the end, two others get a signal while they wait."""
    waits, ended = [], []
    for number in (None, signal.SIGTERM, signal.SIGINT):
        port = free_port()
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "1"}
        words = ["-c", IMPATIENT] if number is None else ["-m", "dfer"]
        process = warm.Popen(
            [sys.executable, *words, "train", tiny, f"run={tmp_path / 'run'}"],
            env=environment(**place),
            stderr=subprocess.PIPE,
            text=True,
        )
        waits.append((process, port, number))
    for process, port, number in waits:
        if number is not None:
            listening(port)
            time.sleep(0.3)
            process.send_signal(number)
            began = time.monotonic()
        told = process.communicate(timeout=60)[1]
        ended.append((process.returncode, told))
        assert number is None or time.monotonic() - began < 10
    code, told = ended[0]
    assert code == 7
    assert re.fullmatch(
        rf"error: 127\.0\.0\.1:{waits[0][1]}: expected 2 processes \(WORLD_SIZE\) within 3 s, got only rank 0 "
        rf"\({re.escape(socket.gethostname())}\), not rank 1\. Start all of them \(torchrun, dfer-launch local\)\. "
        r"For a single process unset WORLD_SIZE, RANK and MASTER_ADDR, which may come from a pod or another job\.\n",
        told,
    )
    assert ended[1] == (-signal.SIGTERM, "")
    assert ended[2][0] == 130 and ended[2][1].startswith("interrupted; ")
    assert not (tmp_path / "run").exists()


def listening(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nobody listens")


# A lock that nobody frees, waited for in C; the wait goes on after a signal.
STUCK = """
import ctypes, signal, threading, time
from dfer.interruption import Stop

def tell_when_stuck():
    while lock.raw[0] != 2:  # glibc: locked, and somebody waits
        time.sleep(0.01)
    print("ready", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with Stop().on_signals():
    libc.pthread_mutex_lock(lock)
    threading.Thread(target=tell_when_stuck, daemon=True).start()
    libc.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_a_process_that_is_stuck(number: signal.Signals, code: int) -> None:
    """Stuck in C, as in a collective operation: Python's handlers do not run there."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # the launcher's and the terminal's: one
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(number)
    began = time.monotonic()
    told = process.communicate(timeout=30)[1]
    assert time.monotonic() - began < 5
    assert (process.returncode, told) == (
        code,
        f"interrupted; {number.name} came twice: ended without saving, the same command continues from the last "
        "checkpoint\n",
    )
