"""Decode the bytes of one JPEG or PNG to an RGB picture of the wanted size.

Shards are untrusted: the size in the header is checked before any pixel is decoded.
"""

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dfer.errors import DataError, message
from dfer.media.bounds import PNG_SIGNATURE, jpeg_size
from dfer.media.pictures import read_picture

Picture = NDArray[np.uint8]

MAX_PIXELS = 2**24
"""Largest picture that is decoded, in pixels (48 MiB as RGB)."""
CHECK_SHARDS = "Check the shards with `dfer-shards verify`."


def decode(
    data: memoryview | bytes, *, size: int, where: str, out: Picture | None = None, do: str = CHECK_SHARDS
) -> Picture:
    """Decode a JPEG or PNG to uint8 [size size 3], RGB. Pictures of another size are stretched, antialiased bilinear.

    Args:
        where: shard, clip and frame, for the message.
        out: contiguous array to decode into.
        do: what to do, for the message.
    Raises:
        DataError: the data are neither JPEG nor PNG, are damaged or truncated, have more than MAX_PIXELS, or more JPEG
            scans than any encoder writes.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    try:
        if bytes(data[: len(PNG_SIGNATURE)]) == PNG_SIGNATURE:
            picture = read_picture(bytes(data), max_pixels=MAX_PIXELS).rgb
        elif jpeg_size(data, max_pixels=MAX_PIXELS) == (size, size):
            simplejpeg.decode_jpeg(data, buffer=out)
            return out
        else:
            picture = simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise DataError(message(where, expected="a whole JPEG or PNG", got=str(error), do=do)) from error
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None]
    out[:] = resize(frames, size=size)[0].permute(1, 2, 0).numpy()
    return out


def resize(frames: Tensor, *, size: int) -> Tensor:
    """Stretch uint8 [N C H W] to uint8 [N C size size], antialiased bilinear: within one level of Pillow's BILINEAR.

    The CPU kernel works on uint8 in fixed point; other devices compute in float and round.
    """
    if frames.shape[-2:] == (size, size):
        return frames
    source = frames if frames.device.type == "cpu" else frames.float()
    out = F.interpolate(source, size=(size, size), mode="bilinear", antialias=True)
    return out if out.dtype == torch.uint8 else out.round_().clamp_(0, 255).to(torch.uint8)
