"""Records of submissions in the run folder, RUN/launch/*.json, for `dfer-launch status`, `logs` and `cancel`."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from dfer.config import ConfigProblem, from_plain
from dfer.errors import UsageError, message
from dfer.storage import Folder
from launch.job import ANSWER_S, LAUNCH
from launch.timeout import with_timeout

MAX_BYTES = 1 << 20
Launcher = Literal["slurm", "ray"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One submission. job: SLURM's number of the parts' job, or Ray's submission; report: SLURM's number of the report.

    version: 2; in version 1 tasks were keyed by fold number. tasks: the scheduler's id of each part's job, by the
    part's name. folder: of scripts and logs. states, beat: states of the parts and the time when they were written, for
    Ray, which has no queue to query. address: of Ray's job server. host, pid: of the driver process (Ray).
    """

    version: Literal[2] = 2
    launcher: Launcher
    job: str
    submitted: str
    revision: str
    tasks: dict[str, str] = field(default_factory=dict)
    report: str = ""
    folder: str = ""
    states: dict[str, str] = field(default_factory=dict)
    beat: float = 0.0
    address: str = ""
    host: str = ""
    pid: int = 0

    @property
    def file(self) -> str:
        """Name of the record's file in the run folder."""
        return f"{LAUNCH}/{self.launcher}-{self.job}.json"


def keep(home: Folder, record: Record) -> None:
    """Write or update a record."""
    home.write(record.file, (json.dumps(asdict(record), indent=1) + "\n").encode())


def records(home: Folder) -> list[Record]:
    """Read all submissions of a run, oldest first, with a timeout: status, logs and cancel read them first, so a store
    that does not answer is noticed here.

    Raises:
        UsageError: a file is no record. StorageError: the store does not answer.
    """
    folder = home / LAUNCH
    names = [name for name in with_timeout(ANSWER_S, folder.children, what=str(home)) if name.endswith(".json")]
    return sorted((_read(folder, name) for name in names), key=lambda record: record.submitted)


def _read(folder: Folder, name: str) -> Record:
    data = folder.read(name, most=MAX_BYTES)
    try:
        plain = json.loads(data or b"")
        if isinstance(plain, dict) and plain.get("version") == 1:
            raise _older(folder, name)
        return from_plain(Record, plain)
    except (ValueError, RecursionError, ConfigProblem) as error:
        do = "Delete the file; its jobs are then found by their names."
        raise UsageError(
            message(folder.where(name), expected="the record of a submission", got=str(error)[:200], do=do)
        ) from error


def _older(folder: Folder, name: str) -> UsageError:
    do = "Jobs of that version cannot go on: cancel those that wait or run, delete the file, submit again."
    got = "version 1, of an earlier dfer"
    return UsageError(message(folder.where(name), expected="a record of version 2", got=got, do=do))


def tag(run: str) -> str:
    """Return a short name for a run folder, used in the scheduler's job names; the same for all spellings of a path."""
    home = Folder(run)
    whole = os.path.realpath(home.local) if home.local is not None else run.rstrip("/")
    return hashlib.sha256(whole.encode()).hexdigest()[:10]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Lock out other submissions of the same run within the block. folder: for scripts, on a disk that hosts share."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"note: {folder} knows no locks ({error.strerror}): submit from one place at a time", flush=True)
        yield
