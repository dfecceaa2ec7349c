"""Acting as a user who owns nothing, for tests of rights; only root can, and the tests skip elsewhere."""

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 54_321
"""A user without a name, as in many containers."""


@contextmanager
def nobody(uid: int = NOBODY) -> Iterator[None]:
    """Be another user, for this process's rights on files, until the block ends."""
    if os.geteuid() != 0:
        pytest.skip("acting as another user needs root")
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setegid(uid)
        os.seteuid(uid)
    except OSError as error:
        _root_again(groups)
        pytest.skip(f"this root may not act as another user ({error.strerror})")
    try:
        yield
    finally:
        _root_again(groups)


def _root_again(groups: list[int]) -> None:
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)
    importlib.invalidate_caches()  # an import that the other user tried may have found a folder closed


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A temporary folder that every user can look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="dfer-test-all-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        closed = next((parent for parent in folder.parents if not parent.stat().st_mode & 0o001), None)
        if closed:
            pytest.skip(f"other users cannot look into {closed}")
        yield folder
