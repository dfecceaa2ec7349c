"""Read FERPlus (Barsoum et al., ICMI 2016): the pictures of FER2013 with the votes of ten annotators.

fer2013new.csv                                  a row a row of fer2013.csv, in its order: Usage, Image name, then the
                                                votes: neutral ... contempt, unknown, NF (no face)
FER2013Train/fer0000000.png, FER2013Valid/, FER2013Test/     or fer2013.csv itself

The label is the release's (github microsoft/FERPlus, src/ferplus.py, mode `majority`): a column's only vote does not
count, and the label is the column with more than half of the votes that do. Where there is no such column, or it is
`unknown` or `NF`, the picture has no label: it is stored with its votes, and neither trains nor tests. Rows without an
image name are left out.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dfer.emotions import BASIC8, Emotions, canonical_name
from dfer.errors import DataError, message
from shards.sources.clips import Pixels, RawClip, RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.fer2013 import PixelRow, read_pixels
from shards.sources.layout import locate, require
from shards.sources.stills import counted
from shards.sources.tables import Row, Table, read_table

VOTES = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
)
HEADER = ("Usage", "Image name", *VOTES)
ANNOTATORS = 10
MAX_VOTES = 1_000
PARTS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
OF_FER2013 = {"train": "train", "public": "validation", "private": "test"}
FOLDERS = {"train": "FER2013Train", "validation": "FER2013Valid", "test": "FER2013Test"}
BASES = ("", "FERPlus/", "data/", "FERPlus/data/", "data/images/")
DIVIDED, UNKNOWN, NAMELESS, ODD = "divided", "unknown", "nameless", "odd"


@dataclass(frozen=True, kw_only=True)
class Voted:
    """One row with a picture. number: of the row, from 0; name: of the picture; votes: by name, all ten columns."""

    number: int
    name: str
    partition: str
    votes: dict[str, int]

    @property
    def winner(self) -> str | None:
        """The column with more than half of the votes, without those that are the only one of their column; None if
        there is no such column."""
        counted = {name: count for name, count in self.votes.items() if count > 1}
        total = sum(counted.values())
        return next((name for name, count in counted.items() if 2 * count > total), None)


def read(raw: Path) -> RawSet:
    """Read all stills with an image name; partitions `train`, `validation`, `test`; key: the row of fer2013.csv,
    `00000`, as in `fer2013`. Raises DataError."""
    path = require(raw, [f"{base}fer2013new.csv" for base in BASES], dataset="FERPlus", what="votes")
    rows, tally = _read_votes(path)
    pictures = _pictures(raw, path, rows)
    emotions = Emotions(names=BASIC8)
    clips = []
    for row in rows:
        if row is None:
            continue
        label = emotions.names.index(row.winner) if row.winner in emotions.names else None
        votes = tuple(row.votes[name] for name in emotions.names)
        tally[DIVIDED if row.winner is None else UNKNOWN] += label is None
        key, part = f"{row.number:05d}", row.partition
        clips.append(RawClip(key=key, label=label, partition=part, picture=pictures[row.number], votes=votes))
    return RawSet(
        dataset="ferplus",
        emotions=emotions,
        clips=tuple(clips),
        media="png",
        protocols=_published(),
        notes=_notes(tally),
        options={"source_frames": "fer2013.csv" if isinstance(clips[0].picture, Pixels) else "folders"},
    )


def _published() -> dict[str, RawProtocol]:
    train, validation, test = (RawSubset(partitions=(name,)) for name in FOLDERS)
    fold = RawFold(train=train, test=test, validation=validation)
    return {"published": RawProtocol(source="Barsoum et al., ICMI 2016", folds=(fold,))}


def _notes(tally: Counter[str]) -> tuple[str, ...]:
    return (
        *counted(
            tally[DIVIDED],
            "{} pictures have no label: no column has more than half of the votes (stored with their votes)",
        ),
        *counted(
            tally[UNKNOWN],
            "{} pictures have no label: unknown or NF has more than half of the votes (stored with their votes)",
        ),
        *counted(tally[NAMELESS], "{} rows have no image name, and are left out"),
        *counted(tally[ODD], f"{{}} rows have other than {ANNOTATORS} votes"),
    )


def _read_votes(path: Path) -> tuple[list[Voted | None], Counter[str]]:
    """Read the rows in order, None for one without an image name, and what was counted on the way."""
    table = read_table(path)
    columns = _columns(table, path)
    rows: list[Voted | None] = []
    tally: Counter[str] = Counter()
    for number, row in enumerate(table.rows[1:]):
        found = _voted(row, table, columns, number, f"{path}, line {row.line}")
        tally[NAMELESS] += not found.name
        tally[ODD] += sum(found.votes.values()) != ANNOTATORS and bool(found.name)
        rows.append(found if found.name else None)
    if not any(rows):
        do = "Unpack the votes again."
        raise DataError(message(path, expected="at least one picture", got="none", do=do))
    return rows, tally


def _columns(table: Table, path: Path) -> dict[str, int]:
    first = table.rows[0] if table.rows else None
    names = [cell.lower() for cell in first.cells] if first else []
    if sorted(names) != sorted(name.lower() for name in HEADER):
        do = "Use fer2013new.csv of the release."
        expected = f"the header {','.join(HEADER)}"
        raise DataError(message(f"{path}, line 1", expected=expected, got=table.told(first), do=do))
    return {name: names.index(name.lower()) for name in HEADER}


def _voted(row: Row, table: Table, columns: dict[str, int], number: int, where: str) -> Voted:
    cells = dict(zip(columns, [row.cells[at] for at in columns.values() if at < len(row.cells)]))
    counts = [cells.get(name, "") for name in VOTES]
    if cells.get("Usage") not in PARTS or not all(n.isdecimal() and int(n) <= MAX_VOTES for n in counts):
        expected = f"a use out of {', '.join(PARTS)}, a name and ten numbers of votes"
        do = "Use fer2013new.csv of the release."
        raise DataError(message(where, expected=expected, got=table.told(row), do=do))
    votes = {canonical_name(name): int(count) for name, count in zip(VOTES, counts, strict=True)}
    return Voted(number=number, name=cells["Image name"], partition=PARTS[cells["Usage"]], votes=votes)


def _pictures(raw: Path, path: Path, rows: list[Voted | None]) -> dict[int, Path | Pixels]:
    """Find the picture of every row with a name: in the folders, else in fer2013.csv, row by row."""
    folders = {part: locate(raw, [f"{base}{name}" for base in BASES]) for part, name in FOLDERS.items()}
    if any(folders.values()):
        missing = [FOLDERS[part] for part, folder in folders.items() if folder is None]
        if missing:
            do = "Unpack the pictures again."
            raise DataError(message(raw, expected="the folders of all three parts", got=f"no {missing[0]}", do=do))
        return {row.number: _in(folders[row.partition], row, path) for row in rows if row}
    names = [f"{base}fer2013.csv" for base in BASES]
    table = require(raw, [*names, "FER2013Train"], dataset="FERPlus", what="pictures")
    return _by_row(table, path, rows)


def _in(folder: Path | None, row: Voted, path: Path) -> Path:
    if folder is None or "/" in row.name or row.name.startswith("."):
        where, do = f"{path}, row {row.number}", "Use fer2013new.csv of the release."
        raise DataError(message(where, expected="the name of a picture", got=repr(row.name)[:60], do=do))
    return folder / row.name


def _by_row(table: Path, path: Path, rows: list[Voted | None]) -> dict[int, Path | Pixels]:
    """Take row n of fer2013.csv for row n of the votes. Raises DataError unless their numbers and uses agree."""
    pixels = list(read_pixels(table))
    odd = next((row for row in rows if row and not _same_use(row, pixels)), None)
    if len(pixels) != len(rows) or odd:
        got = (
            f"{len(pixels)} rows for {len(rows)}"
            if len(pixels) != len(rows)
            else f"another use in row {odd and odd.number}"
        )
        do = "The votes of FERPlus follow fer2013.csv row by row: use both as they were released."
        raise DataError(message(table, expected=f"the rows of {path.name}", got=got, do=do))
    return {row.number: pixels[row.number].pixels for row in rows if row}


def _same_use(row: Voted, pixels: list[PixelRow]) -> bool:
    return row.number < len(pixels) and OF_FER2013[pixels[row.number].partition] == row.partition
