"""Small raw trees in the layouts of the distributors, filled with noise pictures."""

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUMBER_OF = {"happiness": 1, "sadness": 2, "neutral": 3, "anger": 4, "surprise": 5, "disgust": 6, "fear": 7}


def picture(seed: int, *, side: int = 24, kind: str = "JPEG") -> bytes:
    """A picture of coloured noise, encoded by PIL, which the code under test does not use."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, names: Sequence[str], *, seed: int, side: int = 24) -> None:
    folder.mkdir(parents=True)
    for position, name in enumerate(names):
        kind = {".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}.get(Path(name).suffix, "JPEG")
        (folder / name).write_bytes(picture(seed * 100 + position, side=side, kind=kind))


def dfew_labels(clips: int) -> dict[int, int]:
    """Clip number -> DFEW label 1..7; clip n is in fold (n - 1) % 5 + 1."""
    return {n: (n * 3) % 7 + 1 for n in range(1, clips + 1)}


def write_dfew_splits(root: Path, labels: dict[int, int], *, pattern: str = "") -> None:
    pattern = pattern or "EmoLabel_DataSplit/{side}(single-labeled)/set_{fold}.csv"
    for fold in range(1, 6):
        for side in ("train", "test"):
            rows = [n for n in labels if ((n - 1) % 5 + 1 == fold) == (side == "test")]
            path = root / pattern.format(side=side, fold=fold)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("video_name,label\n" + "".join(f"{n},{labels[n]}\n" for n in rows))


def dfew(root: Path, *, clips: int = 10, frames: int = 3) -> Path:
    """DFEW as the distributor ships it."""
    labels = dfew_labels(clips)
    write_dfew_splits(root, labels)
    for n in labels:
        names = [f"{n:05d}_{i:05d}.jpg" for i in range(1, frames + n % 3 + 1)]
        fill(root / "Clip/clip_224x224" / f"{n:05d}", names, seed=n)
    return root


def large_dfew(root: Path, *, clips: int, frames: int) -> Path:
    """DFEW whose frames are one picture of 224 pixels, linked: work for seconds, made at once."""
    labels = dfew_labels(clips)
    write_dfew_splits(root, labels)
    (root / "picture").write_bytes(picture(1, side=224))
    for n in labels:
        folder = root / f"Clip/clip_224x224/{n:05d}"
        folder.mkdir(parents=True)
        for i in range(1, frames + 1):
            os.link(root / "picture", folder / f"{n:05d}_{i:05d}.jpg")
    return root


def ferv39k(root: Path) -> Path:
    """FERV39k with two scenes, two emotions; odd clips are test clips."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for s, scene in enumerate(("Action", "War")):
        for e, emotion in enumerate(("Happy", "Angry")):
            for n in range(3):
                key = f"{scene}/{emotion}/{n:04d}"
                fill(root / "2_ClipsforFaceCrop" / key, ["01.jpg", "02.jpg"], seed=s * 20 + e * 10 + n)
                rows["test" if n % 2 else "train"].append(f"{key} {emotion}\n")
    for side, lines in rows.items():
        path = root / "4_setups/All_scenes" / f"{side}_All.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    return root


def mafw(root: Path, *, faces: str = "data/faces") -> Path:
    """MAFW with ten clips; the split files end without a newline, as in the release."""
    words = (
        "anger",
        "disgust",
        "fear",
        "happiness",
        "neutral",
        "sadness",
        "surprise",
        "contempt",
        "anxiety",
        "helplessness",
    )
    ids = [f"{20 + 7 * n:05d}" for n in range(10)]
    for n, clip in enumerate(ids):
        fill(root / faces / clip, [f"{clip}_{i}.png" for i in (1, 2, 10)], seed=n)
    for fold in range(5):
        for side in ("train", "test"):
            rows = [f"{ids[n]}.mp4 {words[n]}" for n in range(10) if (n % 5 == fold) == (side == "test")]
            path = root / "Train & Test Set/single/no_caption" / f"set_{fold + 1}" / f"{side}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows))
    return root


@contextmanager
def unreadable(name: str) -> Iterator[None]:
    """Reading files of this name fails as on a broken disk."""
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        yield
