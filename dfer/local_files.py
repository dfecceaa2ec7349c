"""Local files: write them atomically with the umask's mode, hash them, and explain denied access by owner and mode."""

import errno
import hashlib
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces `path` when the block ends without an error. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share the disk have processes of the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}.tmp")
    try:
        # A library may set the file's mode itself and ignore the umask, as safetensors does (0600).
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError when files cannot be written into a folder, which need not exist yet. Writes nothing."""
    place = _first_existing(folder)
    if not permitted(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


def user_name(uid: int) -> str:
    """Return the user's name, or `uid 12345` if the machine has no name for it, as in many containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def denial(path: Path) -> tuple[str, str] | None:
    """Explain why access to a path is denied: (what was found, what to do). None if owners and modes do not show it.

    Call it after a PermissionError. It names the first folder on the path that may not be entered, else the file if it
    may not be read or written, else the folder that holds it.
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
    """Return the path if it exists, else the nearest folder above it that does. Raises PermissionError."""
    return next(place for place in (path, *path.parents) if _exists(place))


def permitted(path: Path, mode: int) -> bool:
    """Whether this process has access `mode` (as in os.access) to an existing path."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def sync(path: Path) -> None:
    """Flush a file to the disk; for a folder, its entries, so that a rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_denied(error: BaseException) -> bool:
    """Whether an error means missing permission or a read-only file system."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def is_full(error: BaseException) -> bool:
    """Whether an error means that no space is left; safetensors shows it only in the text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "StorageFull" in str(error) or "os error 28" in str(error)
