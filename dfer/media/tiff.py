"""Check a TIFF and copy what is needed of it before any pixel is decoded: 8 bits, grey or RGB, uncompressed or LZW, one
page in strips.

The format leaves much open (tiles, pages, other codecs, colours by table), and its decoder has a long list of flaws. So
the decoder is given a file that is written here: the tags below, with numbers that were checked, and the bytes of the
strips. What else the file holds, such as profiles, previews and private tags, does not reach it. Needs no torch.

Source: TIFF, revision 6.0 (Adobe, 1992), sections 2 to 6, 13 and 14.
"""

import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate

from dfer.media.bounds import Header, TooMuch

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
GREY, RGB = (0, 1), 2
"""Colours: 0 white is zero, 1 black is zero, 2 RGB."""
MAX_TAGS, MAX_STRIPS = 1024, 2**16

Tags = Mapping[int, tuple[int, ...]]


def plain_tiff(tiff: bytes, *, max_pixels: int) -> tuple[Header, bytes]:
    """Return the size of a TIFF and a plain copy of it, upright, of one page.

    Raises:
        TooMuch: too large. ValueError: not a whole TIFF of a supported kind; the text says what it is.
    """
    tags = _read_tags(tiff)
    header, samples = _checked(tags, max_pixels)
    strips = _strips(tiff, tags, header, samples)
    kept = {
        WIDTH: (header.width,),
        HEIGHT: (header.height,),
        BITS: (8,) * samples,
        COMPRESSION: (_one(tags, COMPRESSION),),
        COLOURS: (_one(tags, COLOURS),),
        SAMPLES: (samples,),
        ROWS: (min(_one(tags, ROWS), header.height),),
        COUNTS: tuple(map(len, strips)),
        PLANES: (1,),
        PREDICTOR: (_one(tags, PREDICTOR),),
    }
    return header, _written(kept, strips)


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


def _checked(tags: Tags, max_pixels: int) -> tuple[Header, int]:
    """Return the size, and the number of samples of a pixel. Raises TooMuch, ValueError."""
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
    return Header(height, width), samples


def _strips(tiff: bytes, tags: Tags, header: Header, samples: int) -> list[bytes]:
    """Return the bytes of the strips, from the top."""
    rows = _one(tags, ROWS)
    offsets, counts = tags.get(OFFSETS, ()), tags.get(COUNTS, ())
    if rows < 1 or not len(offsets) == len(counts) == -(-header.height // rows):
        raise ValueError("a damaged TIFF")
    found = []
    for number, (at, count) in enumerate(zip(offsets, counts)):
        if at + count > len(tiff):
            raise ValueError("truncated")
        own = min(rows, header.height - number * rows) * header.width * samples
        if _one(tags, COMPRESSION) == NONE and count < own:
            raise ValueError("truncated")
        found.append(tiff[at : at + (own if _one(tags, COMPRESSION) == NONE else count)])
    if sum(map(len, found)) > len(tiff):
        raise ValueError("a damaged TIFF")  # strips that overlap would multiply the file
    return found


def _written(tags: Tags, strips: Sequence[bytes]) -> bytes:
    """Write a TIFF of one page: header, directory, numbers that do not fit into it, strips."""
    at = 8 + 2 + 12 * (len(tags) + 1) + 4  # behind the directory
    lists = [*tags.values(), (0,) * len(strips)]
    begin = at + sum(4 * len(numbers) for numbers in lists if len(numbers) > 1)
    places = accumulate(map(len, strips[:-1]), initial=begin)
    directory, beyond = [struct.pack("<H", len(tags) + 1)], []
    for tag, numbers in sorted({**tags, OFFSETS: tuple(places)}.items()):
        value = numbers[0] if len(numbers) == 1 else at
        directory.append(struct.pack("<HHII", tag, LONG, len(numbers), value))
        if len(numbers) > 1:
            beyond.append(struct.pack(f"<{len(numbers)}I", *numbers))
            at += 4 * len(numbers)
    return b"".join([b"II*\0", struct.pack("<I", 8), *directory, struct.pack("<I", 0), *beyond, *strips])
