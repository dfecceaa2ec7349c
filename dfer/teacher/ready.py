"""Check before loading a teacher whether it can be loaded: packages, files, picture size. Imports no torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from dfer.errors import CheckpointError, UsageError, message
from dfer.teacher.config import READS_TEXT, TeacherConfig, WordsTeacherConfig
from dfer.teacher.files import check, check_files, folder_of, is_offline, settings_in, snapshot_of

INSTALL = "Install it in dfer's environment: pip install 'dfer[teacher]'"
SIDE = 224
"""Pixels of BLIP-2's and InstructBLIP's pictures where their configuration says nothing."""


def check_ready(config: TeacherConfig, *, size: int) -> list[str]:
    """Check all that is known before a teacher is loaded. size: pixels of the pictures that it will see.

    Returns:
        What the user should know, one line each: that the model will be downloaded.

    Raises:
        CheckpointError: as `check`; or downloads are off, and the hub's cache does not hold the model.
        UsageError: a package is missing, or the teacher takes pictures of another size.
    """
    check_packages(config)
    check(config)
    if isinstance(config, WordsTeacherConfig):
        return []
    folder = folder_of(config.model)
    place = folder or snapshot_of(config.model, config.revision)
    if place is not None:
        _check_size(config, settings_in(place, config), size)
    return [] if folder is not None else _of_hub(config)


def check_packages(config: TeacherConfig) -> None:
    """Raise UsageError if packages are missing that a teacher needs."""
    if isinstance(config, WordsTeacherConfig):
        return
    if find_spec("transformers") is None:
        where = f"teacher.name={config.name}"
        raise UsageError(message(where, expected="transformers", got="none", do=f"{INSTALL}."))
    if getattr(config, "devices", "one") == "all" and find_spec("accelerate") is None:
        do = f"{INSTALL}; or set teacher.devices=one."
        raise UsageError(message("teacher.devices=all", expected="accelerate", got="none", do=do))


def _check_size(config: TeacherConfig, settings: Mapping[str, Any], size: int) -> None:
    vision = settings.get("vision_config")
    side = vision.get("image_size", SIDE) if isinstance(vision, dict) else SIDE
    if not isinstance(config, READS_TEXT) and side != size:
        do = f"Set pairs.size={side}, or choose another teacher."
        expected = f"{side}, the pixels that teacher.name={config.name} takes"
        raise UsageError(message("pairs.size", expected=expected, got=str(size), do=do))


def _of_hub(config: TeacherConfig) -> list[str]:
    """Check a model that is no folder: it lies in the hub's cache, or will be downloaded."""
    assert not isinstance(config, WordsTeacherConfig), "it has no model"
    place = snapshot_of(config.model, config.revision)
    named = f"{config.model}, revision {config.revision or 'main'}"
    if place is None and is_offline():
        do = "Correct teacher.model, or download the model where HF_HUB_OFFLINE is not set."
        expected, got = "a folder, or a model in the cache of the Hugging Face hub", "neither"
        raise CheckpointError(message(f"teacher.model={named}", expected=expected, got=got, do=do))
    try:
        if place is not None:
            check_files(place, config)
            return []
    except CheckpointError:
        if is_offline():
            raise
    return [f"teacher.model: there is no folder {config.model}; {named} will be downloaded from the Hugging Face hub"]
