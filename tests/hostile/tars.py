"""Tars: headers that lie, members that are links, devices or paths elsewhere, extensions, cuts, hostile payloads."""

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import pictures_kit, shards, values
from tests.hostile.shards import Seeds
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 520
BLOCK = 512
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 6),
    "version": (263, 2),
    "user": (265, 32),
    "group": (297, 32),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
}
TYPES = b"\x001234567SxgLKVMNADX\xff "
SIZES = (
    b"00000000000\0",
    b"77777777777\0",
    b"-0000000001\0",
    b"0x000000010\0",
    b"99999999999\0",
    b"            ",
    b"\x80" + b"\0" * 10 + b"\x01",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\x80" + b"\0" * 11,
    b"\xff" + b"\xff" * 10 + b"\x9c",
    b"1e10\0\0\0\0\0\0\0\0",
    b"\xb2\xb2\0\0\0\0\0\0\0\0\0\0",
)

seeds = shards.seeds


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    yield shards.case("as it was built", seeds)
    draw = rng("tars")
    yield MUTATED
    for number in range(COUNT - 1):
        name, tar, refuse = FORMS[number % len(FORMS)](seeds.tar, draw)
        # A tar that is not the manifest's must be refused whatever it holds.
        sign = number % 10 != 9 or tar == seeds.tar
        yield shards.case(
            name, seeds, tar=tar, sign=sign, refuse=("verify", "train") if not sign else ("verify",) if refuse else ()
        )


def headers(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()


def summed(header: bytes) -> bytes:
    """The header with the checksum that fits."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _field(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """One field of one header is hostile; the checksum fits, mostly."""
    member = draw.choice(headers(tar))
    field = draw.choice(sorted(FIELDS))
    at, size = FIELDS[field]
    if field == "type":
        value = bytes([draw.choice(TYPES)])
    elif field in ("size", "mtime", "uid", "mode", "checksum"):
        value = draw.choice(SIZES)[:size]
    else:
        value = draw.choice(values.PATHS).encode("utf-8", "surrogatepass")
    header = bytearray(tar[member.offset : member.offset + BLOCK])
    header[at : at + size] = value[:size].ljust(size, b"\0")
    fitting = bytes(header) if field == "checksum" or draw.random() < 0.1 else summed(bytes(header))
    return f"{field} {value[:20]!r} of {member.name}", _put(tar, member.offset, fitting), False


def _put(tar: bytes, at: int, block: bytes) -> bytes:
    return tar[:at] + block + tar[at + len(block) :]


def _link(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """A member becomes a link, a device, a folder or a pipe of the same name or of one elsewhere."""
    member = draw.choice(headers(tar))
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.type = draw.choice(
        (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
            tarfile.CONTTYPE,
            tarfile.GNUTYPE_SPARSE,
        )
    )
    info.linkname = draw.choice(("/etc/passwd", "../MARK", "../../MARK", member.name, "."))
    if draw.random() < 0.3:
        info.name = draw.choice(("../MARK", "/MARK", "a/../../MARK"))
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"%011o\0" % member.size  # tarfile writes none for links
    kind = f"{info.type!r} -> {info.linkname} at {member.name}"
    return kind, _put(tar, member.offset, summed(bytes(header))), True


def _extra(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """A member or an extended header that the index does not know, at any place."""
    at = draw.choice([member.offset for member in headers(tar)] + [len(tar) - 10 * BLOCK, len(tar)])
    name = draw.choice(("../MARK", "/MARK", "x.000.jpg", "a" * 90, "00001.json"))
    kind = draw.choice(("x", "g", "L", "K", "plain", "sparse", "link"))
    if kind in "xg":
        records = draw.choice(
            (
                b"19 path=../../MARK\n",
                b"30 size=99999999999999999999\n",
                b"999999999 a=b\n",
                b"-1 a=b\n",
                b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n23 GNU.sparse.realsize=9\n",
                b"\0" * 512,
                b"21 linkpath=/etc/x\n\n",
                b"11 hdrcharset=\xff\n",
            )
        )
        new = _member("pax", records, kind.encode())
    elif kind in "LK":
        new = _member("././@LongLink", name.encode() * 400, kind.encode())
    elif kind == "sparse":
        new = _member(name, b"x" * 100, b"S")
    elif kind == "link":
        new = _member(name, b"", b"2", link="/etc/passwd")
    else:
        new = _member(name, b"x" * 100, b"0")
    return f"{kind} {name} put in at {at}", tar[:at] + new + tar[at:], True


def _member(name: str, data: bytes, kind: bytes, *, link: str = "") -> bytes:
    info = tarfile.TarInfo(name[:99])
    info.size, info.type, info.linkname = len(data), kind, link
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[156:157] = kind
    return summed(bytes(header)) + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def _damage(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    how, data = values.damaged(tar, draw)
    return how, data, False


def _header_damage(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """Any bytes of a header, the checksum fits."""
    member = draw.choice(headers(tar))
    how, block = values.damaged(tar[member.offset : member.offset + BLOCK], draw)
    return f"{how} of a header", _put(tar, member.offset, summed(block[:BLOCK].ljust(BLOCK, b"\0"))), False


def _payload(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """The bytes of a frame become another picture, as far as they fit."""
    member = draw.choice([member for member in headers(tar) if member.name.endswith(".jpg")])
    how, jpeg = pictures_kit.hostile_jpeg(draw)
    data = jpeg[: member.size].ljust(member.size, b"\0")
    return f"{how} as {member.name}", _put(tar, member.offset_data, data), False


def _json(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """What a clip's `.json` says is something else; the sizes around it are kept, or grow with it."""
    member = draw.choice([member for member in headers(tar) if member.name.endswith(".json")])
    how, text = values.broken_json(tar[member.offset_data : member.offset_data + member.size], draw)
    text = text or b"\0"
    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
    header = bytearray(tar[member.offset : member.offset_data])
    header[124:136] = b"%011o\0" % len(text)
    padded = text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0")
    return f"{how} as {member.name}", tar[: member.offset] + summed(bytes(header)) + padded + tar[end:], False


def _other(tar: bytes, draw: random.Random) -> tuple[str, bytes, bool]:
    """No such tar at all."""
    data = draw.choice(
        (
            b"",
            b"\0" * BLOCK,
            b"\0" * 10240,
            b"\xff" * 10240,
            draw.randbytes(20_000),
            tar[:BLOCK] * 50,
            tar[BLOCK:],
            b"PK\x03\x04" + tar,
            b"\x1f\x8b\x08\0" + tar,
            tar[::-1],
            tar + tar,
            b"pipe:touch MARK\n" * 700,
        )
    )
    return f"{data[:8]!r} instead", data, True


FORMS = (
    _field,
    _link,
    _extra,
    _damage,
    _header_damage,
    _payload,
    _json,
    _field,
    _other,
    _extra,
    _payload,
    _damage,
    _json,
)
