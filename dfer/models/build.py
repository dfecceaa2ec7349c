"""From a model's configuration to the recognizer, the same on every rank."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from dfer.emotions import Emotions
from dfer.errors import CheckpointError, message
from dfer.models.config import ModelConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign.released import load_released
from dfer.models.foreign.weights import check_file
from dfer.models.towers import Towers, is_tag


def build(config: ModelConfig, emotions: Emotions, *, num_frames: int, seed: int, weights: bool = True) -> DferClip:
    """The recognizer with its initial weights, on the CPU in fp32.

    The weights depend on config, emotions, num_frames and seed alone: the caller's random state is neither read nor
    moved, and whether a checkpoint fills the towers does not change what the new parts are drawn as.

    A `released` checkpoint fills the whole model, so `pretrained` is not read beside it. weights: False for a caller
    who loads a checkpoint of this project next, which holds all weights, or begins from the run that `start` names,
    which holds the towers; neither of the two is read then, and a trained run does not need them any more.

    Raises:
        ConfigProblem: an unknown architecture, or prompts that do not fit it.
        CheckpointError: a checkpoint that is missing, damaged or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        _reseed(seed, "towers")
        filled_later = config.released is not None or not weights
        towers = Towers(replace(config.towers, pretrained=None) if filled_later else config.towers)
        _reseed(seed, config.name)
        model = DferClip(config, towers=towers, emotions=emotions, num_frames=num_frames)
    if weights and config.released is not None:
        load_released(model, Path(config.released))
    return model


def files(config: ModelConfig, *, weights: bool = True) -> dict[str, str]:
    """Paths of the files that `build` reads, and of the folder to begin from, by their key below `model`, which is one
    of `config.FILE_KEYS`.
    open_clip's names and tags are none."""
    arch, pretrained = config.towers.arch, config.towers.pretrained
    found = {"towers.arch": arch} if arch.endswith(".json") else {}
    if not weights:
        return found
    if config.start is not None:
        return {**found, "start": config.start}
    if config.released is not None:
        return {**found, "released": config.released}
    return found if pretrained is None or is_tag(arch, pretrained) else {**found, "towers.pretrained": pretrained}


def check_files(config: ModelConfig, *, weights: bool = True) -> None:
    """Raise CheckpointError when a file that `build` will read, or the folder to begin from, is not there."""
    for key, path in files(config, weights=weights).items():
        if key == "start":
            if "://" not in path and not Path(path).is_dir():
                expected, do = "the run folder of a fold", "Correct the path."
                raise CheckpointError(message(f"model.{key}={path}", expected=expected, got="no such folder", do=do))
        elif Path(path).is_dir():
            check_file(Path(path), f"model.{key}={path}")
        elif not Path(path).is_file():
            expected, do = "a local file", "Correct the path, or give one of open_clip's names for towers."
            raise CheckpointError(message(f"model.{key}={path}", expected=expected, got="no such file", do=do))


def _reseed(seed: int, part: str) -> None:
    """A stream of its own for each part. Only the CPU's generator: `torch.manual_seed` would move the GPUs' too."""
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
