"""Pickles put together opcode by opcode, and the zip archives that torch keeps them in."""

import io
import pickletools
import random
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

START, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data)) + data


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return b"c" + module.encode("utf-8", "surrogatepass") + b"\n" + attribute.encode("utf-8", "surrogatepass") + b"\n"


def tuple_(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_(*arguments) + b"R"


def storage(*, kind: str = "torch.FloatStorage", key: str = "0", count: int = 6, location: str = "cpu") -> bytes:
    return tuple_(text("storage"), name(kind), text(key), text(location), number(count)) + b"Q"


def numbers(*values: int) -> bytes:
    return tuple_(*map(number, values))


def tensor(
    *,
    data: bytes | None = None,
    offset: int = 0,
    size: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    function: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    found = storage() if data is None else data
    return call(
        function, found, number(offset), numbers(*size), numbers(*strides), b"\x89", call("collections.OrderedDict")
    )


def program(content: bytes) -> bytes:
    return START + content + STOP


NUMBERS = struct.pack("<6f", *range(6))


def archive(
    content: bytes,
    *,
    files: Mapping[str, bytes] | None = None,
    folder: str = "a",
    packed: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> bytes:
    """A zip as torch writes it. content: its data.pkl; files: its storages; extra: other files by their whole name."""
    out = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", how) as made:
        made.writestr(f"{folder}/data.pkl", content)
        made.writestr(f"{folder}/byteorder", "little")
        for key, data in ({"0": NUMBERS} if files is None else files).items():
            made.writestr(f"{folder}/data/{key}", data)
        for whole, data in (extra or {}).items():
            made.writestr(whole, data)
        made.writestr(f"{folder}/version", "3\n")
    return out.getvalue()


def any_opcode(draw: random.Random, opcode: Any) -> bytes:
    """The opcode with an argument as it should be, or one that lies about its length."""
    argument = opcode.arg
    if argument is None:
        return bytes([ord(opcode.code)])
    lies = draw.choice((0, 1, 3, 255, 2**31 - 1, 2**32 - 1, 2**63))
    by_size = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1,
        pickletools.TAKEN_FROM_ARGUMENT4: 4,
        pickletools.TAKEN_FROM_ARGUMENT4U: 4,
        pickletools.TAKEN_FROM_ARGUMENT8U: 8,
    }
    if argument.n in by_size:
        width = by_size[argument.n]
        length = draw.choice((3, lies)) % 2 ** (8 * width)
        data = length.to_bytes(width, "little") + b"abc"
    elif argument.n == pickletools.UP_TO_NEWLINE:
        data = draw.choice((b"3\n", b"'abc'\n", b"os system\n", b"posix\nsystem\n", b"9" * 5000 + b"\n", b"no end"))
    else:
        data = draw.choice((b"\0", b"\1", b"\xff", b"\x7f")) * argument.n
    return opcode.code.encode("latin-1") + data
