"""Descriptions of the pictures in a folder: a CSV file beside them."""

import csv
from pathlib import Path

from dfer.data.pictures import PictureFolder
from dfer.errors import DataError, message

DESCRIPTIONS = "descriptions.csv"


def described_in(folder: PictureFolder) -> list[str | None]:
    """Read the descriptions of a folder's pictures from its `descriptions.csv`, with the columns file and text; None
    for pictures that it does not name, and for all if there is no such file. Raises DataError."""
    path = folder.root / DESCRIPTIONS
    if not path.is_file():
        return [None] * len(folder)
    try:
        found = _descriptions(path)
    except (OSError, ValueError, csv.Error) as error:
        expected, do = "a CSV file with the columns file and text", "Correct or remove it."
        raise DataError(message(path, expected=expected, got=str(error)[:160], do=do)) from error
    strange = sorted(found.keys() - {*folder.names})
    if strange:
        expected, got = "names of pictures in this folder", f"{len(strange)} others ({', '.join(strange[:3])})"
        raise DataError(message(path, expected=expected, got=got, do="Correct the file."))
    return [found.get(name) for name in folder.names]


def _descriptions(path: Path) -> dict[str, str]:
    """Read the text of each file of a table. Names of files need not be UTF-8. Raises ValueError with the line."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if {"file", "text"} - {*(rows.fieldnames or ())}:
            raise ValueError(f"columns {', '.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            name, text, at = row["file"], row["text"], f"line {rows.line_num}"
            if name is None or text is None:
                raise ValueError(f"a row without a text in {at}: {name}")
            if None in row:
                raise ValueError(f"more values than columns in {at}; a text with commas needs quotes: {name}")
            if name in found:
                raise ValueError(f"two rows for {name}, in lines {lines[name]} and {rows.line_num}")
            if any("\udc80" <= letter <= "\udcff" for letter in text):
                raise ValueError(f"a text that is not UTF-8 in {at}: {name}")
            found[name], lines[name] = text, rows.line_num
    return found
