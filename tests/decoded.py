"""A stored picture as a test frame of the default recipe: decoded and stretched."""

from dfer.data.decode import Decoder, seen
from dfer.data.geometry import Picture, Resize


def decode(data: memoryview | bytes, *, size: int, where: str, out: Picture | None = None) -> Picture:
    picture = seen((Resize(size, size),), Decoder()(data, where=where, out=out), where=where)
    if out is None or picture is out:
        return picture
    out[:] = picture
    return out
