"""Decode TIFFs of 8 bits, grey or RGB, uncompressed or LZW, of one page in strips.

The format leaves much open (tiles, pages, other codecs, colours by table), and the usual decoder, libtiff, has a long
list of flaws and gives damaged LZW as a picture that is partly black. So the few kinds are decoded here, sizes and
places checked first. LZW takes about a second for a megabyte. Needs no torch.

Source: TIFF, revision 6.0 (Adobe, 1992), sections 2 to 6, 13 and 14.
"""

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dfer.media.bounds import TooMuch

SIGNATURES = {b"II*\0": "<", b"MM\0*": ">"}
"""First bytes, and the order of bytes in numbers."""
WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS = 256, 257, 258, 259, 262
OFFSETS, SAMPLES, ROWS, COUNTS, PLANES, PREDICTOR = 273, 277, 278, 279, 284, 317
TILES = (322, 323, 324, 325)
FILL_ORDER, SAMPLE_FORMAT = 266, 339
DEFAULTS = {COMPRESSION: 1, SAMPLES: 1, ROWS: 2**32 - 1, PLANES: 1, PREDICTOR: 1, FILL_ORDER: 1, SAMPLE_FORMAT: 1}
KNOWN = (WIDTH, HEIGHT, BITS, COLOURS, OFFSETS, COUNTS, *TILES)
"""Tags that are read, besides those with defaults."""
SHORT, LONG = 3, 4
SIZES = {SHORT: 2, LONG: 4}
"""Kinds of numbers that are read, and their bytes."""
NONE, LZW = 1, 5
DIFFERENCES, WHITE_IS_ZERO = 2, 0
"""Of PREDICTOR: each sample is stored as its difference to the one on its left. Of COLOURS."""
GREY, RGB = (0, 1), 2
"""Colours: 0 white is zero, 1 black is zero, 2 RGB."""
MAX_TAGS, MAX_STRIPS = 1024, 2**16
MAX_LZW_BYTES = 2**23
"""Most bytes of LZW in one picture: about ten seconds of decoding."""
CLEAR, END = 256, 257
ROOTS = [*(bytes([value]) for value in range(256)), b"", b""]
MAX_WIDTH, MAX_TABLE = 12, 4096

Tags = Mapping[int, tuple[int, ...]]


