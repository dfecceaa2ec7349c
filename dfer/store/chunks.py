"""Chunks of a shard: find those that frames need, and verify them against the hashes of the build."""

import hashlib
from collections.abc import Sequence

from dfer.errors import DataError, message
from dfer.store.format import CHUNK, ShardInfo

Span = tuple[int, int]
"""(offset, size) in bytes."""
Bytes = bytes | memoryview
HASH = 32
"""Size of a SHA-256 in bytes."""
CHANGED = "The file was changed or damaged after the build: copy it again or build the shards again."


def chunks_of(spans: Sequence[Span]) -> list[int]:
    """Return the numbers of the chunks that the spans touch, ascending."""
    found: set[int] = set()
    for at, size in spans:
        found.update(range(at // CHUNK, (at + size - 1) // CHUNK + 1))
    return sorted(found)


def span_of(first: int, last: int, shard_bytes: int) -> tuple[int, int]:
    """Return (start, end) in bytes of the chunks first..last."""
    return first * CHUNK, min((last + 1) * CHUNK, shard_bytes)


def runs(numbers: Sequence[int], *, longest: int) -> list[tuple[int, int]]:
    """Group ascending numbers into runs (first, last) without gaps, of at most `longest` numbers each."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1 and number - found[-1][0] < longest:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def first_wrong(data: Bytes, first: int, hashes: bytes) -> int | None:
    """Return the number of the first chunk with a wrong hash, or None. data: whole chunks from number `first` on."""
    view = memoryview(data)
    for number in range(-(-len(view) // CHUNK)):
        chunk = first + number
        digest = hashlib.sha256(view[number * CHUNK : (number + 1) * CHUNK]).digest()
        if digest != hashes[chunk * HASH : (chunk + 1) * HASH]:
            return chunk
    return None


def wrong_chunk(
    where: str, shard: ShardInfo, chunk: int, data: Bytes, hashes: bytes, *, attempts: int = 1, do: str = CHANGED
) -> DataError:
    """Make the error for a chunk whose bytes `data` have a wrong hash. where: shard and clip."""
    start, end = span_of(chunk, chunk, shard.bytes)
    expected = hashes[chunk * HASH : (chunk + 1) * HASH].hex()
    times = f" ({attempts} attempts)" if attempts > 1 else ""
    got = f"{hashlib.sha256(data).hexdigest()[:12]}...{times}"
    expected = f"sha256 {expected[:12]}... of its bytes {start} to {end}"
    return DataError(message(where, expected=expected, got=got, do=do))
