"""Hostile JPEGs, PNGs, BMPs and WebPs."""

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile import values

SOF0, SOF2, DHT, DQT, DRI, SOS, EOI, APP1, COM = 0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xDA, 0xD9, 0xE1, 0xFE
SIDES = (
    (65535, 65535),
    (65500, 65500),
    (1, 65535),
    (65535, 1),
    (0, 0),
    (0, 24),
    (24, 0),
    (4096, 4096),
    (4097, 4096),
    (8192, 8192),
    (8193, 8192),
    (65535, 256),
    (3, 5),
    (10_000, 1600),
)
PNG = b"\x89PNG\r\n\x1a\n"


@functools.cache
def whole_jpegs() -> dict[str, bytes]:
    """Pictures of every kind that encoders write, by PIL."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 26, 3), np.uint8)
    picture = Image.fromarray(pixels)
    forms: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "baseline": (picture, {}),
        "progressive": (picture, {"progressive": True}),
        "grey": (picture.convert("L"), {}),
        "progressive grey": (picture.convert("L"), {"progressive": True}),
        "CMYK": (picture.convert("CMYK"), {}),
        "4:4:4": (picture, {"subsampling": 0}),
        "4:2:2, restarts": (picture, {"subsampling": 1, "restart_marker_blocks": 1}),
        "rotated by EXIF": (picture, {"exif": _rotated()}),
        "a colour profile": (picture, {"icc_profile": b"x" * 70_000}),
        "RGB without a transform": (picture, {"keep_rgb": True}),
    }
    return {name: _encoded(image, options) for name, (image, options) in forms.items()}


def _encoded(picture: Image.Image, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", **options)
    return out.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """(marker, place, length with its two bytes) of the segments before the first scan's data."""
    found, at = [], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((marker, at, length))
        at += 2 + length
        if marker == SOS:
            break
    return found


def _segment(jpeg: bytes, *markers: int) -> int:
    return next((at for marker, at, _ in segments(jpeg) if marker in markers), 2)


