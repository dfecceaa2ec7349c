"""From a model's configuration to the recognizer, the same on every rank."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from dfer.emotions import Emotions
from dfer.models.clivp_fer import ClivpFer
from dfer.models.cnn import Cnn
from dfer.models.cocoop import CoCoOp
from dfer.models.config import (
    CoCoOpConfig,
    ContrastiveConfig,
    CoOpConfig,
    DferClipConfig,
    FineTuneConfig,
    LinearProbeConfig,
    ModelConfig,
    ZeroShotConfig,
)
from dfer.models.config_clivp_fer import ClivpFerConfig, CnnConfig
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.contrastive import Contrastive, Gather
from dfer.models.coop import CoOp
from dfer.models.dfer_clip import DferClip
from dfer.models.dk_clip import DkClip
from dfer.models.fine_tune import FineTune
from dfer.models.frozen import FrozenTowers, VisualTower
from dfer.models.linear_probe import LinearProbe
from dfer.models.normalisation import refuse_other_normalisation
from dfer.models.towers import FEATURE, ImageTower, Towers
from dfer.models.zero_shot import ZeroShot
from dfer.recognition import Recognizer


def _of_one_rank(rows: Tensor) -> Tensor:
    """Return the rows unchanged: the gather of a single rank."""
    return rows


def build(
    config: ModelConfig,
    emotions: Emotions,
    *,
    num_frames: int,
    seed: int,
    weights: bool = True,
    dims: Mapping[str, int] | None = None,
    gather: Gather = _of_one_rank,
) -> Recognizer:
    """Build the recognizer with its initial weights, on the CPU in fp32.

    The weights depend on config, emotions, num_frames and seed alone: the caller's random state is neither read nor
    changed, and the random weights of the other parts are the same whether or not a checkpoint fills the towers.

    weights: False if a checkpoint of this project is loaded next, which holds all weights; no file of weights is read
    then, so a trained run no longer needs those files.
    dims: width of each feature by name, for a method whose input is stored features: its frozen image tower is neither
    built nor read, and its other weights are the same.
    gather: collective call from a rank's rows to those of all ranks, for methods that compare clips across ranks.

    Raises:
        ConfigProblem: an unknown architecture, prompts that do not fit it, or CLIP's normalisation for weights that
            were trained with another.
        CheckpointError: a checkpoint that is missing, damaged or does not fit.
        ValueError: features for a method that takes none.
    """
    if dims is not None and config.frozen_tower is None:
        raise ValueError(f"{config.name}: expected a method that takes features")
    if weights:
        refuse_normalisation(config)
    match config:
        case DferClipConfig():
            return _dfer_clip(config, emotions, num_frames=num_frames, seed=seed, weights=weights)
        case LinearProbeConfig():
            tower = image_tower(config.towers, seed=seed, weights=weights) if dims is None else None
            with _stream(seed, config.name):
                return LinearProbe(config, tower=tower, dim=_dim(tower, dims), emotions=emotions)
        case FineTuneConfig():
            with _stream(seed, "towers"):
                trained = VisualTower(_read(config.towers, weights=weights))
            with _stream(seed, config.name):
                return FineTune(config, tower=trained, emotions=emotions, num_frames=num_frames)
        case DkClipConfig():
            towers = both_towers(config.towers, seed=seed, weights=weights)
            with _stream(seed, config.name):
                return DkClip(config, towers=towers, emotions=emotions, num_frames=num_frames)
        case ContrastiveConfig():
            towers = both_towers(config.towers, seed=seed, weights=weights)
            with _stream(seed, config.name):
                return Contrastive(config, towers=towers, emotions=emotions, num_frames=num_frames, gather=gather)
        case ClivpFerConfig():
            towers = both_towers(config.towers, seed=seed, weights=weights)
            with _stream(seed, config.name):
                return ClivpFer(config, towers=towers, emotions=emotions, frames=dims is None)
        case CnnConfig():
            with _stream(seed, config.name):
                return Cnn(config, emotions=emotions)
        case ZeroShotConfig() | CoOpConfig() | CoCoOpConfig():
            return _frozen(config, emotions, seed=seed, weights=weights, image=dims is None)


def refuse_normalisation(config: ModelConfig) -> None:
    """Raise ConfigProblem if frames are to be normalised otherwise than the towers' weights were trained."""
    if config.towers is not None and getattr(config, "clip_normalisation", False):
        refuse_other_normalisation(config.towers)


def _frozen(
    config: ZeroShotConfig | CoOpConfig | CoCoOpConfig, emotions: Emotions, *, seed: int, weights: bool, image: bool
) -> Recognizer:
    """Build a method that freezes both towers. image: whether there are frames to encode."""
    towers = frozen_towers(config.towers, seed=seed, weights=weights, image=image)
    with _stream(seed, config.name):
        match config:
            case ZeroShotConfig():
                return ZeroShot(config, towers=towers, emotions=emotions)
            case CoOpConfig():
                return CoOp(config, towers=towers, emotions=emotions)
            case CoCoOpConfig():
                return CoCoOp(config, towers=towers, emotions=emotions)


def frozen_towers(config: TowersConfig, *, seed: int, weights: bool = True, image: bool = True) -> FrozenTowers:
    """Build a CLIP's two towers, frozen, for methods that train neither. image: whether there are frames to encode.
    Raises as `build`."""
    with _stream(seed, "towers"):
        return FrozenTowers(_read(config, weights=weights), image=image)


def _read(config: TowersConfig, *, weights: bool) -> TowersConfig:
    """Return the configuration without its file of weights if no weights are to be read."""
    return config if weights else replace(config, pretrained=None)


def _dim(tower: ImageTower | None, dims: Mapping[str, int] | None) -> int:
    """Return the width of a frame's feature: that of the tower, or of the stored features."""
    return (dims or {})[FEATURE] if tower is None else tower.embed_dim


def image_tower(config: TowersConfig, *, seed: int, weights: bool = True) -> ImageTower:
    """Build a CLIP's image tower with its initial weights, the same for every method. Raises as `build`."""
    with _stream(seed, "towers"):
        return ImageTower(_read(config, weights=weights))


def both_towers(config: TowersConfig, *, seed: int, weights: bool = True) -> Towers:
    """Build a CLIP's two towers with their initial weights, the same for every method. Raises as `build`."""
    with _stream(seed, "towers"):
        return Towers(_read(config, weights=weights))


def _dfer_clip(config: DferClipConfig, emotions: Emotions, *, num_frames: int, seed: int, weights: bool) -> DferClip:
    towers = both_towers(config.towers, seed=seed, weights=weights)
    with _stream(seed, config.name):
        return DferClip(config, towers=towers, emotions=emotions, num_frames=num_frames)


@contextmanager
def _stream(seed: int, part: str) -> Iterator[None]:
    """Use a separate random stream for one part, and restore the caller's afterwards. Sets only the CPU's generator:
    `torch.manual_seed` would also set those of the GPUs."""
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
        yield
