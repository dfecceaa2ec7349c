"""Shards of PNGs: the bytes of a frame become another picture, or the tar is damaged anywhere."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import pictures_kit, shards, values
from tests.hostile.shards import Seeds
from tests.hostile.tars import headers
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 120

seeds = shards.png_seeds


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    yield shards.case("as it was built", seeds)
    draw = rng("png_shards")
    frames = [member for member in headers(seeds.tar) if member.name.endswith(".png")]
    labelled = next(member for member in frames if member.name.startswith("00001"))
    jpeg = pictures_kit.whole_jpegs()["baseline"]
    yield shards.case("a JPEG", seeds, tar=_replaced(seeds.tar, labelled, jpeg), refuse=("verify",))
    bomb = pictures_kit.bomb(60_000, 60_000)
    yield shards.case("a bomb", seeds, tar=_replaced(seeds.tar, labelled, bomb), refuse=("verify", "train"))
    yield MUTATED
    while True:
        member = draw.choice(frames)
        how, png = pictures_kit.hostile_png(draw)
        yield shards.case(f"{how} as {member.name}", seeds, tar=_replaced(seeds.tar, member, png))
        how, tar = values.damaged(seeds.tar, draw)
        yield shards.case(how, seeds, tar=tar)


def _replaced(tar: bytes, member: tarfile.TarInfo, data: bytes) -> bytes:
    """As far as the data fits into the member."""
    data = data[: member.size].ljust(member.size, b"\0")
    return tar[: member.offset_data] + data + tar[member.offset_data + member.size :]
