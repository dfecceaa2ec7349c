"""Decoding: the pictures Pillow gives, and refusal of everything that is not a whole JPEG or PNG of sane size."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dfer.data.geometry import resize
from dfer.errors import DataError
from tests.decoded import decode


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, quality: int = 90) -> bytes:
    return simplejpeg.encode_jpeg(picture, quality=quality)


def test_a_picture_of_the_right_size_is_what_the_jpeg_holds():
    jpeg = encoded(noise(64, 64))
    got = decode(jpeg, size=64, where="here")
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.asarray(Image.open(io.BytesIO(jpeg)))).max() <= 1


def test_colours_are_red_green_blue():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    r, g, b = decode(encoded(red), size=32, where="here").reshape(-1, 3).mean(0)
    assert r > 190 and g < 10 and b < 10


def test_it_decodes_into_the_given_array():
    out = np.zeros((2, 32, 32, 3), np.uint8)
    for side in (32, 50):
        assert decode(encoded(noise(side, side)), size=32, where="here", out=out[1]) is not None
        assert out[1].any() and not out[0].any()
        out[:] = 0


def test_grey_pictures_become_rgb():
    file = io.BytesIO()
    Image.fromarray(noise(32, 32)[..., 0]).save(file, "JPEG")
    got = decode(file.getvalue(), size=32, where="here")
    assert np.array_equal(got[..., 0], got[..., 1]) and np.array_equal(got[..., 0], got[..., 2])


@pytest.mark.parametrize("size", [48, 32])
def test_a_grey_png_of_48_pixels_keeps_every_pixel(size):
    """As in FER2013; what is stretched is stretched from the very pixels."""
    picture = noise(48, 48)[..., 0]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    got = decode(memoryview(file.getvalue()), size=size, where="here")
    three = torch.from_numpy(np.stack([picture] * 3))[None]
    assert np.array_equal(got, resize(three, height=size, width=size)[0].permute(1, 2, 0).numpy())
    assert size != 48 or np.array_equal(got[..., 0], picture)


@pytest.mark.parametrize("cut", [9, 40, -1, -13])
def test_a_cut_png_names_shard_clip_and_frame(cut):
    file = io.BytesIO()
    Image.fromarray(noise(20, 20)).save(file, "PNG")
    with pytest.raises(DataError, match=r"a\.tar, clip b: expected a whole JPEG or PNG, got truncated"):
        decode(file.getvalue()[:cut], size=32, where="a.tar, clip b")


def test_a_png_that_claims_too_many_pixels_is_refused_before_any_is_decoded():
    file = io.BytesIO()
    Image.fromarray(noise(20, 20)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (2**20).to_bytes(4, "big") * 2
    with pytest.raises(DataError, match="got 1048576 x 1048576 pixels, not 1 to 16,777,216"):
        decode(bytes(data), size=32, where="x")


@given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 90), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_resize_agrees_with_pillow_within_one_level(height, width, size, seed):
    picture = noise(height, width, seed)
    expected = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    got = resize(torch.from_numpy(picture).permute(2, 0, 1)[None], height=size, width=size)[0].permute(1, 2, 0).numpy()
    assert got.dtype == np.uint8
    assert np.abs(got - expected).max() <= 1


def test_a_stored_picture_of_another_size_is_stretched():
    jpeg = encoded(noise(60, 44))
    pillow = Image.open(io.BytesIO(jpeg)).resize((32, 32), Image.Resampling.BILINEAR)
    got = decode(jpeg, size=32, where="here").astype(int)
    assert np.abs(got - np.asarray(pillow)).max() <= 2  # one from the decoder, one from the resize


@pytest.mark.skipif("DFER_TEST_MEDIA" not in os.environ, reason="DFER_TEST_MEDIA names no folder of real pictures")
def test_real_faces_agree_with_pillow():
    files = sorted((Path(os.environ["DFER_TEST_MEDIA"]) / "images").glob("*.jp*g"))
    assert files
    for file in files:
        pillow = Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        got = decode(file.read_bytes(), size=224, where=file.name).astype(int)
        assert np.abs(got - np.asarray(pillow)).max() <= 3, file.name


@pytest.mark.parametrize("keep", [0, 1, 10, 200, -200, -30])
def test_a_truncated_jpeg_names_shard_clip_and_frame(keep):
    jpeg = encoded(noise(64, 64))[:keep]
    with pytest.raises(DataError) as caught:
        decode(jpeg, size=64, where="fold_1/00000.tar, clip a, frame 7")
    text = str(caught.value)
    assert text.startswith("fold_1/00000.tar, clip a, frame 7: expected a whole JPEG or PNG, got ")
    assert text.endswith("Check the shards with `dfer-shards verify`.")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + b"0" * 100, b"GIF89a", b"cos\nsystem\n(S'id'\ntR."])
def test_what_is_no_jpeg_is_refused(data):
    with pytest.raises(DataError, match="expected a whole JPEG or PNG"):
        decode(data, size=64, where="here")


def test_damage_inside_the_picture_is_refused():
    jpeg = bytearray(encoded(noise(64, 64)))
    jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 2] = b"\xff\xd9"  # an early end marker
    with pytest.raises(DataError, match="expected a whole JPEG or PNG"):
        decode(bytes(jpeg), size=64, where="here")


def test_a_giant_is_refused_before_it_is_decoded():
    """A header that promises 65,500 x 65,500 pixels would take 12 GiB."""
    jpeg = bytearray(encoded(noise(64, 64)))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (65500).to_bytes(2, "big") * 2
    with pytest.raises(DataError, match="65500 x 65500 pixels, not 1 to 16,777,216"):
        decode(bytes(jpeg), size=64, where="here")


def test_a_picture_of_thousands_of_scans_is_refused_at_once():
    """Each scan is a pass over all pixels: 100 kB of them would take minutes."""
    file = io.BytesIO()
    Image.new("L", (2048, 2048), 99).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(DataError, match=r"expected a whole JPEG or PNG, got \d+ scans of 2048 x 2048 pixels"):
        decode(whole[:-2] + whole[last:-2] * 3000 + whole[-2:], size=64, where="here")


def test_a_subsampling_that_the_decoder_does_not_name_is_refused():
    jpeg = bytearray(encoded(noise(64, 64)))
    jpeg[jpeg.index(b"\xff\xc0") + 11] = 0x14
    with pytest.raises(DataError, match="expected a whole JPEG or PNG, got an unknown subsampling of colours"):
        decode(bytes(jpeg), size=64, where="here")
