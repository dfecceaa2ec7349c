"""Pictures of a raw data set, as `dfer-shards build` packs them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

from dfer.errors import DataError
from dfer.store.format import Media
from shards.frames import store_frame
from shards.sources.clips import BadClip, list_frames
from tests.hostile import pictures_kit
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 260


def seeds(folder: Path) -> None:
    """None needed."""


def cases(seeds: None, mark: Path) -> Iterator[Case | None]:
    draw = rng("raw pictures")
    yield _case("whole", "1.jpg", pictures_kit.whole_jpegs()["baseline"])
    yield _case("64 million pixels", "1.png", pictures_kit.bomb(8192, 8192))
    yield _case("64 million transparent pixels", "1.png", pictures_kit.bomb(8192, 8192, colour=6))
    yield _case("64 million deep pixels", "1.png", pictures_kit.bomb(8192, 8192, depth=16))
    yield _case(
        "a large picture of short scans", "1.jpg", pictures_kit.scans(pictures_kit.large_progressive(8192), 2000)
    )
    yield _case("64 million pixels, WebP", "1.webp", pictures_kit.large_webp(8192))
    yield _case("64 million transparent pixels, WebP", "1.webp", pictures_kit.large_webp(8192, alpha=True))
    for name, bmp in pictures_kit.whole_bmps().items():
        yield _case(f"BMP, {name}", "1.bmp", bmp)
    for name, webp in pictures_kit.whole_webps().items():
        yield _case(f"WebP, {name}", "1.webp", webp)
    yield Case(name="8 GiB", write=_sparse, reads=READS)
    yield MUTATED
    while True:
        yield _case(*_named(draw.choice(("jpg", "png")), pictures_kit.hostile_jpeg(draw)))
        yield _case(*_named(draw.choice(("jpg", "png")), pictures_kit.hostile_png(draw)))
        yield _case(*_named(draw.choice(("bmp", "webp")), pictures_kit.hostile_bmp(draw)))
        yield _case(*_named(draw.choice(("jpg", "webp")), pictures_kit.hostile_webp(draw)))


def _named(suffix: str, found: tuple[str, bytes]) -> tuple[str, str, bytes]:
    return found[0], f"1.{suffix}", found[1]


def _case(name: str, file: str, data: bytes) -> Case:
    return Case(name=name, write=lambda at: (at / file).write_bytes(data), reads=READS)


def _sparse(at: Path) -> None:
    with (at / "1.jpg").open("wb") as file:
        file.truncate(8 * 2**30)


def _store(at: Path, media: Media) -> None:
    """A clip that cannot be packed is no error of the build: its reason goes into the manifest."""
    try:
        for frame in list_frames(at):
            store_frame(frame, media=media, max_side=64, quality=90)
    except BadClip as bad:
        raise DataError(f"clip: expected frames that can be packed, got {bad}") from bad


READS: dict[str, Callable[[Path], object]] = {media: partial(_store, media=media) for media in get_args(Media)}
