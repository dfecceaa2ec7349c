"""Clips given as folders of pictures: their order, their sampling, and what is said of broken ones."""

import csv
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dfer.data.config import DataConfig
from dfer.data.folders import read_clip
from dfer.errors import DataError
from dfer.jobs.predict import Table


def grey(value: int, *, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def put(path: Path, value: int, *, side: int = 32) -> Path:
    """A picture of one level, as JPEG or PNG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(cv2.imencode(".png", grey(value, side=side))[1].tobytes())
    else:
        path.write_bytes(simplejpeg.encode_jpeg(grey(value, side=side), quality=95))
    return path


def levels(folder: Path, num_frames: int) -> list[int]:
    """The level of each frame that is read."""
    clip = read_clip(folder, DataConfig(shards="-", frames=num_frames, size=32))[0]
    assert tuple(clip.shape) == (num_frames, 3, 32, 32) and clip.dtype.is_floating_point is False
    assert clip.float().std(dim=(1, 2, 3)).max() <= 1
    return [round(level) for level in clip.float().mean(dim=(1, 2, 3)).tolist()]


@pytest.mark.parametrize("pattern", ["{}.jpg", "frame_{}.png", "00017_{}.jpg", "clip2_frame{}.JPG", "{:03d}.jpeg"])
def test_frames_come_in_numeric_order(tmp_path: Path, pattern: str) -> None:
    for number in (1, 2, 9, 10, 11, 20):
        put(tmp_path / pattern.format(number), 10 * number)
    assert levels(tmp_path, 6) == [10, 20, 90, 100, 110, 200]


def test_jpeg_and_png_mix_and_other_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "1.png", 10)
    put(tmp_path / "2.jpg", 60)
    put(tmp_path / "3.png", 110, side=50)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._2.jpg").write_bytes(b"what a file system keeps beside the file")
    (tmp_path / "4.jpg").mkdir()
    assert levels(tmp_path, 3) == [10, 60, 110]


def test_frames_are_sampled_as_in_evaluation(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / f"{number}.png", 20 * number)
    # DFER-CLIP's rule, int(n/T/2 + n/T*i): 10 frames to 4 are 1.25, 3.75, 6.25, 8.75.
    assert levels(tmp_path, 4) == [20, 60, 120, 160]
    assert levels(tmp_path, 12) == [20 * min(i, 9) for i in range(12)]


def test_colours_are_rgb_in_both_formats(tmp_path: Path) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    (tmp_path / "1.jpg").write_bytes(simplejpeg.encode_jpeg(red, quality=95))
    (tmp_path / "2.png").write_bytes(cv2.imencode(".png", red[..., ::-1])[1].tobytes())
    for frame in read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0].float().mean(dim=(2, 3)).tolist():
        assert frame == pytest.approx([200, 0, 0], abs=3)


@pytest.mark.parametrize("names", ["1.0010 1.0344 1.0677 2.0", "99.5 100.10010010010010 500.50050050050055"])
def test_frames_named_by_their_time(tmp_path: Path, names: str) -> None:
    expected = []
    for position, name in enumerate(names.split()):
        put(tmp_path / f"{name}.png", 10 * position)
        expected.append(10 * position)
    assert levels(tmp_path, len(expected)) == expected


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (("1.jpg", "2a.jpg"), "frames 1.jpg and 2a.jpg are named in unlike ways"),
        (("1.jpg", "cover.jpg"), "frame cover.jpg has no number in its name"),
        (("1.jpg", "01.png"), "frames 01.png and 1.jpg have the same number"),
        (("9_a1.jpg", "1_a10.jpg"), "frames 1_a10.jpg and 9_a1.jpg can be put in order in two ways"),
        (("1.jpg", "2.gif"), "pictures of a kind that is not read (1 .gif) beside 1 that can be read"),
    ],
)
def test_a_folder_whose_frames_are_not_certain(tmp_path: Path, names: tuple[str, ...], got: str) -> None:
    for name in names:
        put(tmp_path / name, 10)
    with pytest.raises(DataError) as caught:
        read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0]
    assert str(caught.value) == (
        f"{tmp_path}: expected a folder with .jpg, .png, .bmp, .webp or .tif face frames in an order that their names "
        f"tell, got {got}. Give the cropped faces, one file a frame, named as 00012.jpg."
    )


def test_bmp_and_webp_are_read(tmp_path: Path) -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 2] = 200
    for name in ("1.bmp", "2.webp"):
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix, red)[1].tobytes())
    for frame in read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0].float().mean(dim=(2, 3)).tolist():
        assert frame == pytest.approx([200, 0, 0], abs=5)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_pictures(tmp_path: Path, there: bool) -> None:
    folder = tmp_path if there else tmp_path / "missing"
    with pytest.raises(DataError) as caught:
        read_clip(folder, DataConfig(shards="-", frames=4, size=32))[0]
    got = "no frames. Give the cropped faces" if there else "no folder. Correct the path."
    expected = "a folder with .jpg, .png, .bmp, .webp or .tif face frames in an order that their names tell"
    assert str(caught.value).startswith(f"{folder}: expected {expected}, got {got}")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(255 - byte for byte in data[at : at + 4]) + data[at + 4 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"", lambda _: b"hello"], ids=["cut", "bits", "no", "text"])
def test_a_damaged_png_is_named(tmp_path: Path, damage: object) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / "1.png"
    path.write_bytes(damage(cv2.imencode(".png", noise)[1].tobytes()))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0]
    assert str(caught.value).startswith(f"{path}: expected a ") and "Replace the file." in str(caught.value)


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda _: b"hello"], ids=["cut", "no", "text"])
def test_a_damaged_jpeg_is_named(tmp_path: Path, damage: object) -> None:
    path = put(tmp_path / "1.jpg", 100)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0]
    assert str(caught.value).startswith(f"{path}: expected a whole JPEG, PNG, BMP, WebP or TIFF of at most ")
    assert str(caught.value).endswith(" Replace the file.")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = put(tmp_path / "1.png", 100)
    os.truncate(path, 8 * 2**30)
    with pytest.raises(DataError, match=r"1\.png: expected a picture of at most 64 MiB, got more\. Replace the file"):
        read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0]


def test_a_picture_is_read_without_its_rotation(tmp_path: Path) -> None:
    exif, half = Image.Exif(), np.zeros((32, 32, 3), np.uint8)
    exif[0x0112], half[:, :16] = 6, 200
    for name in ("1.png", "2.jpg"):
        Image.fromarray(half).save(tmp_path / name, exif=exif)
    for frame in read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0].float():
        assert frame[..., :16].mean() > 180 and frame[..., 16:].mean() < 20


def test_a_png_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "1.png").write_bytes(data)
    with pytest.raises(DataError, match="or TIFF of at most 16,777,216 pixels, got 40000 x 40000"):
        read_clip(tmp_path, DataConfig(shards="-", frames=2, size=32))[0]


def test_the_table_has_a_row_a_clip_as_soon_as_it_is_answered(tmp_path: Path) -> None:
    path, table = tmp_path / "out.csv", Table(tmp_path / "out.csv")
    assert not path.exists()
    rows = [["clip", "predicted", "anger", "fear"]]
    for clip, answer, row in (
        ("a,b", {"anger": 0.25, "fear": 0.75}, ["a,b", "fear", "0.250000", "0.750000"]),
        ("c", {"anger": 0.6, "fear": 0.4}, ["c", "anger", "0.600000", "0.400000"]),
    ):
        table.add(Path(clip), answer)
        rows.append(row)
        with path.open(newline="") as file:
            assert list(csv.reader(file)) == rows
    table.close()
