"""Classify clips given as folders of face frames, from any source, by a run's checkpoint or a saved model."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from dfer.data.folders import read_clip
from dfer.distributed import World
from dfer.emotions import Emotions, emotions_of
from dfer.errors import DataError
from dfer.evaluation.results import read_result
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.jobs.answering import refuse_leak
from dfer.jobs.config import RunConfig
from dfer.jobs.facts import load_checkpoint, refuse_other_texts, selected_checkpoint
from dfer.jobs.initial import classes_of, untrained_model
from dfer.models.build import build
from dfer.models.files import trains_nothing
from dfer.models.saved import SavedModel, state_of
from dfer.recognition import ClipBatch, Recognizer
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.storage import Folder

Answer = dict[str, float]
"""Probability of every class, by name."""


def predict(
    config: RunConfig, clips: Sequence[Path], world: World, *, saved: SavedModel | None = None
) -> Iterator[tuple[Path, Answer | DataError]]:
    """Yield each clip with its answer, or with the error that prevented one, as soon as it is known.

    clips: folders of face frames. saved: the saved model that the configuration was made of (`jobs.saved.run_of`), in
    place of a run.

    Raises:
        CheckpointError: the run has no checkpoint, or the weights do not fit.
        GpuMemoryError: a clip does not fit into GPU memory.
    """
    refuse_leak(config)
    with enough_gpu_memory():
        model, names = answering_model(config, world, saved=saved)
        set_tf32(config.engine.tf32)
        forward = inference(model, precision=config.engine.precision, device=world.device)
    for clip in clips:
        try:
            frames = read_clip(clip, config.data)
        except DataError as error:
            yield clip, error
            continue
        nought = torch.zeros(len(frames), dtype=torch.int64)
        batch = ClipBatch(frames=frames, labels=nought, index=nought)
        with enough_gpu_memory():
            shares = forward(batch.to(world.device)).logits.float().mean(0).double().softmax(-1).tolist()
        yield clip, dict(zip(names, shares, strict=True))


def answering_model(config: RunConfig, world: World, *, saved: SavedModel | None) -> tuple[Recognizer, tuple[str, ...]]:
    """Build the model that answers, with its weights; returns also its class names. COLLECTIVE. saved: as in `predict`.

    Raises:
        CheckpointError: the run has no checkpoint, or the weights do not fit.
    """
    return _saved(config, saved) if saved is not None else _selected(config, world)


def _saved(config: RunConfig, saved: SavedModel) -> tuple[Recognizer, tuple[str, ...]]:
    """Build a saved model; returns also its class names."""
    refuse_other_texts(config, emotions_of(saved.config.classes), state_of(saved.config))
    return saved.recognizer(), saved.config.classes


def _selected(config: RunConfig, world: World) -> tuple[Recognizer, tuple[str, ...]]:
    """Build the model of a run's selected checkpoint; returns also the class names of the checkpoint, or of the result
    of a method that trains nothing."""
    if trains_nothing(config.model):
        emotions = emotions_of(read_result(Folder(config.run)).classes)
        return untrained_model(config, emotions, world).model, emotions.names
    chosen = selected_checkpoint(config, Checkpoints(Folder(config.run), world=world))
    emotions = emotions_of(classes_of(chosen.state, str(chosen.folder)))
    refuse_other_texts(config, emotions, chosen.state)
    return whole_model(config, emotions, chosen), emotions.names


def whole_model(config: RunConfig, emotions: Emotions, chosen: Checkpoint) -> Recognizer:
    """Build the model of a checkpoint with all weights, so that it takes frames. Raises CheckpointError."""
    # A run on features has no image tower in its checkpoint, but new clips are frames: build the tower here.
    on_features = config.data.features is not None
    model = build(config.model, emotions, num_frames=config.data.frames, seed=config.seed, weights=on_features)
    load_checkpoint(model, chosen, without=model.tower_weights() if on_features else frozenset[str]())
    return model


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
