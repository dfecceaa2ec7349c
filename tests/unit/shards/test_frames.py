"""What becomes of one picture: kept, encoded, or refused with a reason."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.frames import MAX_SOURCE_BYTES, StoredFrame, store_frame
from shards.sources.clips import BadClip, list_frames
from tests.unit.shards import rawkit


def stored(folder: Path, data: bytes, name: str = "00001_00003.jpg") -> StoredFrame:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (frame,) = list_frames(folder)
    return store_frame(frame, max_side=64, quality=95)


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
    assert stored(tmp_path / "clip", data) == StoredFrame(jpeg=data, kept=True)


@pytest.mark.parametrize(("size", "expected"), [((65, 64), (64, 63)), ((200, 100), (64, 32)), ((50, 1000), (3, 64))])
def test_a_larger_jpeg_is_scaled(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = smooth(*size, "JPEG")
    frame = stored(tmp_path / "clip", data)
    assert not frame.kept
    assert Image.open(io.BytesIO(frame.jpeg)).size == expected
    reference = Image.open(io.BytesIO(data)).resize(expected, Image.Resampling.BOX)
    assert abs(pixels(frame.jpeg) - np.asarray(reference, dtype=np.int16)).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_png_becomes_a_jpeg_of_the_same_picture(tmp_path: Path, mode: str) -> None:
    data = smooth(40, 30, "PNG", mode)
    frame = stored(tmp_path / "clip", data, "1.png")
    assert not frame.kept
    assert frame.jpeg[:2] == b"\xff\xd8"
    assert abs(pixels(frame.jpeg) - pixels(data)).mean() < 4


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    assert not stored(tmp_path / "a", smooth(10, 10, "PNG"), "1.jpg").kept
    assert stored(tmp_path / "b", smooth(10, 10, "JPEG"), "1.png").kept


JPEG, PNG = rawkit.picture(1), rawkit.picture(1, kind="PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"GIF89a....", "is neither a JPEG nor a PNG"),
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


def test_a_file_too_large_to_be_a_frame(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    os.truncate(tmp_path / "1.jpg", MAX_SOURCE_BYTES + 1)
    with pytest.raises(BadClip, match=r"frame 1\.jpg is larger than 64 MiB"):
        store_frame(list_frames(tmp_path)[0], max_side=64, quality=95)


def test_a_frame_that_vanished(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (frame,) = list_frames(tmp_path)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(BadClip, match=r"frame 1\.jpg cannot be read \(No such file"):
        store_frame(frame, max_side=64, quality=95)
