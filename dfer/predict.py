"""Expressions of clips that are folders of face frames: a run's selected checkpoint on pictures from anywhere."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dfer.checkpoint import Checkpoints
from dfer.data.bounds import check_png
from dfer.data.decode import MAX_PIXELS, decode, resize
from dfer.data.sampling import test_frames
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.errors import DataError, message
from dfer.models.build import build
from dfer.recognition import ClipBatch
from dfer.run_config import RunConfig
from dfer.run_facts import load_checkpoint, selected_checkpoint
from dfer.storage import Folder
from dfer.training.engine import enough_gpu_memory, inference, set_tf32

PICTURES = {".jpg", ".jpeg", ".png"}
TRAILING_NUMBER = re.compile(r"([0-9]{1,12})\Z")
MAX_FILE_BYTES = 64 * 2**20


@enough_gpu_memory()
def predict(config: RunConfig, clips: Sequence[Path], world: World) -> list[dict[str, float]]:
    """Class probabilities by name, one dict a clip. `clips` are folders with face frames in numeric order.

    Raises:
        DataError: a folder without pictures, or a picture that is damaged or too large.
        CheckpointError: the run has no checkpoint.
    """
    emotions = label_set(config.data.classes)
    model = build(config.model, emotions, num_frames=config.data.frames, seed=config.seed, weights=False)
    checkpoints = Checkpoints(Folder(config.run), world=world)
    load_checkpoint(model, selected_checkpoint(config, checkpoints))
    set_tf32(config.engine.tf32)
    forward = inference(model, precision=config.engine.precision, device=world.device)
    found = []
    for clip in clips:
        frames = read_clip(clip, num_frames=config.data.frames, size=config.data.size)[None]
        batch = ClipBatch(frames=frames, labels=torch.zeros(1, dtype=torch.int64), index=torch.zeros(1).long())
        shares = forward(batch.to(world.device)).logits[0].double().softmax(-1).tolist()
        found.append(dict(zip(emotions.names, shares, strict=True)))
    return found


def save_csv(path: Path, clips: Sequence[Path], answers: Sequence[dict[str, float]]) -> None:
    """One row a clip: its folder, the likeliest class, and every class's probability."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "predicted", *answers[0]])
        for clip, shares in zip(clips, answers, strict=True):
            table.writerow([clip, max(shares, key=shares.__getitem__), *(f"{s:.6f}" for s in shares.values())])


def read_clip(folder: Path, *, num_frames: int, size: int) -> Tensor:
    """uint8 [T C H W] of a folder's pictures, sampled as in evaluation."""
    paths = [path for path in folder.iterdir() if _is_picture(path)] if folder.is_dir() else []
    if not paths:
        raise DataError(
            message(folder, expected="a folder with .jpg or .png face frames", got="none", do="Crop the faces first.")
        )
    paths = _in_time_order(paths)
    pictures = [_read_picture(paths[i], size=size) for i in test_frames(len(paths), num_frames)]
    return torch.stack(pictures)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def _in_time_order(paths: Sequence[Path]) -> list[Path]:
    """By the number at the end of the name, as the shard builder has it."""
    by_number: dict[int, Path] = {}
    for path in sorted(paths):
        number = TRAILING_NUMBER.search(path.stem)
        if number is None:
            expected, do = "a number at the end of the name, which gives the order", "Name frames as 00012.jpg."
            raise DataError(message(path, expected=expected, got="none", do=do))
        other = by_number.setdefault(int(number[1]), path)
        if other is not path:
            expected, do = "one frame of each number", "Take one of them away."
            raise DataError(message(path, expected=expected, got=f"{other.name} besides", do=do))
    return [by_number[number] for number in sorted(by_number)]


def _read_picture(path: Path, *, size: int) -> Tensor:
    data = _read(path)
    if path.suffix.lower() != ".png":
        return torch.from_numpy(decode(data, size=size, where=str(path), do="Replace the file.")).permute(2, 0, 1)
    # JPEGs are read without their EXIF rotation, so PNGs are too.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = None
    try:
        check_png(data, max_pixels=MAX_PIXELS)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        got = "a damaged PNG"
    except (ValueError, cv2.error) as error:
        got = str(error)
    if picture is None:
        expected = f"a PNG picture of at most {MAX_PIXELS:,} pixels"
        raise DataError(message(path, expected=expected, got=got, do="Replace the file."))
    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return resize(torch.from_numpy(rgb).permute(2, 0, 1)[None], size=size)[0]


def _read(path: Path) -> bytes:
    """The file's bytes, no more than a picture may have."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        expected = f"a picture of at most {MAX_FILE_BYTES >> 20} MiB"
        raise DataError(message(path, expected=expected, got="more", do="Replace the file."))
    return data
