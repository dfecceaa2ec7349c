"""What becomes of one picture: kept, encoded, or refused with a reason."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dfer.media.pictures import MAX_FILE_BYTES, read_picture
from dfer.store.format import Media
from shards.frames import StoredFrame, store_frame
from shards.sources.clips import BadClip, list_frames
from tests.unit.shards import rawkit


def stored(folder: Path, data: bytes, name: str = "00001_00003.jpg", media: Media = "jpeg") -> StoredFrame:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (frame,) = list_frames(folder)
    return store_frame(frame, media=media, max_side=64, quality=95)


def smooth(width: int, height: int, kind: str, mode: str = "RGB") -> bytes:
    """A picture without fine detail, so that scaling and JPEG leave its colours nearly alone."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 98} if kind == "JPEG" else {}))
    return buffer.getvalue()


def pixels(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(64, 64), (64, 20), (8, 8)])
def test_a_jpeg_of_the_right_size_is_kept_byte_for_byte(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    data = smooth(*size, "JPEG", mode)
    assert stored(tmp_path / "clip", data) == StoredFrame(data=data, kept=True)


@pytest.mark.parametrize(("size", "expected"), [((65, 64), (64, 63)), ((200, 100), (64, 32)), ((50, 1000), (3, 64))])
def test_a_larger_jpeg_is_scaled(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = smooth(*size, "JPEG")
    frame = stored(tmp_path / "clip", data)
    assert not frame.kept
    assert Image.open(io.BytesIO(frame.data)).size == expected
    reference = Image.open(io.BytesIO(data)).resize(expected, Image.Resampling.BOX)
    assert abs(pixels(frame.data) - np.asarray(reference, dtype=np.int16)).mean() < 3


def animation() -> bytes:
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("BMP", "RGB"), ("BMP", "L"), ("BMP", "P"), ("BMP", "1"), ("BMP", "RGBA"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_bmp_and_webp_become_a_jpeg_of_the_same_picture(tmp_path: Path, kind: str, mode: str) -> None:
    data = smooth(40, 30, kind, mode)
    frame = stored(tmp_path / "clip", data, f"1.{kind.lower()}")
    assert not frame.kept and not frame.hides and not frame.dark
    assert frame.data[:2] == b"\xff\xd8"
    assert abs(pixels(frame.data) - pixels(data)).mean() < (15 if mode == "1" else 4)


def test_a_lossless_webp_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(smooth(40, 30, "PNG"))).save(buffer, "WEBP", lossless=True)
    assert buffer.getvalue()[12:16] == b"VP8L"
    frame = stored(tmp_path / "clip", buffer.getvalue(), "1.webp")
    assert abs(pixels(frame.data) - pixels(smooth(40, 30, "PNG"))).mean() < 4


def test_a_bmp_of_rows_from_the_top_is_not_turned(tmp_path: Path) -> None:
    data = bytearray(smooth(40, 30, "BMP"))
    data[22:26] = (-30).to_bytes(4, "little", signed=True)
    frame = stored(tmp_path / "clip", bytes(data), "1.bmp")
    assert abs(pixels(frame.data) - pixels(smooth(40, 30, "BMP"))[::-1]).mean() < 4


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


RED, NOTHING, OPAQUE = (200, 0, 0, 0), (0, 0, 0, 0), (200, 0, 0, 255)
PALETTE = Image.new("P", (8, 8))
PALETTE.putpalette([200, 0, 0] * 256)


@pytest.mark.parametrize(
    ("data", "hides"),
    [
        (encoded(Image.new("RGBA", (8, 8), RED)), True),
        (encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 254))), True),
        (encoded(Image.new("LA", (8, 8), (90, 3))), True),
        (encoded(PALETTE, transparency=0), True),
        (encoded(Image.new("RGBA", (8, 8), RED), "WEBP", lossless=True, exact=True), True),
        (encoded(Image.new("RGBA", (8, 8), NOTHING)), False),
        (encoded(Image.new("RGBA", (8, 8), OPAQUE)), False),
        (encoded(Image.new("RGB", (8, 8), OPAQUE[:3])), False),
    ],
)
def test_colours_that_a_viewer_does_not_show(tmp_path: Path, data: bytes, hides: bool) -> None:
    frame = stored(tmp_path / "clip", data, "1.png")
    assert (frame.hides, frame.dark) == (hides, False)