def sided(jpeg: bytes, height: int, width: int) -> bytes:
    at = _segment(jpeg, SOF0, SOF2)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _part(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", (len(data) + 2) % 65536) + data


def scans(jpeg: bytes, count: int) -> bytes:
    """A progressive picture whose last scan comes `count` times more: each costs a pass over all its pixels."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + jpeg[-2:]


@functools.cache
def large_progressive(side: int) -> bytes:
    """A large picture of one grey, small as a file."""
    return _encoded(Image.new("L", (side, side), 128), {"progressive": True})


def hostile_jpeg(draw: random.Random) -> tuple[str, bytes]:
    """(what it is, bytes)."""
    kind = draw.choice(sorted(whole_jpegs()))
    jpeg = whole_jpegs()[kind]
    frame, tables, scan = _segment(jpeg, SOF0, SOF2), _segment(jpeg, DHT), _segment(jpeg, SOS)

    def put(at: int, data: bytes) -> bytes:
        return jpeg[:at] + data + jpeg[at + len(data) :]

    _, at, _ = draw.choice(segments(jpeg))
    height, width = draw.choice(SIDES)
    forms: dict[str, Callable[[], bytes]] = {
        f"{width} x {height} pixels": lambda: sided(jpeg, height, width),
        "12 bit": lambda: put(frame + 4, bytes([12])),
        "other bits": lambda: put(frame + 4, bytes([draw.choice((0, 1, 7, 9, 16, 255))])),
        "another kind of frame": lambda: put(
            frame + 1, bytes([draw.choice((0xC1, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xF7))])
        ),
        "components": lambda: put(frame + 9, bytes([draw.choice((0, 2, 4, 5, 255))])),
        "sampling": lambda: put(frame + 11, bytes([draw.choice((0x00, 0x44, 0x14, 0x41, 0xFF, 0x13))])),
        "no such table": lambda: put(frame + 12, bytes([draw.choice((3, 4, 255))])),
        "codes": lambda: put(tables + 5, draw.randbytes(16)),
        "too many codes": lambda: put(tables + 5, b"\xff" * 16),
        "a scan of others": lambda: put(scan + 5, draw.randbytes(2)),
        "a scan of nothing": lambda: put(scan + 4, b"\0"),
        "spectral selection": lambda: put(scan + 4 + 1 + 2 * jpeg[scan + 4], draw.randbytes(3)),
        "a length that lies": lambda: put(
            at + 2, struct.pack(">H", draw.choice((0, 1, 2, 3, 65535, len(jpeg) % 65536)))
        ),
        "a segment less": lambda: jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :],
        "two frames": lambda: jpeg[:scan] + jpeg[frame:scan] + jpeg[scan:],
        "two starts": lambda: jpeg[:2] + jpeg,
        "a start alone": lambda: b"\xff\xd8" * draw.choice((1, 1000)),
        "comments": lambda: jpeg[:2] + _part(COM, b"pipe:touch MARK" * 4000) * 50 + jpeg[2:],
        "EXIF of nothing": lambda: (
            jpeg[:2] + _part(APP1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + draw.randbytes(50)) + jpeg[2:]
        ),
        "restarts": lambda: jpeg[:scan] + _part(DRI, draw.choice((b"\0\1", b"\xff\xff", b"\0"))) + jpeg[scan:],
        "no end": lambda: jpeg[:-2],
        "cut": lambda: jpeg[: draw.randrange(len(jpeg))],
        "cut in its scan": lambda: jpeg[: draw.randrange(scan, len(jpeg))],
        "something behind": lambda: jpeg + draw.choice((b"\0" * 1000, jpeg, b"PK\x03\x04" * 100, draw.randbytes(500))),
        "ones in its scan": lambda: jpeg[: scan + 14] + b"\xff" * 500 + jpeg[scan + 14 :],
        "noise as its scan": lambda: jpeg[: scan + 14] + draw.randbytes(2000).replace(b"\xff", b"\0") + b"\xff\xd9",
        "scans": lambda: scans(whole_jpegs()["progressive"], draw.choice((5, 100, 5000))),
        "large with short scans": lambda: scans(large_progressive(4096), draw.choice((40, 3000))),
        "another format": lambda: draw.choice(
            (
                b"GIF89a" + b"\xff" * 50,
                b"BM" + b"\xff" * 60,
                b"II*\0" + b"\xff" * 60,
                b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 60,
                b"%PDF-1.7",
                b"",
                b"#!/bin/sh\ntouch MARK\n",
                PNG,
            )
        ),
        "damage": lambda: values.damaged(jpeg, draw)[1],
        "more damage": lambda: values.damaged(values.damaged(jpeg, draw)[1], draw)[1],
    }
    how = draw.choice(sorted(forms))
    return f"{kind}: {how}", forms[how]()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def whole_pngs() -> dict[str, bytes]:
    """Pictures of every kind that encoders write, by PIL."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 26, 3), np.uint8)
    picture = Image.fromarray(pixels)
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (24, 26), np.uint16))
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 5000, zip=True)
    forms: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "RGB": (picture, {}),
        "grey": (picture.convert("L"), {}),
        "transparent": (picture.convert("RGBA"), {}),
        "palette": (picture.convert("P"), {"transparency": 3}),
        "one bit": (picture.convert("1"), {}),
        "16 bit": (deep, {}),
        "text": (picture, {"pnginfo": text}),
        "animated": (picture, {"save_all": True, "append_images": [picture.rotate(90)] * 3}),
        "rotated by EXIF": (picture, {"exif": _rotated()}),
    }
    found = {}
    for name, (image, options) in forms.items():
        out = io.BytesIO()
        image.save(out, "PNG", **options)
        found[name] = out.getvalue()
    return found


def _header(width: int, height: int, *, depth: int = 8, colour: int = 2, rest: bytes = b"\0\0\0") -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + rest)


