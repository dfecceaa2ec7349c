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


def refuse_bare(where: object, keys: Sequence[str], texts: Sequence[str | None]) -> None:
    """Raise DataError if pictures have no description, for a teacher that reads nothing else."""
    bare = [key for key, text in zip(keys, texts, strict=True) if not text]
    if bare:
        expected, got = f"a description of each of {len(keys)} pictures", f"{len(bare)} without ({', '.join(bare[:3])})"
        do = "Build the shards with captions, write descriptions.csv, or choose a teacher that sees the pictures."
        raise DataError(message(where, expected=expected, got=got, do=do))
