"""Decode one picture's bytes to RGB. The content decides the format, not the name; limits are checked first."""

import sys
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dfer.media.bounds import PNG_SIGNATURE, Header, TooMuch, check_bmp, check_png, check_webp, jpeg_size
from dfer.media.tiff import SIGNATURES as TIFF_SIGNATURES
from dfer.media.tiff import decode_tiff

JPEG_SIGNATURE = b"\xff\xd8"
BMP_SIGNATURE = b"BM"
MAX_FILE_BYTES = 64 * 2**20
"""Largest file that is read as a picture."""
DARK = 2**14
"""A 16-bit picture with all values below this uses 14 bits or fewer: its upper 8 bits, which are read, look dark."""
UPPER = 1 if sys.byteorder == "little" else 0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture. rgb: uint8 [H W 3]. media: `jpeg`, `png`, `bmp`, `webp` or `tiff`.

    hides, dark: `rgb` differs from what a viewer shows. hides: transparent pixels have colours, which viewers blend.
    dark: the picture has 16 bits, of which at most 14 are used; only the upper 8 are read.
    """

    rgb: NDArray[np.uint8]
    media: str
    hides: bool = False
    dark: bool = False


def read_picture(data: bytes, *, max_pixels: int) -> Picture:
    """Decode a JPEG, PNG, BMP, WebP or TIFF and check that it is whole. Transparency and EXIF rotation are ignored.

    Raises:
        TooMuch: too many pixels or scans. ValueError: not a whole picture; the text says what it is.
    """
    if not data:
        raise ValueError("empty")
    if data.startswith(JPEG_SIGNATURE):
        return Picture(rgb=_jpeg(data, max_pixels), media="jpeg")
    if data.startswith(PNG_SIGNATURE):
        return _decoded(data, check_png(data, max_pixels=max_pixels), "PNG")
    if data.startswith(BMP_SIGNATURE):
        return _decoded(data, check_bmp(data, max_pixels=max_pixels), "BMP")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _decoded(data, check_webp(data, max_pixels=max_pixels), "WebP")
    if data[:4] in TIFF_SIGNATURES:
        return Picture(rgb=decode_tiff(data, max_pixels=max_pixels), media="tiff")
    raise ValueError("neither a JPEG nor a PNG, BMP, WebP or TIFF")


def _jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    try:
        jpeg_size(data, max_pixels=max_pixels)
    except TooMuch:
        raise
    except ValueError as error:
        raise ValueError(f"truncated or damaged ({str(error)[:80]})") from error
    try:
        rgb: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        what = "truncated" if "Premature end" in str(error) else "damaged or not a usual JPEG"
        raise ValueError(f"{what} ({str(error)[:80]})") from error
    return rgb


def _decoded(data: bytes, header: Header, kind: str) -> Picture:
    # Stored JPEGs are read without EXIF rotation, so other formats are too.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = _opencv(data, cv2.IMREAD_UNCHANGED if header.alpha or header.depth > 8 else flags, kind)
    if stored.shape[:2] != (header.height, header.width):
        raise ValueError(f"a damaged {kind}")
    return Picture(rgb=_rgb(stored), media=kind.lower(), hides=_hides(stored), dark=_dark(stored))


def _rgb(stored: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Convert [H W] grey or [H W 3 or 4] BGR(A) to RGB: alpha is dropped, and of 16 bits the upper 8 are kept."""
    if stored.dtype == np.uint16:
        stored = np.ascontiguousarray(stored.view(np.uint8)[..., UPPER::2])
    code = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(stored, code[stored.shape[2] if stored.ndim == 3 else 1]), dtype=np.uint8)


def _opencv(data: bytes, flags: int, kind: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    try:
        pixels: NDArray[np.uint8] | NDArray[np.uint16] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"a damaged {kind}") from error
    if pixels is None:
        raise ValueError(f"a damaged {kind}")
    return pixels


def _hides(stored: NDArray[np.uint8] | NDArray[np.uint16]) -> bool:
    if stored.ndim != 3 or stored.shape[2] != 4:
        return False
    opaque = np.iinfo(stored.dtype).max
    for row in stored:
        coloured = (row[:, 0] | row[:, 1] | row[:, 2]) > 0
        if np.any(coloured & (row[:, 3] < opaque)):
            return True
    return False


def _dark(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bool:
    if pixels.dtype != np.uint16:
        return False
    colours = pixels if pixels.ndim == 2 else pixels[:, :, :3]
    return 0 < int(colours.max()) < DARK
