"""Raw data sets with hostile split files, records and folders, as `dfer-shards build --dry-run` looks at them."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from shards.build import check_numbering, missing_clips
from shards.sources import SOURCES
from shards.sources.generated import mark_generated
from tests.hostile import values
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case
from tests.unit.shards import rawkit, stillkit

COUNT = 375
SPLITS = {
    "dfew": "EmoLabel_DataSplit/test(single-labeled)/set_2.csv",
    "ferv39k": "4_setups/All_scenes/train_All.csv",
    "mafw": "Train & Test Set/single/no_caption/set_2/test.txt",
}
FRAMES = {
    "dfew": "Clip/clip_224x224/00002",
    "ferv39k": "2_ClipsforFaceCrop/Action/Happy/0000",
    "mafw": "data/faces/00027",
}


STILL_TABLES = {
    "affectnet": "Manually_Annotated_file_lists/training.csv",
    "ckplus": "Emotion/S005/001/S005_001_00000011_emotion.txt",
    "fer2013": "fer2013.csv",
    "ferplus": "fer2013new.csv",
    "raf_db": "basic/EmoLabel/list_patition_label.txt",
}
STILL_FOLDERS = {"kmu_fed": "KMU-FED", "affectnet": "Manually_Annotated_Images/1", "raf_db": "basic/Image/aligned"}


def seeds(folder: Path) -> Path:
    rawkit.dfew(folder / "dfew", clips=10)
    rawkit.ferv39k(folder / "ferv39k")
    rawkit.mafw(folder / "mafw")
    for name in sorted({*STILL_TABLES, *STILL_FOLDERS} - {"fer2013"}):
        getattr(stillkit, name)(folder / name)
    # A reader of the csv does not look into the pixels, and some of the cases repeat the file 20,000 times.
    stillkit.write(folder / "fer2013/fer2013.csv", "emotion,pixels,Usage\n0,1 2 3,Training\n3,4 5 6,PrivateTest\n")
    return folder


def cases(seeds: Path, mark: Path) -> Iterator[Case | None]:
    draw = rng("raw sets")
    for name in SPLITS:
        yield _case(seeds, name, "as it was unpacked", lambda raw: None)
    for name, split in SPLITS.items():
        for how, change in FILES.items():
            yield _case(seeds, name, f"split file: {how}", lambda raw, split=split, change=change: change(raw / split))
        for how, change in FOLDERS.items():
            yield _case(seeds, name, f"frames: {how}", lambda raw, name=name, change=change: change(raw / FRAMES[name]))
        for how, change in FILES.items():
            yield _case(
                seeds, name, f"record: {how}", lambda raw, change=change: (_record(raw), change(raw / "synthetic.json"))
            )
        for number in range(12):
            yield _case(seeds, name, *_json(number, draw))
    for name, table in STILL_TABLES.items():
        for how, change in FILES.items():
            yield _case(seeds, name, f"table: {how}", lambda raw, table=table, change=change: change(raw / table))
    for name, pictures in STILL_FOLDERS.items():
        for how, change in FOLDERS.items():
            yield _case(seeds, name, f"stills: {how}", lambda raw, at=pictures, change=change: change(raw / at))
    yield MUTATED
    while True:
        name = draw.choice(sorted(SPLITS))
        data = (seeds / name / SPLITS[name]).read_bytes()
        how, changed = _changed(data, draw) if draw.random() < 0.6 else values.damaged(data, draw)
        yield _case(
            seeds,
            name,
            f"split file: {how}",
            lambda raw, name=name, data=changed: (raw / SPLITS[name]).write_bytes(data),
        )


def _json(number: int, draw: random.Random) -> tuple[str, Callable[[Path], object]]:
    how, text = values.broken_json(b'{"seed": 1, "generator": 2, "clips": [1, 2]}', draw)
    return f"record: {how}", lambda raw: (raw / "synthetic.json").write_bytes(text)


def _record(raw: Path) -> None:
    (raw / "synthetic.json").write_text('{"seed": 1, "generator": "\\u001b[2J"}')


def _case(seeds: Path, name: str, how: str, change: Callable[[Path], object]) -> Case:
    def write(at: Path) -> None:
        shutil.copytree(seeds / name, at / "raw")
        change(at / "raw")

    def build(at: Path) -> None:
        raw = mark_generated(SOURCES[name](at / "raw"), at / "raw")
        check_numbering(raw)
        missing_clips(raw, jobs=1, progress=False)

    return Case(name=f"{name}, {how}", write=write, reads={"build": build})


def _changed(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """One word of a line becomes a hostile one, or a line comes again, elsewhere or not at all."""
    lines = data.decode().splitlines()
    at = draw.randrange(len(lines))
    act = draw.randrange(5)
    if act < 3:
        mark = "," if "," in lines[at] else " "
        words = lines[at].split(mark)
        words[draw.randrange(len(words))] = str(
            draw.choice((*values.PATHS, *values.TEXTS, "9" * 6000, -1, 1e9, "7", "Happy", "fear"))
        )
        lines[at] = mark.join(words)
    elif act == 3:
        lines[draw.randrange(len(lines))] = lines[at]
    else:
        del lines[at]
    return "a changed line", "\n".join(lines).encode("utf-8", "surrogatepass")


def _large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(8 * 2**30)


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


FILES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "8 GiB": _large,
    "a pipe": lambda path: _instead(path, os.mkfifo),
    "a folder": lambda path: _instead(path, Path.mkdir),
    "a device": lambda path: _instead(path, lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": lambda path: _instead(path, lambda p: p.symlink_to(p.name)),
    "one long line": lambda path: path.write_bytes(b"1," * 2_000_000),
    "lines of nothing": lambda path: path.write_bytes(b"\n" * 4_000_000 + b"x"),
    "UTF-16": lambda path: path.write_bytes(path.read_bytes().decode().encode("utf-16")),
    "NULs": lambda path: path.write_bytes(b"\0" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xfd" * 100),
    "control characters": lambda path: path.write_bytes(b"\x1b[2J\x07\n" + path.read_bytes()),
    "other line ends": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\x0b\x0c\x1c\xc2\x85")),
    "a byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "many lines": lambda path: path.write_bytes(path.read_bytes() * 20_000),
    "quotes": lambda path: path.write_bytes(b'"' + path.read_bytes()),
}


def _renamed(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for picture, name in zip(sorted(folder.iterdir()), names):
            picture.rename(folder / name)

    return change


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a link to itself": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    "a link elsewhere": lambda folder: (shutil.rmtree(folder), folder.symlink_to("/proc/self")),
    "a link around": lambda folder: (folder / "up").symlink_to(".."),
    "a pipe": lambda folder: os.mkfifo(folder / "99.jpg"),
    "a device": lambda folder: (folder / "98.jpg").symlink_to("/dev/zero"),
    "control characters": _renamed("\x1b[2J", "a\nb.jpg", "\x1b[2J.jpg"),
    "no text": _renamed("\udcff.jpg", "\udcff1.jpg"),
    "long numbers": _renamed("9" * 200 + ".jpg", "0" * 100 + "1.jpg"),
    "commands": _renamed("$(touch MARK)1.jpg", "-rf2.jpg"),
    "no pictures": _renamed("a.txt", "b.gif"),
}
