"""Errors a user can mend. Each carries its exit code; the command line prints the message without a traceback.

A message says where it happened, what was expected, what came and what to do; `message` puts the four in one shape.
"""

import difflib
import re
from collections.abc import Iterable


class DferError(Exception):
    """Base of all errors shown to users as a plain message, from which the credentials of URLs are taken out."""

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


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


class ProcessError(DferError):
    """Another process of the job stopped, so that this one cannot go on."""

    exit_code = 7


class FencedError(DferError):
    """A newer copy of the job has taken the run folder over; this one wrote nothing more."""

    exit_code = 8


class StoppedError(DferError):
    """Stopped on request, by a signal or a scheduler; all is saved and the same command continues."""

    exit_code = 9


def message(where: object, *, expected: str, got: str, do: str) -> str:
    """One line in the house's shape: where, what was expected, what came, what to do."""
    return f"{where}: expected {expected}, got {got}. {do}"


def without_secrets(text: str) -> str:
    """The text without the credentials of the URLs in it: `user:password@`, and queries, which may be signatures."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"),]+?(?=[.:;]?(?:[\s'\"),]|$))", r"\1", text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest known words as a sentence, or the list of all of them when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {', '.join(known)}."
