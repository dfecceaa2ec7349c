"""From a model's configuration to the recognizer, the same on every rank."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from dfer.emotions import Emotions
from dfer.models.config import ModelConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign.released import load_released
from dfer.models.towers import Towers


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


def _reseed(seed: int, part: str) -> None:
    """A stream of its own for each part. Only the CPU's generator: `torch.manual_seed` would move the GPUs' too."""
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
