"""What stands in a run folder, for those who look without training: results, checkpoints that count. Imports no torch,
so that status, logs and launchers answer at once.
"""

import re
from dataclasses import dataclass

from dfer.lease import LeaseId, Leases
from dfer.storage import Folder

RESULT = "results/test.json"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
"""Of a checkpoint, written last: without it there is none."""
_NAME = re.compile(r"step_([0-9]{8,12})-g([0-9]{1,9})-([0-9a-f]{8})")


@dataclass(frozen=True, kw_only=True, order=True)
class Name:
    """A checkpoint's place: updates done when it was written, and the lease that wrote it."""

    step: int
    lease: LeaseId

    def __str__(self) -> str:
        return f"step_{self.step:08d}-{self.lease}"

    @classmethod
    def parse(cls, text: str) -> "Name | None":
        """The name a folder bears, None for others."""
        match = _NAME.fullmatch(text)
        return match and cls(step=int(match[1]), lease=LeaseId(generation=int(match[2]), token=match[3]))


def committed(home: Folder) -> list[Name]:
    """The checkpoints of a run folder that stand and belong to the run, newest first.

    Raises:
        StorageError, CheckpointError: they or the leases cannot be read.
    """
    folder, leases = home / CHECKPOINTS, Leases(home)
    there = [name for name in present(folder) if (folder / str(name)).exists(MANIFEST)]
    return [name for name in there if leases.holds(name.lease, name.step)]


def present(folder: Folder) -> list[Name]:
    """Every checkpoint folder, newest first; foreign names do not count."""
    found = [Name.parse(text) for text in folder.folders()]
    return sorted((name for name in found if name), reverse=True)
