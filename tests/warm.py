"""Python processes for tests that start in a tenth of a second: forked from one that has imported torch already.

`Popen` and `run` are those of `subprocess`. A command that `tests.warm_parent` can fork becomes a real process of its
own: child of the caller, with its own pid, environment, streams, session, signals and exit code. Every other command
starts as always. With DFER_TEST_COLD set, all commands do, and so do those inside `cold()`.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLD = "DFER_TEST_COLD"
RANK = "launch.local.rank"
"""The module that a launcher runs in every rank."""
# Python and libraries read these when they start, so a process forked after that must want the same.
AT_IMPORT = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "DS_",
    "TORCH",
    "PYTORCH",
    "CUDA",
    "PYTHON",
    "LC_",
    "LANG",
    "LD_",
    "MALLOC",
    "NUMEXPR",
    "OPENCV",
    "ATEN_",
    "HF_",
    "TIMM_",
    "MPL",
)
_FORK_EXEC = 23
"""Number of arguments of `subprocess._fork_exec`, in the order of CPython 3.11 to 3.14."""
_PR_SET_CHILD_SUBREAPER = 36

_started = subprocess._fork_exec  # type: ignore[attr-defined]  # the one place where `subprocess` starts a process
_asked = threading.local()


@dataclass(frozen=True, kw_only=True)
class Start:
    """A process that somebody wants. words: behind the name of the interpreter; session: whether it gets its own."""

    words: list[str]
    environment: dict[str, str]
    cwd: str
    session: bool
    parent: int

    @property
    def at_import(self) -> dict[str, str]:
        """The part of the environment that must be there before the imports."""
        return {key: value for key, value in self.environment.items() if key.startswith(AT_IMPORT)}


def read_start(plain: Sequence[Any]) -> tuple[Start, list[int]] | None:
    """The arguments of `subprocess._fork_exec` as a Start and its three streams; none where only a new program will do.

    Forked are `python -m MODULE`, `python -c CODE` and `python FILE.py`, without options of the interpreter.
    """
    if len(plain) != _FORK_EXEC:
        return None
    words, cwd, variables = [os.fsdecode(word) for word in plain[0]], plain[4] or Path.cwd(), plain[5]
    known = words[0] == sys.executable and len(words) > 1
    usual = known and (words[1].endswith(".py") or (words[1] in ("-m", "-c") and len(words) > 2))
    # Close the other files, keep no more than the pipe for errors, same group, user and mask, nothing to run before.
    plainly = plain[2] and set(plain[3]) <= {plain[13]} and plain[16] == -1
    nothing_more = all(value is None for value in (*plain[17:20], plain[21])) and plain[20] == -1
    if not usual or not plainly or not nothing_more or not Path(os.fsdecode(cwd)).is_dir():
        return None
    pairs = [os.fsdecode(pair).partition("=") for pair in variables or []]
    own = dict(os.environ) if variables is None else {key: value for key, _, value in pairs}
    streams = [given if given >= 0 else number for number, given in enumerate((plain[6], plain[9], plain[11]))]
    start = Start(words=words[1:], environment=own, cwd=os.fsdecode(cwd), session=bool(plain[15]), parent=os.getpid())
    return start, streams


class Parent:
    """The process that has imported everything. It ends when the process that made it does.

    environment: what libraries see while they are imported.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        # Processes whose starter has ended then become children of this one, not of the first process of the machine.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = {**environment, "PYTHONPATH": str(ROOT)}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "warm_parent.py"), str(theirs.fileno())],
                env=own,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._at_import = Start(words=[], environment=own, cwd="", session=False, parent=0).at_import
        self._set_by_libraries: dict[str, str] | None = None

    def fits(self, start: Start) -> bool:
        """Whether the process wants of the imports what the parent had; libraries set variables themselves, too."""
        with self._lock:
            if self._set_by_libraries is None:
                self._set_by_libraries = json.loads(self._answer())
            theirs = self._set_by_libraries
        wanted = {k: v for k, v in start.at_import.items() if theirs.get(k) != v or k in self._at_import}
        return wanted == self._at_import

    def fork(self, start: Start, streams: Sequence[int]) -> int:
        """Start it; its pid. It is a child of this process by then."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(asdict(start)).encode()], streams)
            return int(self._answer())

    def _answer(self) -> bytes:
        answer = self._socket.recv(1 << 16)
        if not answer:
            raise RuntimeError(f"the warm parent of the tests ended with {self.process.wait()}")
        return answer

    def close(self) -> None:
        self._socket.close()
        self.process.wait()


def _fork_exec(*plain: Any) -> int:
    """What `subprocess` calls to start a process, here and in threads; only what `Popen` and `run` start is forked."""
    parent: Parent | None = getattr(_asked, "parent", None)
    read = read_start(plain) if parent else None
    if parent is None or read is None or not parent.fits(read[0]):
        return int(_started(*plain))
    return parent.fork(*read)


_parents: list[Parent] = []
_making = threading.Lock()


@contextmanager
def _warmly() -> Iterator[None]:
    wants = not os.environ.get(COLD) and not getattr(_asked, "cold", False)
    with _making:
        if wants and not _parents:
            _parents.append(Parent({**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}))
            subprocess._fork_exec = _fork_exec  # type: ignore[attr-defined]
    _asked.parent = _parents[0] if wants else None
    try:
        yield
    finally:
        _asked.parent = None


@contextmanager
def cold() -> Iterator[None]:
    """Commands start as users start them: a new program that imports everything itself."""
    _asked.cold = True
    try:
        yield
    finally:
        _asked.cold = False


def is_cold() -> bool:
    """Whether `Popen` and `run` start new programs now."""
    return bool(os.environ.get(COLD)) or getattr(_asked, "cold", False)


def Popen(words: Sequence[object], **options: Any) -> "subprocess.Popen[Any]":
    """`subprocess.Popen`, forked where that comes to the same."""
    with _warmly():
        return subprocess.Popen([str(word) for word in words], **options)


def run(words: Sequence[object], **options: Any) -> "subprocess.CompletedProcess[Any]":
    """`subprocess.run`, forked where that comes to the same."""
    with _warmly():
        return subprocess.run([str(word) for word in words], check=False, **options)


def pids() -> list[int]:
    """The parents that run."""
    return [parent.process.pid for parent in _parents]


def close() -> None:
    """End the parent; processes that came from it are not touched."""
    while _parents:
        _parents.pop().close()
        subprocess._fork_exec = _started  # type: ignore[attr-defined]
