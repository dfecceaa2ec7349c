"""Read split files as rows of cells separated by commas, semicolons, tabs or blanks, quoted or not."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from dfer.errors import DataError, message
from shards.sources.layout import read_small

MAX_BYTES = 4 * 2**20
"""Largest split file that is read. Those of the three data sets have up to one megabyte."""
MAX_LINE = 2**16
"""Most letters of a line of a long table: AffectNet's with landmarks have about 1,500, FER2013's pictures 10,000."""
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "blanks"}
MARKS = (  # UTF-32 before UTF-16, since UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks that programs put before a text, and their encodings."""
UNMARKED = ((rb"[^\0]\0", "utf-16-le"), (rb"\0[^\0]", "utf-16-be"))
"""First bytes of a UTF-16 text without a mark; the names and words of split files are ASCII."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells of one row without the blanks around them. line: the line of the file where it ends, from 1."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows that are not blank, and how the file was read."""

    rows: tuple[Row, ...]
    separator: str
    encoding: str

    def told(self, row: Row | None) -> str:
        """Format a row for a message, shortened, with the way in which the file was read."""
        text = self.separator.join(row.cells) if row else ""
        return f"{text[:80]!r}, read as {self.encoding} separated by {SEPARATORS[self.separator]}"


def read_table(path: Path) -> Table:
    """Read the rows of a small text file in UTF-8, or in the encoding of its byte order mark. Blank rows are skipped.

    The first row decides the separator: a tab, else a semicolon, else a comma outside of quotes, else blanks.

    Raises:
        DataError: the file cannot be read, is too large, is not text, or has an unclosed quote.
    """
    text, encoding = _text(path)
    separator = _separator(text)
    try:
        rows = tuple(_rows(text, separator))
    except csv.Error as error:
        do = "Save the file again as CSV, or unpack the split files again."
        expected = f"a table in {encoding} separated by {SEPARATORS[separator]}"
        raise DataError(message(path, expected=expected, got=str(error), do=do)) from error
    return Table(rows=rows, separator=separator, encoding=encoding)


def read_long(path: Path) -> Iterator[Row]:
    """Yield the rows of a table separated by commas, of any size, in UTF-8 or the encoding of its byte order mark.

    Raises DataError when the file cannot be read, is not text, or has an unclosed quote or a line of more than MAX_LINE
    letters.
    """
    encoding = "utf-8"
    try:
        with open_file(path) as file:
            encoding = _encoding(file.read(4))
        with path.open(encoding=encoding, newline="") as text:
            reader = csv.reader(_lines(text), skipinitialspace=True, strict=True)
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield Row(line=reader.line_num, cells=tuple(map(str.strip, cells)))
    except (OSError, ValueError, csv.Error) as error:
        do = "Unpack the file again."
        expected = f"a table in {encoding.upper()} separated by commas"
        raise DataError(message(path, expected=expected, got=str(error), do=do)) from error


def open_file(path: Path) -> BinaryIO:
    """Open a file to read. Raises OSError, also for a pipe or a device."""
    if not path.is_file():
        raise OSError("no file there")
    return path.open("rb")


def _lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a text. Raises ValueError for one that is too long."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE:,} letters")
        yield line


def _text(path: Path) -> tuple[str, str]:
    """Read the file's text and the name of its encoding."""
    try:
        data = read_small(path, most=MAX_BYTES)
    except (OSError, ValueError) as error:
        do = "Unpack the split files again."
        raise DataError(message(path, expected="a readable text file", got=str(error), do=do)) from error
    encoding = _encoding(data)
    name = encoding.upper().removesuffix("-SIG")
    try:
        return data.decode(encoding), name
    except UnicodeDecodeError as error:
        got = f"one that begins as {name} and is none at byte {error.start:,} ({error.reason})"
        do = "Save it as UTF-8, or unpack the split files again."
        raise DataError(message(path, expected="a text in UTF-8 or UTF-16", got=got, do=do)) from error


def _encoding(data: bytes) -> str:
    marked = (name for mark, name in MARKS if data.startswith(mark))
    unmarked = (name for start, name in UNMARKED if re.match(start, data, re.DOTALL))
    return next(itertools.chain(marked, unmarked), "utf-8")


def _separator(text: str) -> str:
    line = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    outside = "".join(line.split('"')[::2])
    return next((mark for mark in "\t;," if mark in outside.strip(" \r\n")), " ")


def _rows(text: str, separator: str) -> Iterator[Row]:
    if separator == " ":
        text = text.replace("\t", " ")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if separator == " ":
            cells = [cell for cell in cells if cell]
        if any(cells):
            yield Row(line=reader.line_num, cells=tuple(cells))
