"""Classify clips given as folders of face frames, from any source, with a run's selected checkpoint."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from dfer.data.decode import MAX_PIXELS, resize
from dfer.data.sampling import test_frames
from dfer.distributed import World
from dfer.emotions import emotions_of
from dfer.errors import DataError, UsageError, message
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import load_checkpoint, refuse_other_texts, selected_checkpoint
from dfer.jobs.initial import classes_of
from dfer.media.frames import READ_TEXT, list_pictures
from dfer.media.pictures import MAX_FILE_BYTES, read_picture
from dfer.models.build import build
from dfer.models.config import ClivpFerConfig
from dfer.recognition import ClipBatch, Recognition
from dfer.run.checkpoints import Checkpoints
from dfer.storage import Folder

Answer = dict[str, float]
"""Probability of every class, by name."""


def predict(config: RunConfig, clips: Sequence[Path], world: World) -> Iterator[tuple[Path, Answer | DataError]]:
    """Yield each clip with its answer, or with the error that prevented one, as soon as it is known.

    clips: folders of face frames.

    Raises:
        CheckpointError: the run has no checkpoint.
        GpuMemoryError: a clip does not fit into GPU memory.
    """
    forward, names = _recogniser(config, world)
    for clip in clips:
        try:
            frames = read_clip(clip, num_frames=config.data.frames, size=config.data.size)[None]
        except DataError as error:
            yield clip, error
            continue
        batch = ClipBatch(frames=frames, labels=torch.zeros(1, dtype=torch.int64), index=torch.zeros(1).long())
        with enough_gpu_memory():
            shares = forward(batch.to(world.device)).logits[0].double().softmax(-1).tolist()
        yield clip, dict(zip(names, shares, strict=True))


@enough_gpu_memory()
def _recogniser(config: RunConfig, world: World) -> tuple[Callable[[ClipBatch], Recognition], tuple[str, ...]]:
    """Build the forward pass of the run's model; returns also the class names of the checkpoint."""
    _refuse_leak(config)
    chosen = selected_checkpoint(config, Checkpoints(Folder(config.run), world=world))
    emotions = emotions_of(classes_of(chosen.state, str(chosen.folder)))
    refuse_other_texts(config, emotions, chosen)
    # A run on features has no image tower in its checkpoint, but new clips are frames: build the tower here.
    on_features = config.data.features is not None
    model = build(config.model, emotions, num_frames=config.data.frames, seed=config.seed, weights=on_features)
    load_checkpoint(model, chosen, without=model.tower_weights() if on_features else frozenset[str]())
    set_tf32(config.engine.tf32)
    return inference(model, precision=config.engine.precision, device=world.device), emotions.names


def _refuse_leak(config: RunConfig) -> None:
    """Raise UsageError for a model that chooses its caption by the true label."""
    if isinstance(config.model, ClivpFerConfig) and config.model.leaks_label:
        expected, got = "a model that answers without the true label", "model.caption=true_label, which LEAKS LABEL"
        do = "Train with model.caption=zero_shot or all; a clip to predict has no label."
        raise UsageError(message(config.run, expected=expected, got=got, do=do))


class Table:
    """A CSV of answers, created with the first one. Columns: folder of the clip, most probable class, probability of
    every class."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def add(self, clip: Path, answer: Answer) -> None:
        """Write a clip's row and flush it to the file."""
        if self._file is None:
            self._file = self._path.open("w", newline="", encoding="utf-8")
            self._write(["clip", "predicted", *answer])
        self._write([str(clip), likeliest(answer), *(f"{share:.6f}" for share in answer.values())])

    def _write(self, row: Sequence[str]) -> None:
        assert self._file is not None
        csv.writer(self._file).writerow(row)
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def likeliest(answer: Answer) -> str:
    """Return the most probable class."""
    return max(answer, key=answer.__getitem__)


def read_clip(folder: Path, *, num_frames: int, size: int) -> Tensor:
    """Read a folder's pictures as uint8 [T C H W], sampled as in evaluation.

    Raises:
        DataError: the folder or its frames are missing, their order is ambiguous, or a picture cannot be read.
    """
    expected = f"a folder with {READ_TEXT} face frames in an order that their names tell"
    try:
        paths = [Path(entry.path) for entry in list_pictures(folder)]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(message(folder, expected=expected, got="no folder", do="Correct the path.")) from None
    except OSError as error:
        got = str(error.strerror)
        raise DataError(message(folder, expected=expected, got=got, do="Correct its permissions.")) from error
    except ValueError as error:
        do = "Give the cropped faces, one file a frame, named as 00012.jpg."
        raise DataError(message(folder, expected=expected, got=str(error), do=do)) from error
    return torch.stack([_read_picture(paths[at], size=size) for at in test_frames(len(paths), num_frames)])


def _read_picture(path: Path, *, size: int) -> Tensor:
    expected = f"a whole JPEG, PNG, BMP or WebP of at most {MAX_PIXELS:,} pixels"
    try:
        rgb = read_picture(_read(path), max_pixels=MAX_PIXELS).rgb
    except ValueError as error:
        raise DataError(message(path, expected=expected, got=str(error), do="Replace the file.")) from error
    return resize(torch.from_numpy(rgb).permute(2, 0, 1)[None], size=size)[0]


def _read(path: Path) -> bytes:
    """Read a file, up to the largest size that a picture may have."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        do = "Correct its permissions or replace it."
        raise DataError(message(path, expected="to read it", got=str(error.strerror), do=do)) from error
    if len(data) > MAX_FILE_BYTES:
        expected = f"a picture of at most {MAX_FILE_BYTES >> 20} MiB"
        raise DataError(message(path, expected=expected, got="more", do="Replace the file."))
    return data
