"""Errors that a user can fix. Each has an exit code; the command line prints its message without a traceback.

A message says where the error happened, what was expected, what was found and what to do; `message` formats the four.
"""

import difflib
import re
from collections.abc import Iterable

MAX_CHARACTERS = 4000
"""Longest message. A message may quote a file, which may be of any length."""


class DferError(Exception):
    """Base of all errors shown to users as a plain message.

    Strips URL credentials from the text, and escapes control characters, which could harm a terminal.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(_printable(without_secrets(_shortened(text))))


class UsageError(DferError):
    """Wrong arguments or a wrong configuration."""

    exit_code = 2


class DataError(DferError):
    """Raw data, shards or images do not have the expected form or content."""

    exit_code = 3


class NonFiniteLossError(DferError):
    """The loss became NaN or infinite; no parameter was updated with it."""

    exit_code = 4


class CheckpointError(DferError):
    """A checkpoint or run folder that cannot be used."""

    exit_code = 5


class StorageError(DferError):
    """Reading or writing failed: disk full, no permission, store unreachable."""

    exit_code = 6


class DeniedError(StorageError):
    """This user has no permission to read or write a file; the file itself may be intact."""


class ProcessError(DferError):
    """Another process of the job stopped, so this one cannot continue."""

    exit_code = 7


class FencedError(DferError):
    """A newer copy of the job took over the run folder (fencing); this one has written nothing since."""

    exit_code = 8


class StoppedError(DferError):
    """Stopped on request, by a signal or a scheduler; everything is saved and the same command resumes."""

    exit_code = 9


class GpuMemoryError(DferError):
    """This configuration does not fit into a GPU's memory; a retry would fail again."""

    exit_code = 10


def message(where: object, *, expected: str, got: str, do: str) -> str:
    """Format a message as one line: where, what was expected, what was found, what to do."""
    return f"{where}: expected {expected}, got {got}. {do}"


def without_secrets(text: str) -> str:
    """Remove credentials from the URLs in a text: `user:password@`, and queries, which may be signatures."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"),]+?(?=[.:;]?(?:[\s'\"),]|$))", r"\1", text)


def _shortened(text: str) -> str:
    """Cut the middle out of a long text. A URL that is cut is removed whole, since the rest may be credentials."""
    if len(text) <= MAX_CHARACTERS:
        return text
    start, end = text[: MAX_CHARACTERS // 2], text[-MAX_CHARACTERS // 2 :]
    start, end = re.sub(r"://\S*\Z", "://", start), re.sub(r"\A\S+", "", end)
    return f"{start}[{len(text) - len(start) - len(end)} characters left out]{end}"


def _printable(text: str) -> str:
    """Escape control characters, lone surrogates and other unprintable characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the closest known words, or lists all of them when none is close."""
    known, word = sorted(known), word[:100]
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {', '.join(known)}."