@pytest.mark.parametrize(
    ("highest", "dark"), [(1023, True), (4095, True), (16383, True), (16384, False), (65535, False), (0, False)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_that_are_not_used(tmp_path: Path, highest: int, dark: bool, channels: int) -> None:
    deep = np.zeros((8, 8, channels), np.uint16)
    deep[3, 4] = highest
    frame = stored(tmp_path / "clip", cv2.imencode(".png", deep)[1].tobytes(), "1.png")
    assert (frame.hides, frame.dark) == (False, dark)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_png_becomes_a_jpeg_of_the_same_picture(tmp_path: Path, mode: str) -> None:
    data = smooth(40, 30, "PNG", mode)
    frame = stored(tmp_path / "clip", data, "1.png")
    assert not frame.kept
    assert frame.data[:2] == b"\xff\xd8"
    assert abs(pixels(frame.data) - pixels(data)).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_a_set_of_pngs_keeps_them_byte_for_byte(tmp_path: Path, mode: str) -> None:
    data = smooth(48, 48, "PNG", mode)
    frame = stored(tmp_path / "clip", data, "1.png", media="png")
    assert (frame.data, frame.kept) == (data, True)


@pytest.mark.parametrize(
    ("kind", "mode", "channels"), [("BMP", "RGB", 3), ("BMP", "L", 1), ("WEBP", "RGB", 3), ("JPEG", "L", 1)]
)
def test_other_pictures_of_a_set_of_pngs_become_one_without_loss(
    tmp_path: Path, kind: str, mode: str, channels: int
) -> None:
    data = smooth(40, 30, kind, mode)
    frame = stored(tmp_path / "clip", data, "1.bmp", media="png")
    assert not frame.kept and frame.data[:4] == b"\x89PNG"
    assert len(Image.open(io.BytesIO(frame.data)).getbands()) == channels
    expected = read_picture(data, max_pixels=10_000).rgb
    np.testing.assert_array_equal(read_picture(frame.data, max_pixels=10_000).rgb, expected)


def test_a_larger_png_is_scaled_and_stays_one(tmp_path: Path) -> None:
    data = smooth(200, 100, "PNG")
    frame = stored(tmp_path / "clip", data, "1.png", media="png")
    picture = Image.open(io.BytesIO(frame.data))
    assert (picture.format, picture.size, frame.kept) == ("PNG", (64, 32), False)
    reference = Image.open(io.BytesIO(data)).resize((64, 32), Image.Resampling.BOX)
    assert abs(pixels(frame.data) - np.asarray(reference, dtype=np.int16)).mean() < 1


def test_a_png_that_no_reader_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.frames.MAX_FRAME_BYTES", 100)
    with pytest.raises(BadClip, match=r"frame 1\.png is larger than 0 MiB as PNG"):
        stored(tmp_path / "clip", smooth(60, 60, "PNG"), "1.png", media="png")


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    assert not stored(tmp_path / "a", smooth(10, 10, "PNG"), "1.jpg").kept
    assert stored(tmp_path / "b", smooth(10, 10, "JPEG"), "1.png").kept


JPEG, PNG, BMP, WEBP = (rawkit.picture(1, kind=kind) for kind in ("JPEG", "PNG", "BMP", "WEBP"))
MOVING = animation()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"GIF89a....", "is neither a JPEG nor a PNG, BMP, WebP or TIFF"),
        (BMP[:-1], "is truncated"),
        (BMP[:20], "is truncated"),
        (BMP[:28] + b"\x08\0\1" + BMP[31:], r"is a BMP of a kind that is not read \(8 bits, compression 1\)"),
        (WEBP[:-1], "is truncated"),
        (WEBP[:30], "is truncated"),
        (WEBP[:15] + b"?" + WEBP[16:], "is a damaged WebP"),
        (MOVING, "is an animated WebP, which is more than one frame"),
        (JPEG[:-2], "is truncated"),
        (JPEG[: len(JPEG) // 2], "is truncated"),
        (JPEG[:30], "is truncated or damaged"),
        (b"\xff\xd8", "is truncated or damaged"),
        (JPEG[:300] + bytes(200) + JPEG[500:], "is "),
        (PNG[:-1], "is truncated"),
        (PNG[: len(PNG) // 2], "is truncated"),
        (PNG[:10], "is truncated"),
        (PNG[:100] + bytes([PNG[100] ^ 1]) + PNG[101:], "is a damaged PNG"),
    ],
)
def test_refused_with_the_frame_and_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(BadClip, match=rf"^frame 00001_00003\.jpg {reason}"):
        stored(tmp_path / "clip", data)


@pytest.mark.parametrize("cut", range(4, len(JPEG) - 1, 97))
def test_no_cut_jpeg_passes(tmp_path: Path, cut: int) -> None:
    with pytest.raises(BadClip):
        stored(tmp_path / "clip", JPEG[:cut])


def test_a_header_that_claims_a_huge_picture_is_refused_unread(tmp_path: Path) -> None:
    at = JPEG.index(b"\xff\xc0")
    bomb = JPEG[: at + 5] + b"\xff\x00\xff\x00" + JPEG[at + 9 :]
    with pytest.raises(BadClip, match="has 65280 x 65280 pixels"):
        stored(tmp_path / "clip", bomb)


@pytest.mark.parametrize(
    "data",
    [
        BMP[:18] + (65_280).to_bytes(4, "little") * 2 + BMP[26:],
        BMP[:18] + (-5).to_bytes(4, "little", signed=True) + BMP[22:],
        WEBP[:26] + b"\xff\x3f\xff\x3f" + WEBP[30:],
    ],
)
def test_other_kinds_that_claim_a_huge_picture(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadClip, match=r"frame 1\.bmp has \d+ x \d+ pixels, not 1 to 67,108,864"):
        stored(tmp_path / "clip", data, "1.bmp")


def test_a_file_too_large_to_be_a_frame(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    os.truncate(tmp_path / "1.jpg", MAX_FILE_BYTES + 1)
    with pytest.raises(BadClip, match=r"frame 1\.jpg is larger than 64 MiB"):
        store_frame(list_frames(tmp_path)[0], media="jpeg", max_side=64, quality=95)


def test_a_frame_that_vanished(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (frame,) = list_frames(tmp_path)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(BadClip, match=r"frame 1\.jpg cannot be read \(No such file"):
        store_frame(frame, media="jpeg", max_side=64, quality=95)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "16 bits, 1", "16 bits, 3", "16 bits, 4"])
def test_what_is_looked_at_closer_has_the_pixels_of_a_plain_decode(mode: str) -> None:
    draw = np.random.default_rng(0)
    if mode.startswith("16"):
        deep = draw.integers(0, 65536, (24, 26, int(mode[-1])), np.uint16)
        data = cv2.imencode(".png", deep)[1].tobytes()
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.fromarray(draw.integers(0, 256, (24, 26, 4), np.uint8))
        key = {"P": 3, "L": 5, "RGB": (1, 2, 3)}.get(mode)
        more = {} if key is None else {"transparency": key}
        data = encoded(picture.convert("RGB").convert(mode) if more else picture.convert(mode), exif=exif, **more)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), flags)[:, :, ::-1]
    np.testing.assert_array_equal(read_picture(data, max_pixels=1000).rgb, expected)
