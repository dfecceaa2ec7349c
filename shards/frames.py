"""Convert a raw picture to the stored JPEG or PNG: keep it byte for byte if it fits, else scale and encode it."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dfer.media.bounds import TooMuch
from dfer.media.pictures import MAX_FILE_BYTES, read_picture
from dfer.store.format import MAX_FRAME_BYTES, Media
from shards.sources.clips import UNREADABLE, BadClip, FrameFile

MAX_PIXELS = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoredFrame:
    """A JPEG or PNG for the shard. kept: whether it is the raw file byte for byte.

    hides, dark: a viewer shows the raw picture differently from the stored pixels (see `dfer.media.pictures.Picture`).
    """

    data: bytes
    kept: bool
    hides: bool = False
    dark: bool = False


def store_frame(frame: FrameFile, *, media: Media, max_side: int, quality: int) -> StoredFrame:
    """Read a frame, check by a strict full decode that it is whole, and scale and encode it if needed.

    media: format of stored frames; max_side: longest side in pixels; quality: JPEG quality 1..100, if it is encoded.

    Raises:
        BadClip: names the frame and its problem.
    """
    data = _read(frame)
    if frame.side:
        return StoredFrame(
            data=_encoded(_from_numbers(data, frame), media=media, max_side=max_side, quality=quality), kept=False
        )
    try:
        picture = read_picture(data, max_pixels=MAX_PIXELS)
    except TooMuch as error:
        raise BadClip(f"frame {frame.name} has {error}") from error
    except ValueError as error:
        raise BadClip(f"frame {frame.name} is {error}") from error
    rgb = _cropped(picture.rgb, frame) if frame.crop else picture.rgb
    fits = picture.media == media and max(rgb.shape[:2]) <= max_side and len(data) <= MAX_FRAME_BYTES
    kept = fits and rgb.shape == picture.rgb.shape
    if not kept:
        data = _encoded(rgb, media=media, max_side=max_side, quality=quality)
    if len(data) > MAX_FRAME_BYTES:
        raise BadClip(f"frame {frame.name} is larger than {MAX_FRAME_BYTES >> 20} MiB as {media.upper()}")
    return StoredFrame(data=data, kept=kept, hides=picture.hides, dark=picture.dark)


def _read(frame: FrameFile) -> bytes:
    if frame.size > MAX_FILE_BYTES:
        raise BadClip(f"frame {frame.name} is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        if not frame.side:
            return Path(frame.path).read_bytes()
        with Path(frame.path).open("rb") as file:
            file.seek(frame.start)
            return file.read(frame.size)
    except OSError as error:
        raise BadClip(f"frame {frame.name} {UNREADABLE} ({error.strerror})") from error


def _from_numbers(data: bytes, frame: FrameFile) -> NDArray[np.uint8]:
    """Make the grey picture [side side 3] of its numbers. Raises BadClip."""
    words = data.split()
    if len(words) != frame.side**2 or not all(map(bytes.isdigit, words)) or max(map(len, words)) > 3:
        raise BadClip(f"{len(words)} grey values, or others than whole numbers, in place of {frame.side}x{frame.side}")
    values = np.array(words).astype(np.int64).reshape(frame.side, frame.side, 1)
    if values.max() > 255:
        raise BadClip(f"a grey value of {values.max()}, more than 255")
    return np.repeat(values.astype(np.uint8), 3, axis=2)


def _cropped(rgb: NDArray[np.uint8], frame: FrameFile) -> NDArray[np.uint8]:
    """Cut the crop out of a picture [H W 3], as far as it lies inside. Raises BadClip if nothing does."""
    left, top, width, height = frame.crop or (0, 0, 0, 0)
    part = rgb[max(0, round(top)) : max(0, round(top + height)), max(0, round(left)) : max(0, round(left + width))]
    if not part.size:
        raise BadClip(f"frame {frame.name} has its face box outside of the picture")
    return np.ascontiguousarray(part)


def _encoded(rgb: NDArray[np.uint8], *, media: Media, max_side: int, quality: int) -> bytes:
    height, width = rgb.shape[:2]
    scale = max_side / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if media == "jpeg":
        jpeg: bytes = simplejpeg.encode_jpeg(rgb, quality, "RGB", "444")
        return jpeg
    grey = bool((rgb[..., :1] == rgb).all())
    pixels = np.ascontiguousarray(rgb[..., 0] if grey else rgb[..., ::-1])
    _, png = cv2.imencode(".png", pixels)
    return png.tobytes()
