"""What the bytes of a picture say of it before any pixel is decoded: nothing that is large is begun.

Needs no torch; the builder of shards, training and prediction share it.
"""

import struct
import zlib

import simplejpeg

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SCAN = b"\xff\xda"
MAX_SCANS = 64
"""Scans of one JPEG; encoders of progressive ones write about ten. Each is a pass over all pixels, however short it is
in the file, so that a hundred kilobytes can ask for hours."""
MAX_WORK = 10 * 2**26
"""Pixels times scans: about two seconds."""


class TooMuch(ValueError):
    """What a picture would be, were it decoded."""


def jpeg_size(jpeg: memoryview | bytes, *, max_pixels: int) -> tuple[int, int]:
    """(height, width) of a JPEG. Raises TooMuch, or ValueError where it is no JPEG."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except KeyError as error:
        raise ValueError("an unknown subsampling of colours") from error
    _check_pixels(height, width, max_pixels)
    scans = bytes(jpeg).count(SCAN)
    if scans > MAX_SCANS or scans * height * width > MAX_WORK:
        raise TooMuch(f"{scans} scans of {width} x {height} pixels")
    return height, width


def check_png(png: bytes, *, max_pixels: int) -> None:
    """Walk the chunks and their checksums: OpenCV fills what is missing of a cut PNG without an error.

    Raises:
        TooMuch: too large. ValueError: what it is instead of a whole PNG.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError("no PNG")
    at, kind = len(PNG_SIGNATURE), b""
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
            width, height = struct.unpack_from(">II", png, at + 8)
            _check_pixels(height, width, max_pixels)
        if zlib.crc32(png[at + 4 : end - 4]) != struct.unpack_from(">I", png, end - 4)[0]:
            raise ValueError("a damaged PNG")
        at = end


def _check_pixels(height: int, width: int, most: int) -> None:
    if not 0 < height * width <= most:
        raise TooMuch(f"{width} x {height} pixels, not 1 to {most:,}")
