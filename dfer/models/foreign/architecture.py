"""Read architectures in open_clip's JSON layout from untrusted files: only known keys, and bounded sizes.

open_clip builds anything such a file describes: any number of layers, or an image tower named on a hub. Here the limits
are those of the largest published CLIPs.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dfer.config import ConfigProblem
from dfer.errors import message

MAX_BYTES = 64 * 1024
MAX_WEIGHTS = 2**28
"""Most layers times width squared. The largest published CLIPs have half of that, this project's own a hundredth."""
MAX_PATCHES = 64
"""Most patches along a side."""
LIMITS: dict[str, float] = {
    "embed_dim": 4096,
    "layers": 64,
    "width": 4096,
    "heads": 128,
    "head_width": 256,
    "mlp_ratio": 8.0,
    "patch_size": 64,
    "image_size": 1024,
    "context_length": 256,
    "vocab_size": 2**17,
    "patch_dropout": 1.0,
    "ls_init_value": 1.0,
    "timm_drop": 1.0,
    "timm_drop_path": 1.0,
    "attn_pooler_queries": 1024,
    "attn_pooler_heads": 128,
    "pad_id": 2**17,
    "eos_id": 2**17,
}
BESIDE = "open_clip_config.json"
"""File that open_clip writes beside weights on a hub: the architecture as `model_cfg`, and the preprocessing."""
_DO = "Check towers.arch; see dfer/models/configs for examples."
_BESIDE_DO = "Download it again from where the weights came, or take it away; then the file's activation is unknown."
_WORD = re.compile(r"[A-Za-z0-9_]{0,40}")


def read_architecture(path: Path, *, vision: Collection[str], text: Collection[str]) -> dict[str, Any]:
    """Read embed_dim, quick_gelu, vision_cfg and text_cfg from a file. vision, text: the keys that open_clip accepts.

    Raises:
        ConfigProblem: the file does not exist, or holds no such architecture.
    """
    settings = _parsed(path)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in settings]
    if missing:
        raise _problem(path, expected="embed_dim, vision_cfg and text_cfg", got=f"no {', no '.join(missing)}")
    _check(path, "embed_dim", settings["embed_dim"])
    if not isinstance(settings.get("quick_gelu", False), bool):
        raise _problem(path, expected="quick_gelu true or false", got="something else")
    for part, known in (("vision_cfg", vision), ("text_cfg", text)):
        if not isinstance(settings[part], Mapping):
            raise _problem(path, expected=f"a mapping as {part}", got=type(settings[part]).__name__)
        for key, value in settings[part].items():
            if key not in known:
                raise _problem(path, expected=f"keys of open_clip in {part}", got=repr(key[:40]))
            _check(path, f"{part}.{key}", value)
        _check_size(path, part, settings[part])
    return settings


def activation_beside(weights: Path) -> tuple[Path, bool] | None:
    """Find the architecture file beside a file of weights. Returns its path, and whether the architecture has OpenAI's
    quick GELU; None when there is no such file.

    Raises:
        ConfigProblem: the file has another form.
    """
    path = weights.parent / BESIDE
    if not path.exists():
        return None
    settings = _parsed(path, do=_BESIDE_DO)
    model = settings.get("model_cfg")
    quick = model.get("quick_gelu", False) if isinstance(model, Mapping) else None
    if not isinstance(quick, bool):
        expected = "a model_cfg with quick_gelu true, false or left out"
        raise ConfigProblem(message(path, expected=expected, got="something else", do=_BESIDE_DO))
    return path, quick


def normalisation_beside(weights: Path) -> tuple[object, object] | None:
    """Find mean and deviation of the training's pictures beside a file of weights, as they stand there; None when there
    is no such file, or it does not say them. Raises as `activation_beside`."""
    path = weights.parent / BESIDE
    found = _parsed(path, do=_BESIDE_DO).get("preprocess_cfg") if weights.is_file() and path.exists() else None
    if not isinstance(found, Mapping) or "mean" not in found or "std" not in found:
        return None
    return found["mean"], found["std"]


def transformers_activation(path: Path) -> bool:
    """Whether both towers of a CLIP have OpenAI's quick GELU, by the config.json of transformers.

    Raises:
        ConfigProblem: the file has another form, or the towers differ.
    """
    settings = _parsed(path, do=_BESIDE_DO)
    parts = [settings.get(part) or {} for part in ("text_config", "vision_config")]
    words = [part.get("hidden_act", "quick_gelu") if isinstance(part, Mapping) else None for part in parts]
    if words[0] != words[1] or words[0] not in ("quick_gelu", "gelu"):
        expected = "the hidden_act quick_gelu or gelu, the same in text_config and vision_config"
        got = f"{str(words[0])[:40]} and {str(words[1])[:40]}"
        raise ConfigProblem(message(path, expected=expected, got=got, do=_BESIDE_DO))
    return bool(words[0] == "quick_gelu")


def _parsed(path: Path, do: str = _DO) -> dict[str, Any]:
    expected = "an architecture in open_clip's JSON layout"
    try:
        if not path.is_file():
            raise OSError("no such file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        settings = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        got = f"no readable file ({str(error)[:200]})"
        raise ConfigProblem(message(path, expected=expected, got=got, do=do)) from error
    if not isinstance(settings, dict):
        raise ConfigProblem(message(path, expected=expected, got=type(settings).__name__, do=do))
    return settings


def _check(path: Path, name: str, value: Any) -> None:
    """Raise ConfigProblem unless the value is allowed for the key `name`."""
    limit = LIMITS.get(name.rpartition(".")[2])
    if limit is None:  # switches, and names of open_clip's variants
        if not isinstance(value, bool | None) and not (isinstance(value, str) and _WORD.fullmatch(value)):
            raise _problem(path, expected=f"true, false, null or a plain word as {name}", got=type(value).__name__)
        return
    several = name == "vision_cfg.layers" and isinstance(value, list) and len(value) == 4  # the stages of a ResNet
    for number in value if several else [value]:
        whole = isinstance(limit, int)
        fits = type(number) is int and 1 - (name.endswith("_id")) <= number <= limit
        if not whole:
            fits = number is None or (type(number) in (int, float) and 0 <= number <= limit)
        if not fits:
            kind = "a whole number from 1" if whole else "a number from 0"
            raise _problem(
                path,
                expected=f"{kind} to {limit} as {name}",
                got=type(value).__name__ if whole and type(number) is not int else str(number)[:40],
            )


def _check_size(path: Path, part: str, settings: Mapping[str, Any]) -> None:
    layers, width = settings.get("layers", 12), settings.get("width", 768)
    count = sum(layers) if isinstance(layers, list) else layers
    weights = count * width**2
    if weights > MAX_WEIGHTS:
        raise _problem(path, expected=f"layers x width² up to {MAX_WEIGHTS:,} in {part}", got=f"{weights:,}")
    patches = settings.get("image_size", 224) / settings.get("patch_size", 16)
    if part == "vision_cfg" and not isinstance(layers, list) and math.floor(patches) > MAX_PATCHES:
        raise _problem(path, expected=f"up to {MAX_PATCHES} patches along a side", got=f"{patches:.0f}")


def _problem(path: Path, *, expected: str, got: str) -> ConfigProblem:
    return ConfigProblem(message(path, expected=expected, got=got, do=_DO))