def zeros(count: int) -> bytes:
    """`count` bytes of 0 as zlib packs them; the same packed block again and again, so that gigabytes take no time."""
    block = 1 << 20
    packer = zlib.compressobj(9, wbits=-15)
    whole = packer.compress(b"\0" * block) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(b"\0" * (count % block)) + packer.flush()
    return b"\x78\xda" + whole * (count // block) + rest + struct.pack(">HH", count % 65521, 1)


def bomb(width: int, height: int, *, colour: int = 2, depth: int = 8) -> bytes:
    """A picture of zeros, whole and small as a file."""
    row = 1 + -(-width * {0: 1, 2: 3, 6: 4}[colour] * depth // 8)
    data = zeros(row * height)
    return PNG + _header(width, height, colour=colour, depth=depth) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile_png(draw: random.Random) -> tuple[str, bytes]:
    """(what it is, bytes)."""
    kind = draw.choice(sorted(whole_pngs()))
    png = whole_pngs()[kind]
    head, rest = png[8:33], png[33:]
    width, height = draw.choice(
        ((2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (0, 0), (0, 5), (1, 2**24), (2**16, 2**16), (5000, 5000))
    )
    forms: dict[str, Callable[[], bytes]] = {
        f"{width} x {height} pixels": lambda: PNG + _header(width, height) + rest,
        "depth and colour": lambda: PNG + _header(26, 24, depth=draw.randrange(256), colour=draw.randrange(256)) + rest,
        "methods": lambda: PNG + _header(26, 24, rest=draw.randbytes(3)) + rest,
        "a wrong checksum": lambda: png[:29] + b"\0\0\0\0" + rest,
        "no header": lambda: PNG + rest,
        "two headers": lambda: PNG + head + _header(5000, 3000) + rest,
        "late header": lambda: PNG + chunk(b"tEXt", b"a\0b") + head + rest,
        "a profile bomb": lambda: PNG + head + chunk(b"iCCP", b"a\0\0" + zeros(50_000_000)) + rest,
        "a text bomb": lambda: PNG + head + chunk(b"zTXt", b"a\0\0" + zeros(50_000_000)) + rest,
        "many texts": lambda: PNG + head + chunk(b"tEXt", b"a\0" + b"b" * 100) * 5000 + rest,
        "too much data": lambda: PNG + head + chunk(b"IDAT", zeros(50_000_000)) + chunk(b"IEND", b""),
        "no data": lambda: PNG + head + chunk(b"IEND", b""),
        "no deflate": lambda: PNG + head + chunk(b"IDAT", draw.randbytes(2000)) + chunk(b"IEND", b""),
        "a palette that lies": lambda: PNG + head + chunk(b"PLTE", b"x" * draw.choice((0, 1, 3, 768, 900))) + rest,
        "an animation": lambda: PNG + head + chunk(b"acTL", b"\xff" * 8) + chunk(b"fcTL", draw.randbytes(26)) + rest,
        "an animation of much": lambda: (
            PNG
            + head
            + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
            + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 0, 0, 1, 1, 0, 0))
            + rest
        ),
        "EXIF": lambda: PNG + head + chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff" + draw.randbytes(60)) + rest,
        "unknown chunks": lambda: PNG + head + chunk(draw.choice((b"ABCD", b"aBCD", b"\0\0\0\0")), b"x") + rest,
        "a length that lies": lambda: png[:33] + struct.pack(">I", draw.choice((0, 2**31, 2**32 - 1, 5))) + png[37:],
        "many pixels": lambda: bomb(
            *draw.choice(((4096, 4096), (4000, 4100), (16384, 1024))), colour=draw.choice((0, 2, 6))
        ),
        "deep pixels": lambda: bomb(4096, 4096, colour=2, depth=16),
        "a JPEG": lambda: whole_jpegs()["baseline"],
        "another format": lambda: draw.choice(
            (b"GIF89a" + b"\xff" * 50, b"BM" + b"\xff" * 60, b"", PNG, PNG + b"\0" * 30)
        ),
        "cut": lambda: png[: draw.randrange(len(png))],
        "something behind": lambda: png + b"PK\x03\x04" * 100,
        "damage": lambda: values.damaged(png, draw)[1],
        "more damage": lambda: values.damaged(values.damaged(png, draw)[1], draw)[1],
    }
    how = draw.choice(sorted(forms))
    return f"{kind}: {how}", forms[how]()


@functools.cache
def whole_bmps() -> dict[str, bytes]:
    """Pictures of every kind that encoders write, by PIL, and one with its rows from the top."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 26, 3), np.uint8))
    found = {}
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        out = io.BytesIO()
        picture.convert(mode).save(out, "BMP")
        found[mode] = out.getvalue()
    found["from the top"] = found["RGB"][:22] + struct.pack("<i", -24) + found["RGB"][26:]
    found["an old header"] = b"BM" + struct.pack("<IHHIIHHHH", 98, 0, 0, 26, 12, 4, 4, 1, 24) + bytes(48)
    return found


@functools.cache
def whole_webps() -> dict[str, bytes]:
    """Pictures of every kind that encoders write, by PIL."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 26, 3), np.uint8))
    transparent = picture.copy()
    transparent.putalpha(90)
    forms: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "lossy": (picture, {}),
        "lossless": (picture, {"lossless": True}),
        "transparent": (transparent, {}),
        "transparent, lossless": (transparent, {"lossless": True, "exact": True}),
        "a profile": (picture, {"icc_profile": b"x" * 5000}),
        "rotated by EXIF": (picture, {"exif": _rotated()}),
    }
    found = {}
    for name, (image, options) in forms.items():
        out = io.BytesIO()
        image.save(out, "WEBP", **options)
        found[name] = out.getvalue()
    return found


@functools.cache
def large_webp(side: int, *, alpha: bool = False) -> bytes:
    """A large lossless picture of one colour, small as a file."""
    out = io.BytesIO()
    Image.new("RGBA" if alpha else "RGB", (side, side), (9, 99, 200, 3)[: 4 if alpha else 3]).save(
        out, "WEBP", lossless=True, exact=True, method=0
    )
    return out.getvalue()


