"""What a process that reads hostile files may not do, watched from inside: run, reach out, write elsewhere, hang, grow.

An audit hook sees every file that Python opens, every module, process and connection. It cannot be taken off again, so
that it lives in a process of its own, which `tests.hostile.worker` is. Native code opens files without telling Python;
against that stand a mark that payloads try to make and a look at the folders around.
"""

import codecs
import contextlib
import faulthandler
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer.errors import DferError

LIMIT_S = 20.0
"""Seconds a case may take on a busy machine; the process is ended then, with the stack on its error stream."""
LIMIT_MIB = 1152
"""Most memory of the process, in MiB: resident pages, those of Python and torch themselves among them. Address space
would be of no use here: torch reserves gigabytes of it on import and touches little."""
SAFETY_NET = 4 * 2**30
"""Address space on top of what the imports took, so that a bomb that goes off does not take the machine with it."""
LONGEST = 10_000
"""Characters of a message: what a file holds may be quoted, not poured out."""

RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "marshal.load",
    "marshal.loads",
    "code.__new__",
    "function.__new__",
    "exec",
    "compile",
    "ctypes.dlopen",
    "ctypes.dlsym",
    "ctypes.call_function",
    "import",
    "sys.addaudithook",
    "sys.setprofile",
    "webbrowser.open",
)
REACHES_OUT = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "ftplib.connect",
    "http.client.connect",
    "smtplib.connect",
)
CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "os.utime",
    "os.setxattr",
    "shutil.rmtree",
    "shutil.copyfile",
    "shutil.move",
    "shutil.unpack_archive",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CODECS = (
    "utf_8_sig",
    "utf_16",
    "utf_16_le",
    "utf_16_be",
    "utf_32",
    "utf_32_le",
    "utf_32_be",
    "latin_1",
    "idna",
    "unicode_escape",
)
"""Imported when they are first used, which must not look like an import that a file asked for."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one file. fault: what must not be, or nothing. refused: it came to a message of ours."""

    name: str
    refused: bool
    fault: str
    text: str
    seconds: float
    mib: float


class Guard:
    """Watches this process while `run` does something. home: the only folder below which that may touch anything.

    mark: a path that hostile payloads try to make. limit_s: seconds a case may take.
    """

    def __init__(self, home: Path, *, mark: Path, limit_s: float = LIMIT_S) -> None:
        self.mark, self._limit_s = mark, limit_s
        self._home = os.path.realpath(home)
        # Where code and its data lie, and what a system tells of itself.
        root = Path(__file__).parents[2]
        code = {
            str(root),
            sys.prefix,
            sys.base_prefix,
            os.path.realpath(sys.executable),
            "/usr",
            "/lib",
            "/etc/mime.types",
        }
        self._readable = tuple(os.path.realpath(path) for path in code)
        self._exact = {"/dev/null", "/dev/urandom", "/etc/localtime"}
        self._armed = False
        self._seen: list[str] = []
        for codec in CODECS:
            codecs.lookup(codec)
        sys.addaudithook(self._hook)
        size = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + SAFETY_NET, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def run(self, name: str, work: Callable[[], object]) -> Outcome:
        """Do it, and tell how it ended."""
        _forget_peak()
        self._seen.clear()
        start = time.monotonic()
        refused, fault, text = False, "", ""
        faulthandler.dump_traceback_later(self._limit_s, exit=True)
        try:
            with self._watching():
                work()
        except DferError as error:
            refused, text = True, str(error)
            fault = wrong_shape(text)
        except BaseException as error:
            fault = "".join(traceback.format_exception(error))[-3000:]
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds, mib = time.monotonic() - start, peak_mib()
        if self._seen:
            fault = f"{'; '.join(self._seen[:5])}\n{fault}"
        if self.mark.exists():
            fault = f"the mark was made\n{fault}"
            self.mark.unlink()
        if mib > LIMIT_MIB:
            fault = f"{mib:.0f} MiB\n{fault}"
        return Outcome(name=name, refused=refused, fault=fault, text=text, seconds=seconds, mib=mib)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        self._armed = False  # looking at it opens files too
        try:
            problem = self._problem(event, arguments)
            if problem:
                self._seen.append(problem)
        finally:
            self._armed = True

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in RUNS:
            return f"{event} {str(arguments)[:200]}"
        if event in REACHES_OUT:
            return f"{event} {str(arguments[-1])[:200]}"
        if event == "open":
            path, _, flags = arguments
            return "" if isinstance(path, int) else self._opened(path, writes=bool((flags or 0) & WRITES))
        if event in CHANGES:
            paths = [_full(path, arguments) for path in arguments if isinstance(path, str | bytes)]
            return next((f"{event} {path}" for path in paths if not self._inside(path)), "")
        return ""

    def _opened(self, path: Any, *, writes: bool) -> str:
        full = _full(path, ())
        if self._inside(full) or (writes and full == "/dev/null"):
            return ""
        if not writes and (full in self._exact or full.startswith((*self._readable, "/proc/", "/sys/"))):
            return ""
        return f"opened to {'write' if writes else 'read'}: {full}"

    def _inside(self, path: str) -> bool:
        return path == self._home or path.startswith(self._home + os.sep)


def _full(path: Any, arguments: tuple[Any, ...]) -> str:
    """The path without links and relative parts. `shutil.rmtree` names files relative to an open folder."""
    text = os.fsdecode(path)
    folders = [number for number in arguments if isinstance(number, int) and number > 2]
    if not text.startswith("/") and folders:
        with contextlib.suppress(OSError):
            text = f"{Path(f'/proc/self/fd/{folders[-1]}').readlink()}/{text}"
    return os.path.realpath(text)


def wrong_shape(text: str) -> str:
    """What a message lacks: where, what was expected, what came, on lines that a terminal can show."""
    if len(text) > LONGEST:
        return f"a message of {len(text)} characters: {text[:200]}"
    strange = re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text)
    if strange:
        return f"{strange[0]!r} in a message: {text[:400]!r}"
    told = re.search(r"\S: .*(expected .+ got .+|unknown |required, but missing|more than|missing)", text, re.DOTALL)
    return "" if told or "characters left out]" in text else f"not the house's shape: {text[:400]}"


def peak_mib() -> float:
    """Most resident memory since `_forget_peak`, in MiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
