"""Files on disks of this machine: written whole, with the mode that the umask gives; who owns what cannot be used."""

import errno
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write a file at, which takes the place of `path` when the block ends well. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share the disk have processes of the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}.tmp")
    try:
        # Libraries that write a file may give it a mode of their own, as safetensors does: 0600 whatever the umask.
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError where files cannot be written into a folder, which need not exist yet. Writes nothing."""
    place = _first_existing(folder)
    if not permitted(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


def user_name(uid: int) -> str:
    """The user's name, or `uid 12345` where the machine knows none, as in many containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def denial(path: Path) -> tuple[str, str] | None:
    """What denies access to a path, and what to do; None where owners and modes do not tell it.

    Call it after a PermissionError: the first folder on the way that may not be entered, else the file itself where it
    may not be read or written, else the folder that it is in.
    """
    place = _denying(path.absolute())
    if place is None:
        return None
    status = place.stat()
    owner, me = user_name(status.st_uid), user_name(os.geteuid())
    got = f"no permission ({place} belongs to {owner}, mode {stat.S_IMODE(status.st_mode):04o}; this user is {me})"
    if status.st_uid == os.geteuid():
        return got, "Give yourself the right with chmod"
    return got, f"Ask {owner} for the right, or use a path of your own"


def _denying(path: Path) -> Path | None:
    for folder in reversed(path.parents):
        if not _exists(folder):
            break
        if not permitted(folder, os.X_OK):
            return folder
    places = (path, _first_existing(path.parent))
    return next((place for place in places if _exists(place) and not permitted(place, os.R_OK | os.W_OK)), None)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _first_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists. Raises PermissionError."""
    return next(place for place in (path, *path.parents) if _exists(place))


def permitted(path: Path, mode: int) -> bool:
    """Whether this process may do with an existing path what `mode` of os.access says."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _sync(path: Path) -> None:
    """Have the disk hold what was written; for a folder, its names, so that the rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_denied(error: BaseException) -> bool:
    """Whether it says that this user may not do it, or that the file system is read-only."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def is_full(error: BaseException) -> bool:
    """Whether it says that there is no space left; safetensors tells it in the text alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "StorageFull" in str(error) or "os error 28" in str(error)