def decode_tiff(tiff: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a TIFF to RGB, uint8 [H W 3]; the tag that turns the picture is ignored.

    Raises:
        TooMuch: too large. ValueError: not a whole TIFF of a supported kind; the text says what it is.
    """
    tags = _read_tags(tiff)
    height, width, samples = _checked(tags, max_pixels)
    strips = _strips(tiff, tags, height=height, row_bytes=width * samples)
    packed = _one(tags, COMPRESSION) == LZW
    data = b"".join(_unpacked(strip, size) if packed else strip for strip, size in strips)
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, samples)
    if _one(tags, PREDICTOR) == DIFFERENCES:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)  # modulo 256
    if _one(tags, COLOURS) == WHITE_IS_ZERO:
        pixels = 255 - pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3)))


def _read_tags(tiff: bytes) -> dict[int, tuple[int, ...]]:
    """Read the first directory: the numbers of every tag that has whole ones, by tag."""
    order = SIGNATURES.get(tiff[:4])
    if order is None:
        raise ValueError("no TIFF")
    at = _number(tiff, 4, LONG, order)
    count, begin = _number(tiff, at, SHORT, order), at + 2
    if not 0 < count <= MAX_TAGS:
        raise ValueError("a damaged TIFF")
    if _number(tiff, begin + 12 * count, LONG, order):
        raise ValueError("a TIFF of several pages, which is more than one frame")
    found: dict[int, tuple[int, ...]] = {}
    for place in range(begin, begin + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, place)
        if kind in SIZES and (tag in DEFAULTS or tag in KNOWN):
            found[tag] = _numbers(tiff, place + 8, kind, length, order)
    return found


def _numbers(tiff: bytes, at: int, kind: int, length: int, order: str) -> tuple[int, ...]:
    """Read the numbers of a tag: they stand in its entry if they fit into 4 bytes, else where the entry says."""
    if not 0 < length <= MAX_STRIPS:
        raise ValueError("a damaged TIFF")
    size = length * SIZES[kind]
    begin = at if size <= 4 else _number(tiff, at, LONG, order)
    if begin + size > len(tiff):
        raise ValueError("truncated")
    return struct.unpack_from(f"{order}{length}{'H' if kind == SHORT else 'I'}", tiff, begin)


def _number(tiff: bytes, at: int, kind: int, order: str) -> int:
    if at + SIZES[kind] > len(tiff):
        raise ValueError("truncated")
    return int(struct.unpack_from(f"{order}{'H' if kind == SHORT else 'I'}", tiff, at)[0])


def _one(tags: Tags, tag: int) -> int:
    found = tags.get(tag, (DEFAULTS[tag],) if tag in DEFAULTS else ())
    if not found:
        raise ValueError("a damaged TIFF")
    return found[0]


def _checked(tags: Tags, max_pixels: int) -> tuple[int, int, int]:
    """Return height, width and samples of a pixel. Raises TooMuch, ValueError."""
    height, width, samples = _one(tags, HEIGHT), _one(tags, WIDTH), _one(tags, SAMPLES)
    if not 0 < height * width <= max_pixels:
        raise TooMuch(f"{width} x {height} pixels, not 1 to {max_pixels:,}")
    bits, colours, compression = tags.get(BITS, (1,)), _one(tags, COLOURS), _one(tags, COMPRESSION)
    usual = (samples == 1 and colours in GREY) or (samples == 3 and colours == RGB)
    plain = all(_one(tags, tag) == 1 for tag in (PLANES, FILL_ORDER)) and {*tags.get(SAMPLE_FORMAT, (1,))} == {1}
    packed = compression == NONE and _one(tags, PREDICTOR) == 1
    packed = packed or (compression == LZW and _one(tags, PREDICTOR) in (1, 2))
    if not (usual and plain and packed and {*bits} == {8}) or any(tag in tags for tag in TILES):
        kind = f"{samples} x {bits[0]} bits, colours {colours}, compression {compression}"
        raise ValueError(f"a TIFF of a kind that is not read ({kind}{', tiles' if TILES[0] in tags else ''})")
    return height, width, samples


def _strips(tiff: bytes, tags: Tags, *, height: int, row_bytes: int) -> list[tuple[bytes, int]]:
    """Return the bytes of the strips, from the top, each with its size decoded."""
    offsets, counts, rows = tags.get(OFFSETS, ()), tags.get(COUNTS, ()), _one(tags, ROWS)
    if rows < 1 or not len(offsets) == len(counts) == -(-height // rows):
        raise ValueError("a damaged TIFF")
    sizes = [min(rows, height - rows * number) * row_bytes for number in range(len(counts))]
    packed = _one(tags, COMPRESSION) == LZW
    if packed and sum(counts) > MAX_LZW_BYTES:
        raise TooMuch(f"{sum(counts):,} bytes of LZW, more than {MAX_LZW_BYTES:,}")
    for at, count, size in zip(offsets, counts, sizes):
        if at + (count if packed else size) > len(tiff) or (not packed and count < size):
            raise ValueError("truncated")
    return [(tiff[at : at + (count if packed else size)], size) for at, count, size in zip(offsets, counts, sizes)]


def _unpacked(strip: bytes, size: int) -> bytes:
    """Undo LZW: codes of 9 to 12 bits, high bits first, one bit wider one code before the table needs it (section 13).

    Raises:
        ValueError: other than `size` bytes come out.
    """
    table, width, before = ROOTS.copy(), 9, b""
    bits = held = done = 0
    out: list[bytes] = []
    for byte in strip:  # a code has more than 8 bits: none or one is complete with each byte
        bits, held = bits << 8 | byte, held + 8
        if held < width:
            continue
        held -= width
        code, bits = bits >> held, bits & ((1 << held) - 1)
        if code == CLEAR:
            table, width, before = ROOTS.copy(), 9, b""
            continue
        if code == END:
            break
        if code > len(table) or (code == len(table) and not before):
            raise ValueError("a damaged TIFF")
        now = table[code] if code < len(table) else before + before[:1]
        if before and len(table) < MAX_TABLE:
            table.append(before + now[:1])
            width += len(table) == (1 << width) - 1 and width < MAX_WIDTH
        out.append(now)
        before, done = now, done + len(now)
        if done >= size:
            break
    if done != size:
        raise ValueError("truncated" if done < size else "a damaged TIFF")
    return b"".join(out)
