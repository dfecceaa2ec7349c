"""Read torch's archives as data: no class or function that a file names is looked up, called or built.

A `torch.save` file is a zip of `X/data.pkl`, which describes the content, and `X/data/KEY`, the bytes of its storages.
A TorchScript file also has a program, which is ignored. A pickle is itself a program, and Python's unpickler can build
any object. This module runs it on a machine that supports plain containers only: instead of making a call, it records
the function's name and arguments as a `Call`. Tensors are built from the calls that torch writes for tensors, within
the bytes that the archive has for them.
"""

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from dfer.models.foreign.tensors import Call, Name, NotAnArchive, Storage, Tensors, are_counts

MAX_PICKLE_BYTES = 2 * 2**20
"""Largest `data.pkl`. That of the largest CLIP with its optimizer state has a tenth of this."""
MAX_ENTRIES = 100_000
_READ = re.compile(r"[^/]+/(data\.pkl|byteorder|data/[^/]+)")


class Archive:
    """An open archive. Raises NotAnArchive, or any error of the zip reader on a damaged file."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        try:
            self._entries = _entries(self._zip, size=path.stat().st_size)
            pickles = [name for name in self._entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise NotAnArchive(f"{len(pickles)} files data.pkl in it")
            self._folder = pickles[0].partition("/")[0]
            self._tensors = Tensors(lambda key, size: self._bytes(f"data/{key}", most=size))
            if self._bytes("byteorder", most=16, default=b"little") != b"little":
                raise NotAnArchive("numbers of the other byte order")
            self.content = Machine().run(self._bytes("data.pkl", most=MAX_PICKLE_BYTES))
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def tensor(self, value: Any) -> Tensor | None:
        """Build the tensor that a recorded call describes, on the CPU; None for other values. Raises NotAnArchive."""
        return self._tensors.tensor(value)

    def _bytes(self, name: str, *, most: int, default: bytes | None = None) -> bytearray:
        entry = self._entries.get(f"{self._folder}/{name}")
        if entry is None and default is not None:
            return bytearray(default)
        if entry is None or entry.file_size > most:
            raise NotAnArchive(f"no {name[:80]!r} of at most {most} bytes in it")
        data = bytearray(entry.file_size)
        with self._zip.open(entry) as file:
            buffer: Any = file  # has `readinto`, which typeshed does not declare
            if buffer.readinto(data) != len(data) or file.read(1):  # reading to the end compares the checksum
                raise NotAnArchive(f"{name[:80]!r} is cut off")
        return data


def _entries(archive: zipfile.ZipFile, *, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries to read, by name. torch stores them uncompressed; compressed ones, which could expand to any
    size, are refused."""
    if len(archive.infolist()) > MAX_ENTRIES:
        raise NotAnArchive(f"{len(archive.infolist())} files in it, more than {MAX_ENTRIES}")
    entries = [entry for entry in archive.infolist() if _READ.fullmatch(entry.filename)]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise NotAnArchive(f"{entry.filename[:80]!r} in it is packed or encrypted")
    if sum(entry.file_size for entry in entries) > size:
        raise NotAnArchive("files in it that overlap")
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) < len(entries):
        raise NotAnArchive("two files of one name in it")
    return by_name


