"""TIFFs written by Pillow, by OpenCV and byte by byte; what is not read, cut or damaged is refused."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dfer.media.bounds import TooMuch
from dfer.media.frames import list_pictures
from dfer.media.pictures import read_picture

PIXELS = np.random.default_rng(3).integers(0, 256, (37, 26, 3), np.uint8)
PIXELS[5:20] = 90  # so that LZW has something to find
MOST = 2**20
Entry = tuple[int, int, Sequence[int]]


def saved(picture: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "TIFF", **options)
    return out.getvalue()


def by_hand(entries: Sequence[Entry], strips: bytes = b"", *, order: str = "<", following: int = 0) -> bytes:
    """A TIFF whose numbers all stand in its directory, one a tag; strips are put behind it."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    packed = [head, struct.pack(f"{order}IH", 8, len(entries))]
    for tag, kind, (number,) in sorted(entries):
        value = struct.pack(f"{order}HH", number, 0) if kind == 3 else struct.pack(f"{order}I", number)
        packed.append(struct.pack(f"{order}HHI", tag, kind, 1) + value)
    return b"".join([*packed, struct.pack(f"{order}I", following), strips])


def grey(order: str = "<", *, following: int = 0, size: int | None = None, **changes: int) -> bytes:
    """4 x 3 grey pixels 0 to 11 in one strip. changes: numbers of tags, as `t259=5`; -1 leaves the tag out."""
    numbers = {256: 4, 257: 3, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 3, 279: 12}
    numbers |= {int(name[1:]): value for name, value in changes.items()}
    kept = {tag: number for tag, number in numbers.items() if number != -1}
    if kept.get(273) == 0:
        kept[273] = 8 + 2 + 12 * len(kept) + 4
    entries = [(tag, 4 if tag in (273, 279) else 3, (number,)) for tag, number in kept.items()]
    return by_hand(entries, bytes(range(12)), order=order, following=following)[:size]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("rows", [5, 37])
def test_the_pixels_are_those_of_the_writer(mode: str, compression: str, rows: int) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    data = saved(picture, compression=compression, tiffinfo={278: rows})
    found = read_picture(data, max_pixels=MOST)
    assert found.media == "tiff" and not found.hides and not found.dark
    assert np.array_equal(found.rgb, np.asarray(picture.convert("RGB")))


def test_a_picture_that_opencv_wrote_with_a_predictor() -> None:
    data = cv2.imencode(".tif", PIXELS, [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, 2])[1].tobytes()
    assert np.array_equal(read_picture(data, max_pixels=MOST).rgb, PIXELS[..., ::-1])


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes_and_white_as_zero(order: str) -> None:
    found = read_picture(grey(order), max_pixels=MOST).rgb
    assert found[..., 0].tolist() == np.arange(12).reshape(3, 4).tolist()
    inverted = read_picture(grey(order, t262=0), max_pixels=MOST).rgb
    assert inverted[..., 2].tolist() == (255 - np.arange(12).reshape(3, 4)).tolist()


def test_profiles_private_tags_and_the_one_that_turns_are_ignored() -> None:
    options: dict[str, Any] = {"icc_profile": b"PROFILE" * 50, "tiffinfo": {274: 6, 40_000: "PRIVATE", 270: "SAID"}}
    data = saved(Image.fromarray(PIXELS), **options)
    assert all(text in data for text in (b"PROFILE", b"PRIVATE", b"SAID"))
    assert np.array_equal(read_picture(data, max_pixels=MOST).rgb, PIXELS)


