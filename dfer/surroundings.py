"""Adapt to the environment of the process: output encoding, home folder, temporary folder, unrelated copies of it.

None of this is set by a configuration. Each check here prevents a failure that ended a real run.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from multiprocessing import util
from pathlib import Path

from dfer.errors import StorageError, UsageError, message

_SOCKET_NAME = "/pymp-12345678/listener-12345678"
"""The part that multiprocessing appends to the temporary folder to name a socket."""
_MOST_BYTES = 107 - len(_SOCKET_NAME)
"""Longest temporary folder for which such a name fits into the 107 bytes that the system accepts."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_COPIES = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
"""Variables in which a program that starts several processes sets their number, and the program's name."""


def accept_any_encoding() -> None:
    """Write characters that stdout or stderr cannot encode as escapes, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def expand_home(text: str) -> str:
    """Replace `~` or `~user` at the start of a path by that home folder; leave URLs and other paths unchanged.

    Raises:
        UsageError: no such home folder exists.
    """
    if "://" in text or not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        whose = text.partition("/")[0]
        do = f"Write the whole path, or ./{whose} for a folder of that name."
        raise UsageError(message(text, expected="a home folder", got=f"none for {whose}", do=do)) from error


def keep_socket_names_short() -> None:
    """Move multiprocessing's sockets to another temporary folder when TMPDIR is too long for their names.

    Call it before starting the first process: multiprocessing chooses its folder once, and children inherit it.

    Raises:
        StorageError: TMPDIR is too long and no shorter folder is writable.
    """
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= _MOST_BYTES:
        return
    for folder in _SHORT_FOLDERS:
        tempfile.tempdir = folder
        try:
            util.get_temp_dir()
        except OSError:
            continue
        else:
            return
        finally:
            tempfile.tempdir = chosen
    expected = f"a folder of at most {_MOST_BYTES} bytes for sockets, or one of {', '.join(_SHORT_FOLDERS)} to write to"
    do = "Set TMPDIR to a shorter folder, or data.workers=0."
    raise StorageError(message("TMPDIR", expected=expected, got=chosen, do=do))


def refuse_copies(environment: Mapping[str, str]) -> None:
    """Refuse to run as one of several copies that were started together without forming a process group.

    Raises:
        UsageError: `srun -n 2` or `mpirun -n 2` without a process group: each copy would train the same run alone.
    """
    if environment.get("WORLD_SIZE"):
        return
    for name, starter in _COPIES.items():
        count = environment.get(name, "")
        if count.isdecimal() and int(count) > 1:
            do = (
                "Use `dfer-launch slurm CONFIG` on a SLURM cluster, `dfer-launch local CONFIG --processes N` in one "
                "task of a host, or torchrun in one task a host; set WORLD_SIZE=1 if this is the only copy."
            )
            got = f"{count} copies started by {starter} without RANK and WORLD_SIZE, each of which would do all of it"
            raise UsageError(message(name, expected="one process, or a process group", got=got, do=do))


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Make `import package` fail as if it were not installed. Changes nothing when it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
