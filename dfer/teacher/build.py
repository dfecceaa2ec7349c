"""Build the teacher that a configuration names."""

from collections.abc import Sequence

import torch

from dfer.errors import DataError, UsageError, message
from dfer.teacher.config import TeacherConfig, TextTeacherConfig, WordsTeacherConfig
from dfer.teacher.files import check
from dfer.teacher.teacher import Teacher


def build_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build a teacher on a device; its parameters are frozen.

    Raises:
        CheckpointError: as `dfer.teacher.files.check`, or the weights do not fit.
        UsageError: a package is missing.
    """
    check(config)
    if isinstance(config, WordsTeacherConfig):
        from dfer.teacher.words import WordsTeacher

        return WordsTeacher(config)
    _require_transformers(config.name)
    if isinstance(config, TextTeacherConfig):
        from dfer.teacher.text import TextTeacher

        return TextTeacher(config, device)
    from dfer.teacher.blip2 import BlipTeacher

    return BlipTeacher(config, device)


def _require_transformers(name: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        do = "Install it: pip install 'dfer[teacher]'."
        got = "none"
        raise UsageError(message(f"teacher.name={name}", expected="transformers", got=got, do=do)) from None


def described(teacher: Teacher, keys: Sequence[str], texts: Sequence[str | None]) -> list[str]:
    """Return the descriptions of pictures; for a teacher that reads none, empty ones.

    Raises:
        DataError: the teacher reads descriptions, and a picture has none.
    """
    if not teacher.reads_text:
        return [""] * len(keys)
    bare = [key for key, text in zip(keys, texts, strict=True) if not text]
    if bare:
        expected, got = f"a description of each of {len(keys)} pictures", f"{len(bare)} without ({', '.join(bare[:3])})"
        do = "Build the shards with captions, or choose a teacher that sees the pictures."
        raise DataError(message("teacher", expected=expected, got=got, do=do))
    return [text or "" for text in texts]