@pytest.mark.parametrize("side", [1, 3, 90, 300])
@pytest.mark.parametrize("values", [2, 12, 256])
def test_lzw_of_any_length_and_content(side: int, values: int) -> None:
    """Tables that fill up, codes of all widths, strings that repeat themselves; written by Pillow and by OpenCV."""
    pixels = np.random.default_rng(side).integers(0, values, (side, side, 3), np.uint8)
    for data in (
        saved(Image.fromarray(pixels), compression="tiff_lzw"),
        cv2.imencode(".tif", pixels[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes(),
    ):
        assert np.array_equal(read_picture(data, max_pixels=MOST).rgb, pixels)


def test_cut_or_damaged_lzw_is_refused() -> None:
    """libtiff would fill the rest with black."""
    data = bytearray(saved(Image.fromarray(PIXELS), compression="tiff_lzw"))
    at = struct.unpack_from("<I", data, 4)[0]
    entries = {struct.unpack_from("<H", data, at + 2 + 12 * i)[0]: at + 10 + 12 * i for i in range(data[at])}
    begin, size = (struct.unpack_from("<I", data, entries[tag])[0] for tag in (273, 279))
    for cut in (1, 3, size // 2, size - 2):
        short = bytearray(data)
        struct.pack_into("<I", short, entries[279], size - cut)
        if cut > 2:  # the last bytes only end the strip
            with pytest.raises(ValueError, match="truncated"):
                read_picture(bytes(short), max_pixels=MOST)
    data[begin : begin + size] = b"\xff" * size
    with pytest.raises(ValueError, match="a damaged TIFF"):
        read_picture(bytes(data), max_pixels=MOST)


def test_much_lzw_is_refused_undecoded() -> None:
    data = grey(t259=5, t279=2**23 + 1)
    with pytest.raises(TooMuch, match=r"8,388,609 bytes of LZW, more than 8,388,608"):
        read_picture(data, max_pixels=MOST)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (grey(t258=16), r"of a kind that is not read \(1 x 16 bits, colours 1, compression 1\)"),
        (grey(t259=7), "of a kind that is not read .*compression 7"),
        (grey(t259=5, t317=3), "of a kind that is not read"),
        (grey(t262=3), "of a kind that is not read .*colours 3"),
        (grey(t277=4), r"of a kind that is not read \(4 x 8 bits"),
        (grey(t284=2), "of a kind that is not read"),
        (grey(t266=2), "of a kind that is not read"),
        (grey(t339=3), "of a kind that is not read"),
        (grey(t322=16), "of a kind that is not read .*, tiles"),
        (grey(t258=-1), r"of a kind that is not read \(1 x 1 bits"),
        (grey(following=8), "a TIFF of several pages, which is more than one frame"),
        (grey(t257=-1), "a damaged TIFF"),
        (grey(t273=-1), "a damaged TIFF"),
        (grey(t278=0), "a damaged TIFF"),
        (grey(t278=1), "a damaged TIFF"),
        (grey(t279=11), "truncated"),
        (grey(size=-1), "truncated"),
        (grey(size=30), "truncated"),
        (grey(size=6), "truncated"),
        (grey(t259=5), "a damaged TIFF"),
        (b"II*\0" + struct.pack("<IH", 8, 0) + bytes(8), "a damaged TIFF"),
        (b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(800_000), "a damaged TIFF"),
        (b"II*\0" + struct.pack("<I", 2**31), "truncated"),
        (b"II+\0" + bytes(40), "neither a JPEG"),
    ],
)
def test_what_is_not_read_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_picture(data, max_pixels=MOST)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (0, 3), (4, 0)])
def test_the_size_is_bounded_before_anything_is_decoded(width: int, height: int) -> None:
    with pytest.raises(TooMuch, match=rf"{width} x {height} pixels, not 1 to 1,048,576"):
        read_picture(grey(t256=width, t257=height), max_pixels=MOST)


def test_a_list_longer_than_any_picture_needs_is_refused() -> None:
    data, entry = grey(), struct.pack("<HHI", 258, 3, 1)
    assert data.count(entry) == 1
    with pytest.raises(ValueError, match="a damaged TIFF"):
        read_picture(data.replace(entry, struct.pack("<HHI", 258, 3, 2**24)), max_pixels=MOST)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_strips_that_are_the_whole_file_are_cut_or_refused(compression: str) -> None:
    """Else every row would be decoded from all bytes of the file."""
    data = saved(Image.new("L", (64, 64)), tiffinfo={278: 1}, compression=compression)
    at = struct.unpack_from("<I", data, 4)[0]
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, _, length, where = struct.unpack_from("<HHII", data, place)
        if tag in (273, 279):
            numbers = struct.pack(f"<{length}I", *[0 if tag == 273 else len(data)] * length)
            data = data[:where] + numbers + data[where + len(numbers) :]
    if compression == "raw":
        assert read_picture(data, max_pixels=MOST).rgb.shape == (64, 64, 3)
    else:
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            read_picture(data, max_pixels=MOST)


def test_no_changed_bytes_give_another_size_or_another_error() -> None:
    read = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        data = bytearray(saved(Image.fromarray(PIXELS), compression=("raw", "tiff_lzw")[seed % 2], tiffinfo={278: 9}))
        for at in (*draw.integers(0, len(data), 2), *draw.integers(len(data) - 200, len(data), 2)):
            data[at] = draw.integers(0, 256)
        try:
            found = read_picture(bytes(data), max_pixels=2**14).rgb
        except ValueError:
            continue
        read += 1
        assert found.ndim == 3 and found.shape[0] * found.shape[1] <= 2**14
    assert 40 < read < 390


def test_frames_of_a_clip_may_be_tiffs(tmp_path: Path) -> None:
    for number in (10, 9):
        (tmp_path / f"{number}.tiff").write_bytes(saved(Image.fromarray(PIXELS)))
    (tmp_path / "8.TIF").write_bytes(saved(Image.fromarray(PIXELS)))
    assert [entry.name for entry in list_pictures(tmp_path)] == ["8.TIF", "9.tiff", "10.tiff"]
