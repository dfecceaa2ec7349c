"""Read the format that torch wrote before version 1.6 as data: no class or function that a file names is called.

The file holds five pickles one after another (a magic number, the version, facts about the machine, the content, the
keys of the storages in order) and then each storage: its number of elements as int64, and their bytes. The pickles are
run on the same machine as those of archives (`dfer.models.foreign.archive`).
"""

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from dfer.models.foreign.archive import MAX_PICKLE_BYTES, Machine
from dfer.models.foreign.layouts import LEGACY
from dfer.models.foreign.tensors import STORAGES, NotAnArchive, Storage, Tensors

PROTOCOL = 1001
MAX_STORAGES = 100_000


class Legacy:
    """An opened file. Raises NotAnArchive, ValueError or OSError on a damaged one."""

    def __init__(self, path: Path) -> None:
        self._path, self._places = path, dict[str, tuple[int, int]]()
        with path.open("rb") as file:
            pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        pickles.seek(len(LEGACY))
        version, facts = Machine().run(pickles), Machine().run(pickles)
        if version != PROTOCOL or not isinstance(facts, dict) or facts.get("little_endian") is not True:
            raise NotAnArchive(f"version {version!r:.40}, or numbers of the other byte order")
        machine = Machine()
        self.content = machine.run(pickles)
        keys = Machine().run(pickles)
        if not isinstance(keys, list) or len(keys) > MAX_STORAGES or {*map(str, keys)} != machine.storages.keys():
            raise NotAnArchive("other storages than the tensors name")
        self._place(keys, machine.storages, at=pickles.tell())
        self._tensors = Tensors(self._read)

    def tensor(self, value: Any) -> Tensor | None:
        """Build the tensor that a recorded call describes, on the CPU; None for other values. Raises NotAnArchive."""
        return self._tensors.tensor(value)

    def _place(self, keys: list[Any], storages: dict[str, Storage], *, at: int) -> None:
        """Find where the bytes of every storage begin, and that the file ends with the last of them."""
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            for key in map(str, keys):
                storage = storages[key]
                dtype = STORAGES.get(storage.kind)
                file.seek(at)
                count = int.from_bytes(file.read(8), "little")
                if dtype is None or count != storage.count or key in self._places:
                    raise NotAnArchive(f"a storage of {count} numbers of the kind {storage.kind[:80]!r}")
                self._places[key] = at + 8, count * dtype.itemsize
                at += 8 + count * dtype.itemsize
        if at != size:
            raise NotAnArchive(f"{size} bytes instead of {at}")

    def _read(self, key: str, size: int) -> bytearray:
        begin, there = self._places[key]
        data = bytearray(min(size, there))
        with self._path.open("rb") as file:
            file.seek(begin)
            if file.readinto(data) != size or there != size:
                raise NotAnArchive(f"{there} bytes of storage {key[:80]!r} instead of {size}")
        return data
