"""Errors a user can mend. Each carries its exit code; the command line prints the message without a traceback.

A message says where it happened, what was expected, what came and what to do; `message` puts the four in one shape.
"""

import difflib
import re
from collections.abc import Iterable

MAX_CHARACTERS = 4000
"""Longest message; a file that is quoted in one may be of any length."""


class DferError(Exception):
    """Base of all errors shown to users as a plain message.

    Out of the text are taken the credentials of URLs, and what a file of anybody's could do to a terminal.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(_printable(without_secrets(_shortened(text))))


class UsageError(DferError):
    """Wrong arguments or a wrong configuration."""

    exit_code = 2


class DataError(DferError):
    """Raw data, shards or images that are not what they should be."""

    exit_code = 3


class NonFiniteLossError(DferError):
    """The loss became NaN or infinite; nothing was updated with it."""

    exit_code = 4


class CheckpointError(DferError):
    """A checkpoint or run folder that cannot be used."""

    exit_code = 5


class StorageError(DferError):
    """Reading or writing failed: disk full, no permission, store unreachable."""

    exit_code = 6


class DeniedError(StorageError):
    """This user may not read or write a file; nothing is wrong with the file."""


class ProcessError(DferError):
    """Another process of the job stopped, so that this one cannot go on."""

    exit_code = 7


class FencedError(DferError):
    """A newer copy of the job has taken the run folder over; this one wrote nothing more."""

    exit_code = 8


class StoppedError(DferError):
    """Stopped on request, by a signal or a scheduler; all is saved and the same command continues."""

    exit_code = 9


class GpuMemoryError(DferError):
    """A GPU's memory does not hold this configuration; trying again does not mend it."""

    exit_code = 10


def message(where: object, *, expected: str, got: str, do: str) -> str:
    """One line in the house's shape: where, what was expected, what came, what to do."""
    return f"{where}: expected {expected}, got {got}. {do}"


def without_secrets(text: str) -> str:
    """The text without the credentials of the URLs in it: `user:password@`, and queries, which may be signatures."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"),]+?(?=[.:;]?(?:[\s'\"),]|$))", r"\1", text)


def _shortened(text: str) -> str:
    """The text without its middle when it is long; nothing of a URL that is cut stays, since it may be credentials."""
    if len(text) <= MAX_CHARACTERS:
        return text
    start, end = text[: MAX_CHARACTERS // 2], text[-MAX_CHARACTERS // 2 :]
    start, end = re.sub(r"://\S*\Z", "://", start), re.sub(r"\A\S+", "", end)
    return f"{start}[{len(text) - len(start) - len(end)} characters left out]{end}"


def _printable(text: str) -> str:
    """The text with control characters, lone surrogates and the like escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest known words as a sentence, or the list of all of them when none is close."""
    known, word = sorted(known), word[:100]
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {', '.join(known)}."
