"""Pictures as training reads them out of shards, and as `dfer predict` reads them from a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dfer.data.config import DataConfig
from dfer.jobs.predict import read_clip
from tests.decoded import decode
from tests.hostile import pictures_kit, tiffs_kit
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 340


def seeds(folder: Path) -> None:
    """None needed."""


def cases(seeds: None, mark: Path) -> Iterator[Case | None]:
    draw = rng("pictures")
    yield _jpeg("whole", pictures_kit.whole_jpegs()["baseline"])
    for name, jpeg in pictures_kit.whole_jpegs().items():
        yield _jpeg(name, jpeg)
    for name, png in pictures_kit.whole_pngs().items():
        yield _png(name, png)
    for name, tiff in tiffs_kit.whole_tiffs().items():
        yield _other("1.tif", f"TIFF, {name}", tiff)
    for name, tricks in FOLDERS.items():
        yield Case(name=name, write=tricks, reads={"predict": _predict})
    yield MUTATED
    while True:
        for _ in range(2):
            yield _jpeg(*pictures_kit.hostile_jpeg(draw))
        yield _png(*pictures_kit.hostile_png(draw))
        yield _other("1.bmp", *pictures_kit.hostile_bmp(draw))
        yield _other("1.tif", *tiffs_kit.hostile_tiff(draw))
        yield _other("1.webp", *pictures_kit.hostile_webp(draw))


def _jpeg(name: str, data: bytes) -> Case:
    reads: dict[str, Callable[[Path], object]] = {
        "decode": lambda at: decode((at / "1.jpg").read_bytes(), size=24, where="a shard, clip 1"),
        "predict": _predict,
    }
    return Case(name=name, write=lambda at: (at / "1.jpg").write_bytes(data), reads=reads)


def _png(name: str, data: bytes) -> Case:
    reads: dict[str, Callable[[Path], object]] = {
        "decode": lambda at: decode((at / "1.png").read_bytes(), size=24, where="a shard, clip 1"),
        "predict": _predict,
    }
    return Case(name=name, write=lambda at: (at / "1.png").write_bytes(data), reads=reads)


def _other(file: str, name: str, data: bytes) -> Case:
    return Case(name=name, write=lambda at: (at / file).write_bytes(data), reads={"predict": _predict})


def _predict(at: Path) -> None:
    read_clip(at, DataConfig(shards="-", frames=2, size=24))


def _sparse(at: Path, name: str) -> None:
    """A file that is large and takes no space."""
    with (at / name).open("wb") as file:
        file.write(pictures_kit.whole_jpegs()["baseline"] if name.endswith("jpg") else pictures_kit.whole_pngs()["RGB"])
        file.truncate(8 * 2**30)


def _named(*names: str) -> Callable[[Path], None]:
    def write(at: Path) -> None:
        for name in names:
            (at / name).write_bytes(pictures_kit.whole_jpegs()["baseline"])

    return write


FOLDERS: dict[str, Callable[[Path], object]] = {
    "8 GiB of JPEG": lambda at: _sparse(at, "1.jpg"),
    "8 GiB of PNG": lambda at: _sparse(at, "1.png"),
    "a pipe": lambda at: os.mkfifo(at / "1.jpg"),
    "a folder": lambda at: (at / "1.jpg").mkdir(),
    "nothing": lambda at: None,
    "a link to a device": lambda at: (at / "1.jpg").symlink_to("/dev/zero"),
    "a link to itself": lambda at: (at / "1.jpg").symlink_to("1.jpg"),
    "a link to nothing": lambda at: (at / "1.jpg").symlink_to("nothing"),
    "many": _named(*(f"{n}.jpg" for n in range(3000))),
    "unlike names": _named("1 (2).jpg", "1.jpg", "-1.jpg"),
    "versions": _named(*(f"{'1.' * 100}{n}.jpg" for n in range(300))),
    "numbers without end": _named(*(f"{'1_' * 100}{n}.jpg" for n in range(300))),
    "control characters": _named("\x1b[31m\n.jpg"),
    "bytes that are no text": _named("\udcff.jpg"),
    "digits of other scripts": _named("\u0663.jpg"),
    "a long number": _named(f"{'9' * 200}.jpg"),
    "one number twice": _named("1.jpg", "01.jpg", "a\x1b1.jpg"),
    "commands": _named("$(touch MARK)1.jpg", "|touch MARK 2.jpg", "-rf3.jpg"),
}
