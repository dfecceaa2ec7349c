"""What the guard must notice, done on purpose: the checks of the other kinds are worth something only if these fail."""

import ctypes
import os
import pickle
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dfer.errors import DataError, message
from tests.hostile.worker import Case

LIMIT_S = 3.0


def seeds(folder: Path) -> Path:
    folder.mkdir()
    (folder / "secret").write_text("x")
    return folder


def cases(seeds: Path, mark: Path) -> Iterator[Case]:
    yield _case("", lambda at: (at / "x").write_text("what is inside is free"))
    yield _case("", _refused)
    for told, act in _acts(seeds, mark).items():
        yield _case(told, act)
    yield Case(name="accepted", write=lambda at: None, reads={"it": lambda at: None}, refuse=("it",))
    yield _case("ended", lambda at: time.sleep(60))


COUNT = 100


def _case(told: str, act: Callable[[Path], object]) -> Case:
    """told: what the fault must say."""
    return Case(name=told, write=lambda at: None, reads={"it": act})


def _refused(at: Path) -> None:
    raise DataError(message(at, expected="a", got="b", do="Do c."))


def _say(text: str) -> Callable[[Path], None]:
    def act(at: Path) -> None:
        error = DataError("x")
        error.args = (text,)
        raise error

    return act


def _acts(seeds: Path, mark: Path) -> dict[str, Callable[[Path], object]]:
    outside, native = seeds.parent, ctypes.CDLL(None)
    return {
        "os.system": lambda at: os.system("true"),
        "subprocess.Popen": lambda at: subprocess.run(["true"], check=True),
        "os.posix_spawn": lambda at: os.posix_spawn("/bin/true", ["true"], {}),
        "pickle.find_class": lambda at: pickle.loads(pickle.dumps(Path)),
        "exec": lambda at: exec("1"),
        "compile": lambda at: eval("1"),
        "import": lambda at: __import__("antigravity.x" if at is None else "this_module_is_not_there"),
        "socket.connect": lambda at: socket.create_connection(("127.0.0.1", 9), timeout=1),
        "opened to write": lambda at: (outside / "written").write_text("x"),
        "opened to read": lambda at: (seeds / "secret").read_text(),
        "opened to read: ": lambda at: (at / ".." / ".." / "seeds" / "secret").read_text(),
        "os.mkdir": lambda at: (outside / "made").mkdir(),
        "os.symlink": lambda at: (outside / "link").symlink_to("/etc"),
        "os.rename": lambda at: (outside / "written").rename(outside / "renamed"),
        "os.remove": lambda at: (outside / "renamed").unlink(),
        "os.rmdir": lambda at: (outside / "made").rmdir(),
        "the mark was made": lambda at: native.creat(os.fsencode(mark), 0o600),
        "ValueError": lambda at: int("x"),
        "RecursionError": lambda at: _endless(),
        "MiB": lambda at: len(b"x" * 1_200_000_000),
        "MemoryError": lambda at: bytearray(2**40),
        "'\\x1b' in a message": _say("a: expected b, got \x1b"),
        "a message of ": _say("a: expected b, got " + "x" * 20_000),
        "not the house's shape": _say("something went wrong"),
    }


def _endless() -> None:
    _endless()
