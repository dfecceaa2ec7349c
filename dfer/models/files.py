"""Find the files that a model's configuration names. Imports no torch, so that launchers can check them.

`pretrained_tags.json` records the names under which open_clip offers weights; a test compares it with open_clip.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path

from dfer.errors import CheckpointError, message
from dfer.local_files import sha256_of
from dfer.models.config import ContrastiveConfig, ModelConfig, TextConfig, ZeroShotConfig
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.texts import is_file

QUICK_NAME = "-quickgelu"
"""Suffix of open_clip's names of architectures with OpenAI's activation."""
SHA256 = "sha256"
"""Key of a file's SHA-256 in its identity."""


def file_id(path: str) -> dict[str, str]:
    """Identify a file by its name and SHA-256, or only by its name if the file is missing."""
    found = Path(path)
    return {"name": found.name, SHA256: sha256_of(found)} if found.is_file() else {"name": found.name}


def files(config: ModelConfig, *, weights: bool = True) -> dict[str, str]:
    """Return the paths of the files that `build` reads, and of the run folder to start from, by their key below
    `model`. open_clip's names and tags are not files."""
    found = _always_read(config)
    if not weights:
        return found
    if config.start is not None:
        return {**found, "start": config.start}
    if isinstance(config, CnnConfig):
        return found
    arch, pretrained = config.towers.arch, config.towers.pretrained
    return found if pretrained is None or is_tag(arch, pretrained) else {**found, "towers.pretrained": pretrained}


def _always_read(config: ModelConfig) -> dict[str, str]:
    """Return the files that are read whether or not weights are."""
    arch = None if isinstance(config, CnnConfig) else config.towers.arch
    text = text_of(config)
    found = {"towers.arch": arch} if arch is not None and arch.endswith(".json") else {}
    if text is not None and is_file(text):
        found["text"] = text
    if isinstance(config, ZeroShotConfig) and config.head is not None:
        found["head"] = config.head
    return found


def text_of(config: ModelConfig) -> str | None:
    """Return the kind or file of the class texts; None for a method without class texts."""
    return config.text if isinstance(config, TextConfig) else None


def check_files(config: ModelConfig, *, weights: bool = True) -> None:
    """Raise CheckpointError when a file that `build` will read, or the run folder to start from, does not exist."""
    for key, path in files(config, weights=weights).items():
        if key == "start":
            if "://" not in path and not Path(path).is_dir():
                expected, do = "the run folder of a fold, or a saved model", "Correct the path."
                raise CheckpointError(message(f"model.{key}={path}", expected=expected, got="no such folder", do=do))
        elif Path(path).is_dir():
            from dfer.models.foreign.weights import check_file  # imported here: it imports torch

            check_file(Path(path), f"model.{key}={path}")
        elif not Path(path).is_file():
            do = "Correct the path."
            if key not in ("text", "head"):
                do = "Correct the path, or give one of open_clip's names for towers."
            expected = "a local file"
            raise CheckpointError(message(f"model.{key}={path}", expected=expected, got="no such file", do=do))


def trains_nothing(config: ModelConfig) -> bool:
    """Whether a method has nothing to train, so that it is only evaluated."""
    return isinstance(config, ZeroShotConfig)


def takes_targets(config: ModelConfig) -> bool:
    """Whether a method's loss aims at classes, so that there are targets to soften and to mix."""
    return not isinstance(config, ContrastiveConfig | ZeroShotConfig)


def source(config: ModelConfig) -> str:
    """Return where the initial weights come from."""
    towers = None if isinstance(config, CnnConfig) else config.towers.pretrained
    return config.start or towers or "random weights"


def is_tag(arch: str, pretrained: str) -> bool:
    """Whether open_clip offers weights of this name for `arch` or its twin; otherwise the name is a file's."""
    return not Path(pretrained).is_file() and any(pretrained in tags().get(name, ()) for name in (arch, twin(arch)))


def twin(arch: str) -> str:
    """Return open_clip's name of the same architecture with the other activation."""
    return arch.removesuffix(QUICK_NAME) if arch.endswith(QUICK_NAME) else arch + QUICK_NAME


@cache
def tags() -> dict[str, list[str]]:
    """Return the names of open_clip's weights by architecture."""
    text = resources.files("dfer.models").joinpath("pretrained_tags.json").read_text(encoding="utf-8")
    found: dict[str, list[str]] = json.loads(text)
    return found
