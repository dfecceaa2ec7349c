"""The part that the three command lines share: parsers of commands, and errors turned into messages and exit codes."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from dfer.errors import DferError, StorageError, UsageError, message
from dfer.local_files import is_denied
from dfer.storage import storage_error
from dfer.surroundings import accept_any_encoding

INTERRUPTED = 130
PIPE_CLOSED = 141


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    examples: str,
    run: Callable[..., Any],
) -> argparse.ArgumentParser:
    """Add a command with its help, its examples (one per line) and the function that runs it (`parsed.command`)."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def add_configs(sub: argparse.ArgumentParser, what: str = "") -> None:
    """Arguments of a command that takes configurations and overrides; `parse` puts them into `configs` and `overrides`.

    what: else they may be.
    """
    text = "YAML files, or names of those that come with dfer; several are joined, such as methods/X sets/Y"
    sub.add_argument("configs", nargs="+", metavar="CONFIG", help=f"{text}{what}")
    sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the files'")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of a command. Those of `add_configs`, and the list `words`, may stand behind options too, which
    argparse does not take by itself; an override is told from a file by its `=`."""
    accept_any_encoding()  # before a help text is printed
    args, rest = parser.parse_known_args(argv)
    takes_configs, takes_words = hasattr(args, "configs"), hasattr(args, "words")
    stray = [text for text in rest if text.startswith("-") or not (takes_configs or takes_words)]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if takes_words:
        args.words = [*args.words, *rest]
    if takes_configs:
        words = [*args.configs, *args.overrides, *rest]
        args.configs = [word for word in words if not is_override(word)]
        args.overrides = [word for word in words if is_override(word)]
        if not args.configs:
            parser.error("the following arguments are required: CONFIG")
    return args


def is_override(word: str) -> bool:
    """Whether a word is `a.b=c`. A `=` behind a slash belongs to a path: runs/lr=0.1/config.yaml."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def names(text: str) -> list[str]:
    """Parse an argument such as `fold_1,fold_2`; used as an argparse type."""
    found = text.split(",")
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names such as fold_1,fold_2, got {text!r}")
    return found


def positive(text: str) -> int:
    """Parse a whole number of at least 1; used as an argparse type."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError("expected a number of at least 1, got 0")
    return number


def not_negative(text: str) -> int:
    """Parse a whole number of at least 0; used as an argparse type."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def hide_notices() -> None:
    """Hide warnings that libraries address to developers; this package prints its own warnings as messages."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def exit_code(
    work: Callable[[], int | None], *, interrupted: str, prints_usage_errors: Callable[[], bool] = lambda: True
) -> int:
    """Run a command and return its exit code. An error that a user can fix is printed as one line on stderr.

    interrupted: text to print after Ctrl-C. prints_usage_errors: whether this process prints usage errors; it always
    prints other errors.
    """
    try:
        code = work()
        sys.stdout.flush()
    except DferError as error:
        return _fail(error, prints_usage_errors)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail again
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file: a bug of this package
        return _fail(_about_file(error), prints_usage_errors)
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return code or 0


def _fail(error: DferError, prints_usage_errors: Callable[[], bool]) -> int:
    if prints_usage_errors() or not isinstance(error, UsageError):
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _about_file(error: OSError) -> StorageError:
    """Turn an error of the system about a file into a StorageError with a message."""
    if error.filename and is_denied(error):
        return storage_error(error.filename, error, doing="to read or write it", then="; then repeat the command.")
    where, expected, got = error.filename or "a file", "to read or write it", str(error.strerror)
    do = "Correct the path or its permissions, or free space; then repeat the command."
    return StorageError(message(where, expected=expected, got=got, do=do))
