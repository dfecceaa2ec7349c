"""One raw picture into the JPEG that is stored: kept byte for byte when it fits, otherwise scaled down and encoded."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dfer.data.bounds import PNG_SIGNATURE, TooMuch, check_png, jpeg_size
from dfer.data.format import MAX_FRAME_BYTES
from shards.sources.clips import UNREADABLE, BadClip, FrameFile

MAX_SOURCE_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
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
    except TooMuch as error:
        raise BadClip(f"frame {frame.name} has {error}") from error
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
        jpeg_size(data, max_pixels=MAX_PIXELS)
    except TooMuch:
        raise
    except ValueError as error:
        raise ValueError(f"is truncated or damaged ({str(error)[:80]})") from error
    try:
        rgb: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        what = "is truncated" if "Premature end" in str(error) else "is damaged or not a usual JPEG"
        raise ValueError(f"{what} ({str(error)[:80]})") from error
    return rgb


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    try:
        check_png(data, max_pixels=MAX_PIXELS)
    except TooMuch:
        raise
    except ValueError as error:
        raise ValueError(f"is {error}") from error
    # Stored JPEGs are read without their EXIF rotation, so PNGs are too.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("is a damaged PNG") from error
    if bgr is None:
        raise ValueError("is a damaged PNG")
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)


def _encoded(rgb: NDArray[np.uint8], *, max_side: int, quality: int) -> StoredFrame:
    height, width = rgb.shape[:2]
    scale = max_side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return StoredFrame(jpeg=simplejpeg.encode_jpeg(rgb, quality, "RGB", "444"), kept=False)