class Machine:
    """Executes the opcodes of pickle protocol 2, which torch writes, that build plain containers."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        """Storages that the pickle names, by their keys."""

    def run(self, program: bytes | bytearray | IO[bytes]) -> Any:
        """Return the object that the pickle describes; a file is read up to its end. Raises NotAnArchive for opcodes
        that torch does not write."""
        for opcode, argument, _ in pickletools.genops(bytes(program) if isinstance(program, bytearray) else program):
            if opcode.name == "STOP":
                return self._pop()
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif (step := _STEPS.get(opcode.name)) is not None:
                step(self, argument)
            else:
                raise NotAnArchive(f"pickle's opcode {opcode.name}")
        raise NotAnArchive("a pickle without an end")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise NotAnArchive("a pickle that takes what it has not made")
        return self._stack.pop()

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            raise NotAnArchive("a pickle that takes what it has not made")
        at = self._marks.pop()
        items = self._stack[at:]
        del self._stack[at:]
        return items

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _none(self, _: Any) -> None:
        self._stack.append(None)

    def _true(self, _: Any) -> None:
        self._stack.append(True)

    def _false(self, _: Any) -> None:
        self._stack.append(False)

    def _list(self, _: Any) -> None:
        self._stack.append([])

    def _dict(self, _: Any) -> None:
        self._stack.append({})

    def _empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _tuple1(self, _: Any) -> None:
        self._stack.append((self._pop(),))

    def _tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._stack.append((first, second))

    def _tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._stack.append((first, second, third))

    def _put(self, place: Any) -> None:
        self._memo[place] = self._pop()
        self._stack.append(self._memo[place])

    def _get(self, place: Any) -> None:
        if place not in self._memo:
            raise NotAnArchive("a pickle that takes what it has not made")
        self._stack.append(self._memo[place])

    def _global(self, words: Any) -> None:
        self._stack.append(Name(".".join(str(words).split(" ", 1))))

    def _persistent(self, _: Any) -> None:
        value = self._pop()
        if isinstance(value, tuple) and len(value) == 6 and value[5] is None:  # the format before archives
            value = value[:5]
        if not (isinstance(value, tuple) and len(value) == 5 and value[0] == "storage"):
            raise NotAnArchive("something kept aside that is no storage")
        _, kind, key, _, count = value
        if not isinstance(kind, Name) or not isinstance(key, str) or not are_counts((count,)):
            raise NotAnArchive("something kept aside that is no storage")
        found = self.storages.setdefault(key, Storage(kind=kind.text.removeprefix("torch."), key=key, count=count))
        if (found.kind, found.count) != (kind.text.removeprefix("torch."), count):
            raise NotAnArchive("two storages of one key")
        self._stack.append(found)

    def _call(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise NotAnArchive("a call of something that is no name")
        ordered = _items(arguments) if function.text == "collections.OrderedDict" else None
        self._stack.append(Call(function.text, arguments) if ordered is None else ordered)

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._pop()
        if isinstance(target, Call):
            target.state = state
        self._stack.append(target)  # attributes of a dictionary, such as a module's versions, are dropped

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _set_items(self, _: Any) -> None:
        self._update(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._pop()
        if isinstance(target, list):
            target.extend(items)
        self._stack.append(target)

    def _update(self, items: list[Any]) -> None:
        target = self._pop()
        if isinstance(target, dict):  # keys of other types name no weights, and hashing them could take forever
            target.update(pair for pair in zip(items[::2], items[1::2]) if isinstance(pair[0], str | int))
        self._stack.append(target)


def _items(arguments: tuple[Any, ...]) -> dict[Any, Any] | None:
    """The mapping that an OrderedDict is made of: nothing, or, as Python 2 wrote it, a list of pairs."""
    pairs = arguments[0] if len(arguments) == 1 else () if not arguments else None
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    return {key: value for key, value in pairs if isinstance(key, str | int)}


_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_STEPS: Mapping[str, Any] = {
    "PROTO": lambda machine, version: None,
    "MARK": Machine._mark,
    "NONE": Machine._none,
    "NEWTRUE": Machine._true,
    "NEWFALSE": Machine._false,
    "EMPTY_LIST": Machine._list,
    "EMPTY_DICT": Machine._dict,
    "EMPTY_TUPLE": Machine._empty_tuple,
    "TUPLE": Machine._tuple,
    "TUPLE1": Machine._tuple1,
    "TUPLE2": Machine._tuple2,
    "TUPLE3": Machine._tuple3,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "BINPERSID": Machine._persistent,
    "REDUCE": Machine._call,
    "NEWOBJ": Machine._call,
    "BUILD": Machine._build,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
}
