"""Decode the bytes of one JPEG or PNG to an RGB picture.

Shards are untrusted: the size in the header is checked before any pixel is decoded.
"""

import numpy as np
import simplejpeg

from dfer.data.geometry import MAX_PIXELS, Picture, Steps, apply
from dfer.errors import DataError, message
from dfer.media.bounds import PNG_SIGNATURE, jpeg_size
from dfer.media.pictures import read_picture

CHECK_SHARDS = "Check the shards with `dfer-shards verify`."


class Decoder:
    """Decodes pictures into memory that it keeps, because new memory costs a tenth of the time: a picture is valid
    until the next one is decoded."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def __call__(self, data: memoryview | bytes, *, where: str, out: Picture | None = None) -> Picture:
        """Decode a JPEG or PNG to uint8 [H W 3], RGB, as it is stored.

        Args:
            where: shard, clip and frame, for the message.
            out: contiguous array [H W 3], into which a JPEG of just this size is decoded.
        Raises:
            DataError: the data are neither JPEG nor PNG, are damaged or truncated, have more than MAX_PIXELS, or more
                JPEG scans than any encoder writes.
        """
        try:
            if bytes(data[: len(PNG_SIGNATURE)]) == PNG_SIGNATURE:
                return read_picture(bytes(data), max_pixels=MAX_PIXELS).rgb
            height, width = jpeg_size(data, max_pixels=MAX_PIXELS)
            fits = out is not None and out.shape[:2] == (height, width)
            into = out if fits and out is not None else self._memory(height, width)
            simplejpeg.decode_jpeg(data, buffer=into)
        except ValueError as error:
            raise _unreadable(where, error) from error
        return into

    def _memory(self, height: int, width: int) -> Picture:
        size = height * width * 3
        if len(self._kept) < size:
            self._kept = np.empty(size, np.uint8)
        return self._kept[:size].reshape(height, width, 3)


def seen(steps: Steps, picture: Picture, *, where: str) -> Picture:
    """Apply steps to a decoded picture. Raises DataError, saying where, if its shape does not allow them."""
    try:
        return apply(steps, picture)
    except ValueError as error:
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: ValueError) -> DataError:
    return DataError(message(where, expected="a whole JPEG or PNG", got=str(error), do=CHECK_SHARDS))
