"""Pictures are bounded by what their bytes say, before a pixel of them is decoded."""

import io
import struct
import time
import zlib

import pytest
import simplejpeg
from PIL import Image

from dfer.media.bounds import MAX_SCANS, check_png, jpeg_size


def jpeg(side: int = 16, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side + 8), (9, 99, 200)).save(out, "JPEG", **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def scans(count: int, *, side: int) -> bytes:
    """A progressive picture whose last scan comes again and again: each is some bytes, and a pass over all pixels."""
    whole = jpeg(side, progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + whole[-2:]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_the_size_of_a_jpeg(options: dict[str, object]) -> None:
    assert jpeg_size(jpeg(**options), max_pixels=16 * 24) == (24, 16)
    assert jpeg_size(memoryview(jpeg(**options)), max_pixels=16 * 24) == (24, 16)
    with pytest.raises(ValueError, match="16 x 24 pixels, not 1 to 383"):
        jpeg_size(jpeg(**options), max_pixels=16 * 24 - 1)


def test_a_jpeg_of_many_scans_is_refused_at_once() -> None:
    start = time.monotonic()
    for data, says in (
        (scans(MAX_SCANS + 1, side=16), r"\d+ scans of 16 x 24 pixels"),
        (scans(50, side=4088), r"\d+ scans of 4088 x 4096 pixels"),
    ):
        with pytest.raises(ValueError, match=says):
            jpeg_size(data, max_pixels=2**24)
    assert time.monotonic() - start < 5


def test_a_subsampling_that_nobody_knows() -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 11] = 0x14
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(bytes(data))
    with pytest.raises(ValueError, match="an unknown subsampling"):
        jpeg_size(bytes(data), max_pixels=2**24)


def test_a_png_is_walked_to_its_end() -> None:
    whole = png(20, 30)
    check_png(whole, max_pixels=600)
    with pytest.raises(ValueError, match="20 x 30 pixels"):
        check_png(whole, max_pixels=599)
    with pytest.raises(ValueError, match="0 x 30 pixels"):
        check_png(png(0, 30), max_pixels=600)
    for cut in range(8, len(whole)):
        with pytest.raises(ValueError, match="truncated"):
            check_png(whole[:cut], max_pixels=600)
    with pytest.raises(ValueError, match="a damaged PNG"):
        check_png(whole.replace(b"x", b"y"), max_pixels=600)
    with pytest.raises(ValueError, match="no PNG"):
        check_png(jpeg(), max_pixels=600)
