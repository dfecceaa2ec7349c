"""CLIP in the layouts of OpenAI, open_clip and transformers, as one file in open_clip's layout."""

from pathlib import Path
from typing import Any

from dfer.errors import CheckpointError, message
from dfer.models.config import TowersConfig
from dfer.models.foreign import transformers
from dfer.models.foreign.architecture import activation_beside
from dfer.models.foreign.layouts import foreign_names
from dfer.models.foreign.weights import Weights
from dfer.models.towers import (
    ACTIVATIONS,
    MEAN,
    NOT_NEEDED,
    OPENAI_ONLY,
    STD,
    built_clip,
    check_activation,
    clip_settings,
    load_clip,
)

KEPT = ("logit_scale", "logit_bias")
"""Of the names that a method does not need, those that open_clip's own models have."""


def as_open_clip(weights: Weights, path: Path, *, arch: str) -> tuple[Weights, dict[str, Any], str]:
    """Translate a CLIP to open_clip's names, and check it against an architecture.

    Returns the weights in fp32, open_clip's settings of the architecture, and in words how the activation is known.

    Raises:
        CheckpointError: the file holds another model. ConfigProblem: the weights are known to be trained with the other
            activation, or the architecture is unknown.
    """
    settings = clip_settings(TowersConfig(arch=arch))
    quick: bool = settings["quick_gelu"]
    said = _check_activation(weights, path, arch=arch, quick=quick)
    if transformers.is_transformers(weights):
        weights = transformers.ours(weights, path)
    elif found := foreign_names(weights):
        got, do = found
        raise CheckpointError(message(path, expected="a CLIP with both towers", got=got, do=do))
    clip = built_clip(settings, arch)
    load_clip(clip, weights, where=path)
    own = {name: value for name, value in clip.state_dict().items() if name not in NOT_NEEDED}
    own |= {name: weights[name].float() for name in KEPT if name in weights}
    return own, settings, said


def _check_activation(weights: Weights, path: Path, *, arch: str, quick: bool) -> str:
    """Return in words how the activation is known. Raises ConfigProblem if it is the other one."""
    known: tuple[object, bool] | None = None
    if any(name in weights for name in OPENAI_ONLY):
        known = "OpenAI's own file", True
    elif transformers.is_transformers(weights):
        known = transformers.activation(path)
    else:
        known = activation_beside(path)
    if known is None:
        return f"{ACTIVATIONS[quick]}, as --arch {arch} has it; the file cannot confirm it"
    check_activation(arch, quick=quick, trained=known[1], where=f"{path} ({known[0]})")
    return f"{ACTIVATIONS[quick]}, as {known[0]} says"


def open_clip_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of open_clip_config.json: the architecture, and how CLIP's pictures are normalised."""
    model = {name: settings[name] for name in ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")}
    model["vision_cfg"] = {k: v for k, v in model["vision_cfg"].items() if k != "timm_model_pretrained"}
    return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD}}