def hostile_bmp(draw: random.Random) -> tuple[str, bytes]:
    """(what it is, bytes)."""
    kind = draw.choice(sorted(whole_bmps()))
    bmp = whole_bmps()[kind]
    width, height = draw.choice(
        ((2**31 - 1, 2**31 - 1), (65535, 65535), (0, 5), (-3, 5), (5, -(2**31)), (8192, 8192), (1, 2**24))
    )

    def put(at: int, form: str, *values: int) -> bytes:
        return bmp[:at] + struct.pack(form, *values) + bmp[at + struct.calcsize(form) :]

    forms: dict[str, Callable[[], bytes]] = {
        f"{width} x {height} pixels": lambda: put(18, "<ii", width, height),
        "bits": lambda: put(28, "<H", draw.choice((0, 1, 2, 4, 8, 16, 24, 32, 64, 65535))),
        "compression": lambda: put(30, "<I", draw.choice((1, 2, 3, 4, 5, 6, 2**32 - 1))),
        "16 bits by masks": lambda: put(28, "<HI", 16, 3),
        "32 bits by masks": lambda: put(28, "<HI", 32, 3),
        "a header of another size": lambda: put(14, "<I", draw.choice((0, 12, 16, 39, 52, 124, 2**32 - 1))),
        "pixels elsewhere": lambda: put(10, "<I", draw.choice((0, 14, len(bmp), len(bmp) - 1, 2**32 - 1))),
        "a palette that lies": lambda: put(46, "<I", draw.choice((1, 257, 2**31, 2**32 - 1))),
        "a large one, cut": lambda: put(18, "<ii", 8000, 8000),
        "cut": lambda: bmp[: draw.randrange(len(bmp))],
        "something behind": lambda: bmp + b"PK\x03\x04" * 100,
        "a WebP": lambda: whole_webps()["lossy"],
        "damage": lambda: values.damaged(bmp, draw)[1],
        "more damage": lambda: values.damaged(values.damaged(bmp, draw)[1], draw)[1],
    }
    how = draw.choice(sorted(forms))
    return f"BMP, {kind}: {how}", forms[how]()


def hostile_webp(draw: random.Random) -> tuple[str, bytes]:
    """(what it is, bytes)."""
    kind = draw.choice(sorted(whole_webps()))
    webp = whole_webps()[kind]

    def riff(*chunks: bytes) -> bytes:
        body = b"WEBP" + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(body)) + body

    def part(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    canvas = b"\0\0\0" + draw.choice((b"\xff\xff\xff", b"\x17\0\0")) * 2
    lossy, lossless = whole_webps()["lossy"][12:], whole_webps()["lossless"][12:]
    forms: dict[str, Callable[[], bytes]] = {
        "another canvas": lambda: riff(part(b"VP8X", bytes([draw.randrange(256)]) + canvas), lossy),
        "an animation": lambda: riff(
            part(b"VP8X", b"\x02" + canvas), part(b"ANIM", bytes(6)), part(b"ANMF", draw.randbytes(16) + lossy)
        ),
        "frames without a flag": lambda: riff(part(b"VP8X", b"\0" + canvas), part(b"ANMF", draw.randbytes(16) + lossy)),
        "alpha of nothing": lambda: riff(part(b"VP8X", b"\x10" + canvas), part(b"ALPH", draw.randbytes(40)), lossy),
        "lossy, of other sides": lambda: riff(lossy[:14] + draw.randbytes(4) + lossy[18:]),
        "lossless, of other sides": lambda: riff(lossless[:9] + draw.randbytes(4) + lossless[13:]),
        "two pictures": lambda: riff(lossy, lossless),
        "many chunks": lambda: riff(*[part(b"JUNK", b"")] * 100_000, lossy),
        "a chunk that lies": lambda: webp[:16] + struct.pack("<I", draw.choice((0, 5, 2**31, 2**32 - 1))) + webp[20:],
        "a size that lies": lambda: webp[:4] + struct.pack("<I", draw.choice((0, 4, 2**31, 2**32 - 1))) + webp[8:],
        "no picture": lambda: riff(part(b"EXIF", b"x" * 50)),
        "noise": lambda: riff(lossy[:18] + draw.randbytes(len(lossy) - 18)),
        "noise, lossless": lambda: riff(lossless[:13] + draw.randbytes(len(lossless) - 13)),
        "many pixels": lambda: large_webp(4096, alpha=draw.random() < 0.5),
        "cut": lambda: webp[: draw.randrange(len(webp))],
        "damage": lambda: values.damaged(webp, draw)[1],
        "more damage": lambda: values.damaged(values.damaged(webp, draw)[1], draw)[1],
    }
    how = draw.choice(sorted(forms))
    return f"WebP, {kind}: {how}", forms[how]()
