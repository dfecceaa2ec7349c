"""One raw picture into the JPEG that is stored: kept byte for byte when it fits, otherwise scaled down and encoded."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dfer.data.format import MAX_FRAME_BYTES
from shards.sources.clips import UNREADABLE, BadClip, FrameFile

MAX_SOURCE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"


@dataclass(frozen=True, kw_only=True)
class StoredFrame:
    """A JPEG for the shard. kept: whether it is the raw file byte for byte."""

    jpeg: bytes
    kept: bool


def store_frame(frame: FrameFile, *, max_side: int, quality: int) -> StoredFrame:
    """Read, prove whole by a strict full decode, and scale and encode where needed.

    max_side: longest side in pixels; quality: JPEG quality 1..100 of frames that are encoded.

    Raises:
        BadClip: with the frame's name and what is wrong with it.
    """
    data = _read(frame)
    try:
        if data.startswith(PNG_SIGNATURE):
            return _encoded(_decode_png(data), max_side=max_side, quality=quality)
        rgb = _decode_jpeg(data)
    except ValueError as error:
        raise BadClip(f"frame {frame.name} {error}") from error
    if max(rgb.shape[:2]) > max_side or len(data) > MAX_FRAME_BYTES:
        return _encoded(rgb, max_side=max_side, quality=quality)
    return StoredFrame(jpeg=data, kept=True)


def _read(frame: FrameFile) -> bytes:
    if frame.size > MAX_SOURCE_BYTES:
        raise BadClip(f"frame {frame.name} is larger than {MAX_SOURCE_BYTES >> 20} MiB")
    try:
        data = Path(frame.path).read_bytes()
    except OSError as error:
        raise BadClip(f"frame {frame.name} {UNREADABLE} ({error.strerror})") from error
    if not data:
        raise BadClip(f"frame {frame.name} is empty")
    return data


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    if not data.startswith(JPEG_SIGNATURE):
        raise ValueError("is neither a JPEG nor a PNG")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ValueError(f"is truncated or damaged ({str(error)[:80]})") from error
    _check_pixels(height, width)
    try:
        rgb: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        what = "is truncated" if "Premature end" in str(error) else "is damaged or not a usual JPEG"
        raise ValueError(f"{what} ({str(error)[:80]})") from error
    return rgb


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    _check_png(data)
    # Stored JPEGs are read without their EXIF rotation, so PNGs are too.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("is a damaged PNG") from error
    if bgr is None:
        raise ValueError("is a damaged PNG")
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)


def _check_png(data: bytes) -> None:
    """Walk the chunks and their checksums: OpenCV fills what is missing of a cut PNG without an error."""
    at, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("is truncated")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError("is truncated")
        if at == len(PNG_SIGNATURE):
            if kind != b"IHDR" or length != 13:
                raise ValueError("is a damaged PNG")
            _check_pixels(*struct.unpack_from(">II", data, at + 8))
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError("is a damaged PNG")
        at = end


def _check_pixels(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"has {width}x{height} pixels")


def _encoded(rgb: NDArray[np.uint8], *, max_side: int, quality: int) -> StoredFrame:
    height, width = rgb.shape[:2]
    scale = max_side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return StoredFrame(jpeg=simplejpeg.encode_jpeg(rgb, quality, "RGB", "444"), kept=False)
