"""Write text that may hold what UTF-8 lacks, such as half of a pair of surrogates that a JSON file escapes."""

from pathlib import Path

from dfer.storage import Folder


def write_text(folder: Folder, name: str | Path, text: str) -> None:
    """Write a file as UTF-8, atomically; what UTF-8 lacks is written in its escaped form.

    Raises:
        StorageError: it cannot be written.
    """
    folder.write(name, text.encode("utf-8", "backslashreplace"))
