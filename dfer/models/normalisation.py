"""Refuse CLIP's normalisation for weights that were trained with another."""

from pathlib import Path

from dfer.config import ConfigProblem
from dfer.errors import message
from dfer.models.config_towers import TowersConfig
from dfer.models.foreign.architecture import normalisation_beside
from dfer.models.towers import MEAN, STD, listed_normalisation


def refuse_other_normalisation(config: TowersConfig, *, model: str = "model") -> None:
    """Raise ConfigProblem if the weights were trained on pictures normalised by other values than OpenAI's.

    `clip_normalisation` gives OpenAI's alone. The values are known of tags, and of a file with open_clip's
    configuration beside it. model: the key above `clip_normalisation`, for the message.
    """
    if config.pretrained is None:
        return
    found = listed_normalisation(config.arch, config.pretrained) or normalisation_beside(Path(config.pretrained))
    if found is None or (_alike(found[0], MEAN) and _alike(found[1], STD)):
        return
    given = ", ".join(str(value)[:60] for value in found)
    do = f"Set {model}.clip_normalisation=false, or take other weights."
    if _alike(found[0], (0.0,) * 3) and _alike(found[1], (1.0,) * 3):
        do = f"Set {model}.clip_normalisation=false: these weights take frames in 0..1."
    where, got = f"{model}.clip_normalisation=true", f"{model}.towers.pretrained={config.pretrained} with {given}"
    expected = f"weights trained with CLIP's mean and deviation {MEAN}, {STD}"
    raise ConfigProblem(message(where, expected=expected, got=got, do=do))


def _alike(value: object, own: tuple[float, ...]) -> bool:
    """Whether a value of a file is these numbers, one a colour."""
    if not isinstance(value, list | tuple) or len(value) != len(own):
        return False
    return all(isinstance(x, int | float) and abs(x - y) < 1e-4 for x, y in zip(value, own, strict=True))
