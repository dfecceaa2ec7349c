"""Check size limits and integrity from a picture's bytes, before any pixel is decoded.

Needs no torch; the shard builder, training and prediction share it.
"""

import struct
import zlib
from typing import NamedTuple

import simplejpeg

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SCAN = b"\xff\xda"
MAX_SCANS = 64
"""Most scans of one JPEG; encoders of progressive JPEGs write about ten. Decoding passes over all pixels for each scan,
however short it is in the file, so that a hundred kilobytes could take hours."""
MAX_WORK = 10 * 2**26
"""Most pixels times scans: about two seconds of decoding."""


BMP_DEPTHS = {0: (1, 4, 8, 16, 24, 32), 3: (16, 32)}
"""Accepted bits per pixel, by BMP compression: 0 = none, 3 = colour masks."""
WEBP_ANIMATION, WEBP_ALPHA = 0x02, 0x10


class TooMuch(ValueError):
    """A picture is over a limit; the text gives its size as it would be decoded."""


class Header(NamedTuple):
    """height and width in pixels; depth: bits per channel; alpha: whether it has transparency."""

    height: int
    width: int
    depth: int = 8
    alpha: bool = False


def jpeg_size(jpeg: memoryview | bytes, *, max_pixels: int) -> tuple[int, int]:
    """Return (height, width) of a JPEG. Raises TooMuch, or ValueError when it is no JPEG."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except KeyError as error:
        raise ValueError("an unknown subsampling of colours") from error
    _check_pixels(height, width, max_pixels)
    scans = bytes(jpeg).count(SCAN)
    if scans > MAX_SCANS or scans * height * width > MAX_WORK:
        raise TooMuch(f"{scans} scans of {width} x {height} pixels")
    return height, width


def check_png(png: bytes, *, max_pixels: int) -> Header:
    """Check all chunks and their checksums: OpenCV would fill the missing part of a truncated PNG without an error.

    Raises:
        TooMuch: too large. ValueError: not a whole PNG; the text says what it is.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError("no PNG")
    at, kind, keyed = len(PNG_SIGNATURE), b"", False
    width = height = depth = colour = 0
    while kind != b"IEND":
        if at + 12 > len(png):
            raise ValueError("truncated")
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length
        if end > len(png):
            raise ValueError("truncated")
        if at == len(PNG_SIGNATURE):
            if kind != b"IHDR" or length != 13:
                raise ValueError("a damaged PNG")
            width, height, depth, colour = struct.unpack_from(">IIBB", png, at + 8)
            _check_pixels(height, width, max_pixels)
        if zlib.crc32(png[at + 4 : end - 4]) != struct.unpack_from(">I", png, end - 4)[0]:
            raise ValueError("a damaged PNG")
        keyed = keyed or kind == b"tRNS"
        at = end
    return Header(height, width, depth, alpha=keyed or colour in (4, 6))


def check_bmp(bmp: bytes, *, max_pixels: int) -> Header:
    """Compare the size that the header gives with the number of bytes.

    Raises:
        TooMuch: too large. ValueError: not a whole BMP of a supported kind; the text says what it is.
    """
    if not bmp.startswith(b"BM"):
        raise ValueError("no BMP")
    if len(bmp) < 26:
        raise ValueError("truncated")
    start, size = struct.unpack_from("<II", bmp, 10)
    compression = 0
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", bmp, 18)
    elif size >= 40:
        if len(bmp) < 14 + size:
            raise ValueError("truncated")
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", bmp, 18)
    else:
        raise ValueError("a damaged BMP")
    height = abs(height)  # negative: the first row is the top one
    _check_pixels(height, max(width, 0), max_pixels)
    if bits not in BMP_DEPTHS.get(compression, ()):
        raise ValueError(f"a BMP of a kind that is not read ({bits} bits, compression {compression})")
    if start < 14 + size:
        raise ValueError("a damaged BMP")
    if start + height * (-(-width * bits // 32) * 4) > len(bmp):
        raise ValueError("truncated")
    return Header(height, width)


def check_webp(webp: bytes, *, max_pixels: int) -> Header:
    """Read the chunks up to the one that holds the pixels.

    Raises:
        TooMuch: too large. ValueError: not a whole WebP with one picture; the text says what it is.
    """
    if len(webp) < 12 or webp[:4] != b"RIFF" or webp[8:12] != b"WEBP":
        raise ValueError("no WebP")
    end = 8 + struct.unpack_from("<I", webp, 4)[0]
    if end > len(webp):
        raise ValueError("truncated")
    at, alpha = 12, False
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", webp, at)
        body = webp[at + 8 : at + 8 + min(length, 10)]
        if at + 8 + length > end:
            raise ValueError("truncated")
        if kind == b"VP8X" and len(body) == 10:
            if body[0] & WEBP_ANIMATION:
                raise ValueError("an animated WebP, which is more than one frame")
            alpha = bool(body[0] & WEBP_ALPHA)
            _check_pixels(1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little"), max_pixels)
        elif kind in (b"VP8 ", b"VP8L"):
            header = _webp_size(kind, body)
            _check_pixels(header.height, header.width, max_pixels)
            return header._replace(alpha=alpha or header.alpha)
        at += 8 + length + length % 2
    raise ValueError("a damaged WebP")


def _webp_size(kind: bytes, body: bytes) -> Header:
    """Read the header from the first ten bytes of a lossy (VP8) or lossless (VP8L) picture."""
    if kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return Header(height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return Header(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), alpha=bool(bits >> 28 & 1))
    raise ValueError("a damaged WebP")


def _check_pixels(height: int, width: int, most: int) -> None:
    if not 0 < height * width <= most:
        raise TooMuch(f"{width} x {height} pixels, not 1 to {most:,}")
