"""One writer per run folder: every start of a run takes a lease, and only the owner of the newest lease may write.

    RUN/lease/000003-5f2a9c1e.json    owner, time, and the checkpoint that this start resumed from

There are no locks and no expiry: a killed run can resume at once, on any store whose listings are up to date. An older
copy that was presumed dead and continues reads the leases before every write, finds the newer one, and stops with a
message. A checkpoint that it published at that very moment does not count either: the newer lease records the step
from which the run resumed, and checkpoints of older leases beyond that step are ignored (`Leases.holds`).
"""

import json
import os
import re
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from dfer.config import ConfigProblem, from_plain
from dfer.errors import CheckpointError, FencedError, message
from dfer.storage import Folder

LEASES = "lease"
MAX_BYTES = 64 * 1024
_NAME = re.compile(r"([0-9]{6})-([0-9a-f]{8})\.json")
_JOBS = ("SLURM_JOB_ID", "RAY_JOB_ID")


@dataclass(frozen=True, kw_only=True, order=True)
class LeaseId:
    """Identity of a lease. Ordered by generation; simultaneous starts by their random token."""

    generation: int
    token: str

    def __str__(self) -> str:
        return f"g{self.generation}-{self.token}"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.generation:06d}-{self.token}.json"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that took a lease. job: the scheduler's job number, empty without one."""

    host: str
    pid: int
    job: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", job {self.job}" if self.job else "")


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Contents of a lease. base, step: the checkpoint that this start resumed from, None and 0 for a new run; step is
    None until that checkpoint is known."""

    version: Literal[1] = 1
    owner: Owner
    started: str
    processes: int = 1
    base: str | None = None
    step: int | None = None


class Leases:
    """All leases of a run folder, listed on first use and cached; create a new object to list them again."""

    def __init__(self, home: Folder) -> None:
        self._folder = home / LEASES
        self._ids: list[LeaseId] | None = None
        self._read: dict[LeaseId, Lease] = {}

    def ids(self) -> list[LeaseId]:
        """List the leases, oldest first; other file names are ignored."""
        if self._ids is None:
            found = [_NAME.fullmatch(name) for name in self._folder.children()]
            self._ids = sorted(LeaseId(generation=int(match[1]), token=match[2]) for match in found if match)
        return self._ids

    def holds(self, lease: LeaseId, step: int) -> bool:
        """Whether a checkpoint of this lease and step belongs to the run: no later start resumed from before it."""
        later = [other for other in self.ids() if other > lease]
        steps = [self.get(other).step for other in later]
        return all(base is None or step <= base for base in steps)

    def get(self, lease: LeaseId) -> Lease:
        """Read a lease's contents. Raises CheckpointError when they are damaged."""
        if lease not in self._read:
            self._read[lease] = self._parsed(lease)
        return self._read[lease]

    def _parsed(self, lease: LeaseId) -> Lease:
        where, data = self._folder.where(lease.file), self._folder.read(lease.file, most=MAX_BYTES)
        try:
            return from_plain(Lease, json.loads(data or b""))
        except (ValueError, RecursionError, ConfigProblem) as error:
            got = f"something else ({str(error)[:200]})"
            do = "Delete this file and the checkpoints named after it."
            raise CheckpointError(message(where, expected="a lease", got=got, do=do)) from error


class Fence:
    """The right to write into a run folder, valid until a newer lease exists. Used by the first rank only."""

    def __init__(self, home: Folder, lease: LeaseId, contents: Lease) -> None:
        self.id = lease
        self._home, self._folder, self._contents = home, home / LEASES, contents

    @classmethod
    def take(cls, home: Folder, *, processes: int = 1) -> "Fence":
        """Take a new lease; from now on `check` of older copies raises.

        Raises:
            FencedError: another start took one at the same time, and its lease is newer.
            StorageError: the lease cannot be written.
        """
        before = Leases(home).ids()
        mine = LeaseId(generation=before[-1].generation + 1 if before else 1, token=secrets.token_hex(4))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        fence = cls(home, mine, Lease(owner=_owner(), started=started, processes=processes))
        fence._write()
        fence.check()
        return fence

    def record_base(self, checkpoint: str | None, step: int) -> None:
        """Record the checkpoint that this start resumes from. Raises FencedError, StorageError."""
        self._contents = replace(self._contents, base=checkpoint, step=step)
        self.check()
        self._write()

    def check(self) -> None:
        """Raise FencedError when this copy may no longer write."""
        leases = Leases(self._home)
        ids = leases.ids()
        if ids and ids[-1] == self.id:
            return
        got = f"a newer copy at work there ({leases.get(ids[-1]).owner})" if ids[-1:] > [self.id] else "its lease gone"
        do = "This copy stops and has written nothing since; look at the newer one."
        expected = f"to be its only writer (lease {self.id})"
        raise FencedError(message(self._home, expected=expected, got=got, do=do))

    def _write(self) -> None:
        self._folder.write(self.id.file, (json.dumps(asdict(self._contents), indent=1) + "\n").encode())


def _owner() -> Owner:
    job: Any = next((os.environ[name] for name in _JOBS if os.environ.get(name)), "")
    return Owner(host=socket.gethostname(), pid=os.getpid(), job=str(job))
