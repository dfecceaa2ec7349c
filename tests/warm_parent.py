"""The process from which tests fork others: `python tests/warm_parent.py SOCKET`, started by `tests.warm`.

It imports what the commands import, runs no operator, stays single-threaded, and forks a process for every request that
comes through the socket. What a new interpreter would find is put in order in the child: streams, environment, folder,
session, signals, `sys.argv`, `sys.path`, `__main__`. Inside the child, the ranks of a launcher are forked likewise as
long as the child is single-threaded, so that ranks are real children of their launcher.
"""

import atexit
import gc
import importlib
import json
import multiprocessing.process
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tests.warm import RANK, Start, read_start

STREAMS = [(name, getattr(sys, name).encoding, getattr(sys, name).errors) for name in ("stdin", "stdout", "stderr")]
UNBUFFERED = sys.stdout.write_through  # type: ignore[union-attr]
"""Of this interpreter's streams; what a process changes in its own is not for the processes it starts."""
LIBRARIES = ("torch", "torchvision", "open_clip", "deepspeed", "torch.utils.tensorboard", "s3fs")
LATE = (
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "einops._torch_specific",
)
"""What DeepSpeed imports when an engine is made: half a second."""


def import_all() -> None:
    """The libraries, and every module of `dfer` but the command line, which each process runs as its own `__main__`."""
    for name in (*LIBRARIES, *LATE):
        importlib.import_module(name)
    importlib.import_module("dfer.training.deepspeed").import_muon()
    package = importlib.import_module("dfer")
    for module in pkgutil.walk_packages(package.__path__, "dfer."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def serve(requests: socket.socket) -> tuple[Start, list[int]]:
    """Fork until the socket is closed. Returns in the children alone, with what each has to become."""
    while True:
        text, streams, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not text:
            os._exit(0)
        # A child of a child that has ended belongs to the tests: it is their process to wait for.
        number, tell = os.pipe()
        gate, door = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                os.close(door)
                os.read(gate, 1)
                requests.close()
                return Start(**json.loads(text)), streams
            os.write(tell, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        requests.send(os.read(number, 64))
        for descriptor in (number, tell, gate, door, *streams):
            os.close(descriptor)


def become(start: Start, streams: list[int], *, known: frozenset[str], variables: dict[str, str]) -> None:
    """Put in order what a new interpreter would find, and run the command.

    known: modules that may stay imported. variables: what libraries set in the environment when they are imported.
    """
    if os.getppid() != start.parent:
        raise RuntimeError(f"expected to be a child of {start.parent}, got {os.getppid()}")
    _take(streams)
    if start.session:
        os.setsid()
    os.environ.clear()
    os.environ.update({**variables, **start.environment})
    os.chdir(start.cwd)
    _default_signals()
    tempfile.tempdir = None
    multiprocessing.process.ORIGINAL_DIR = start.cwd  # type: ignore[attr-defined]
    np.random.seed()
    for name in [name for name in sys.modules if name not in known]:
        del sys.modules[name]
    subprocess._fork_exec = _Ranks(known, variables)  # type: ignore[attr-defined]
    _run(start.words)


def _take(streams: list[int]) -> None:
    """Make them the standard streams; no other file stays open."""
    aside = [_high(stream) for stream in streams]
    for number, descriptor in enumerate(aside):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for number, stream in enumerate(STREAMS):
        _open(number, *stream)


def _open(number: int, name: str, encoding: str, errors: str) -> None:
    """Open a standard stream anew, as an interpreter does at its start, for a stream asks its file once whether it can
    be rewound, or is a terminal. It stays the same object, which the logs of libraries hold.
    """
    mode = "w" if number else "r"
    file = open(number, f"{mode}b", buffering=0 if UNBUFFERED and number else -1, closefd=False)  # noqa: SIM115
    getattr(file, "raw", file).name = f"<{name}>"
    lines = not UNBUFFERED and (file.isatty() or number == 2)
    stream = getattr(sys, f"__{name}__")
    stream.__init__(
        file, encoding=encoding, errors=errors, newline="\n", line_buffering=lines, write_through=UNBUFFERED
    )
    stream.mode = mode
    setattr(sys, name, stream)


def _default_signals() -> None:
    """What an interpreter starts with: no handler but that of Ctrl-C."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _high(stream: int) -> int:
    """The same file under a number that is no standard stream's."""
    copies = [os.dup(stream)]
    while copies[-1] < 3:
        copies.append(os.dup(stream))
    return copies[-1]


def _run(words: list[str]) -> None:
    """As `python WORDS` does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv, sys.path[0] = ["-m", *words[2:]], str(Path.cwd())
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        main.__file__ = words[0]
        exec(compile(Path(words[0]).read_bytes(), words[0], "exec"), main.__dict__)


class _Ranks:
    """Stands for `subprocess._fork_exec` in a forked launcher: its ranks come out of it instead of a new program."""

    def __init__(self, known: frozenset[str], variables: dict[str, str]) -> None:
        self._known, self._variables, self._started = known, variables, subprocess._fork_exec  # type: ignore[attr-defined]
        self._filters, self._path = list(warnings.filters), list(sys.path)
        self._at_import = _at_import(dict(os.environ))

    def __call__(self, *plain: Any) -> int:
        read = read_start(plain)
        alone = threads() == 1
        if read is None or read[0].words[:2] != ["-m", RANK] or not alone or read[0].at_import != self._at_import:
            return int(self._started(*plain))
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the launcher must not reach its handlers in a rank that is about to begin.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            self._rank(*read, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _rank(self, start: Start, streams: list[int], mask: set[int]) -> NoReturn:
        gc.freeze()  # what the launcher held is not to be closed here: the numbers of its files are others' by then
        signal.set_wakeup_fd(-1)
        warnings.filters[:] = self._filters  # type: ignore[index]
        sys.path[:] = self._path
        subprocess._fork_exec = self._started  # type: ignore[attr-defined]
        _default_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _leave(_code_of(start, streams, self._known, self._variables))


def threads() -> int:
    """Of this process, those of libraries among them."""
    return len(list(Path("/proc/self/task").iterdir()))


def _at_import(environment: dict[str, str]) -> dict[str, str]:
    return Start(words=[], environment=environment, cwd="", session=False, parent=0).at_import


def _code_of(start: Start, streams: list[int], known: frozenset[str], variables: dict[str, str]) -> int:
    """Run it, above frames that must not see its end; the exit code Python would give."""
    try:
        become(start, streams, known=known, variables=variables)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """Wait for threads, call what `atexit` holds, flush. Taking all modules apart takes 2 s; cold starts show it."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: {sys.stdout!r}\n{error!r}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests, and for the children
    before = dict(os.environ)
    import_all()
    variables = {key: value for key, value in os.environ.items() if before.get(key) != value}
    gc.freeze()
    if threads() > 1:
        raise RuntimeError("an import started a thread; a process forked now would lack it")
    known = frozenset(name for name in sys.modules if not name.startswith("tests")) | {"tests"}
    requests.send(json.dumps(variables).encode())
    _leave(_code_of(*serve(requests), known, variables))


if __name__ == "__main__":
    main()
