"""Build the teacher that a configuration names."""

from collections.abc import Sequence

import torch

from dfer.errors import CheckpointError, DataError, message
from dfer.storage import Folder
from dfer.teacher.config import TeacherConfig, TextTeacherConfig, WordsTeacherConfig
from dfer.teacher.files import check
from dfer.teacher.ready import check_packages
from dfer.teacher.teacher import Teacher

COMMIT = "teacher_commit.txt"


def build_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build a teacher on a device; its parameters are frozen.

    Raises:
        CheckpointError: as `dfer.teacher.files.check`, or the weights do not fit.
        UsageError: a package is missing.
    """
    check_packages(config)
    check(config)
    if isinstance(config, WordsTeacherConfig):
        from dfer.teacher.words import WordsTeacher

        return WordsTeacher(config)
    if isinstance(config, TextTeacherConfig):
        from dfer.teacher.text import TextTeacher

        return TextTeacher(config, device)
    from dfer.teacher.blip2 import BlipTeacher

    return BlipTeacher(config, device)


def agree_commit(home: Folder, teacher: Teacher) -> None:
    """Record beside features which commit of a hub their teacher was loaded from, so that a branch that moved between
    two parts, or before a resume, does not mix two teachers.

    Raises:
        CheckpointError: features there are of another commit. StorageError.
    """
    if teacher.commit is None:
        return
    if home.text(COMMIT) is None:
        home.write(COMMIT, f"{teacher.commit}\n".encode())
    before = (home.text(COMMIT) or "").strip()
    if before != teacher.commit:
        do = f"Set pairs.teacher.revision to {before[:64]} or {teacher.commit}, and another run=FOLDER."
        expected = f"the teacher of the first part, commit {before[:64]}"
        raise CheckpointError(message(home, expected=expected, got=f"commit {teacher.commit}", do=do))


def refuse_bare(where: object, keys: Sequence[str], texts: Sequence[str | None]) -> None:
    """Raise DataError if pictures have no description, for a teacher that reads nothing else."""
    bare = [key for key, text in zip(keys, texts, strict=True) if not text]
    if bare:
        expected, got = f"a description of each of {len(keys)} pictures", f"{len(bare)} without ({', '.join(bare[:3])})"
        do = "Build the shards with captions, write descriptions.csv, or choose a teacher that sees the pictures."
        raise DataError(message(where, expected=expected, got=got, do=do))
