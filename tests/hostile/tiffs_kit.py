"""Hostile TIFFs: numbers of the directory that lie, lists and strips elsewhere, damage."""

import functools
import io
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile import values

NUMBERS = (0, 1, 2, 3, 5, 7, 8, 9, 16, 255, 65_535, 2**24, 2**31, 2**32 - 1)


@functools.cache
def whole_tiffs() -> dict[str, bytes]:
    """Pictures of kinds that are read and of kinds that are not, by PIL."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 26, 3), np.uint8))
    forms: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain": (picture, {}),
        "LZW in strips": (picture, {"compression": "tiff_lzw", "tiffinfo": {278: 5, 317: 2}}),
        "grey in strips": (picture.convert("L"), {"tiffinfo": {278: 1}}),
        "two colours": (picture.convert("1"), {"compression": "group4"}),
        "a palette": (picture.convert("P"), {}),
        "CMYK": (picture.convert("CMYK"), {}),
        "transparent": (picture.convert("RGBA"), {"compression": "tiff_adobe_deflate"}),
        "as a JPEG": (picture, {"compression": "jpeg"}),
        "two pages": (picture, {"save_all": True, "append_images": [picture]}),
        "a profile, turned": (picture, {"icc_profile": b"x" * 70_000, "tiffinfo": {274: 6}}),
    }
    return {name: _encoded(image, options) for name, (image, options) in forms.items()}


def _encoded(picture: Image.Image, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    picture.save(out, "TIFF", **options)
    return out.getvalue()


def hostile_tiff(draw: random.Random) -> tuple[str, bytes]:
    """(what it is, bytes)."""
    kind = draw.choice(sorted(whole_tiffs()))
    tiff = whole_tiffs()[kind]
    at = struct.unpack_from("<I", tiff, 4)[0]
    count = struct.unpack_from("<H", tiff, at)[0]
    entry = at + 2 + 12 * draw.randrange(count)

    def put(place: int, form: str, *numbers: int) -> bytes:
        return tiff[:place] + struct.pack(form, *numbers) + tiff[place + struct.calcsize(form) :]

    forms: dict[str, Callable[[], bytes]] = {
        "a tag with another number": lambda: put(entry + 8, "<I", draw.choice(NUMBERS)),
        "a tag of another length": lambda: put(entry + 4, "<I", draw.choice(NUMBERS)),
        "a tag of another kind": lambda: put(entry + 2, "<H", draw.randrange(20)),
        "another tag": lambda: put(entry, "<H", draw.randrange(250, 350)),
        "a directory elsewhere": lambda: put(4, "<I", draw.choice((*NUMBERS, len(tiff) - 1, 8))),
        "a long directory": lambda: put(at, "<H", draw.choice((0, 1, 1025, 65_535))),
        "a page that is itself": lambda: put(at + 2 + 12 * count, "<I", at),
        "big-endian": lambda: b"MM\0*" + tiff[4:],
        "a BigTIFF": lambda: b"II+\0" + tiff[4:],
        "cut": lambda: tiff[: draw.randrange(len(tiff))],
        "damage": lambda: values.damaged(tiff, draw)[1],
        "more damage": lambda: values.damaged(values.damaged(tiff, draw)[1], draw)[1],
    }
    how = draw.choice(sorted(forms))
    return f"TIFF, {kind}: {how}", forms[how]()
