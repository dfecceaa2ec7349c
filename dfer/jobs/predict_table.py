"""The tables of a prediction: one a piece, and the whole that they are joined to. Imports no torch."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

from dfer.errors import CheckpointError, DataError, message
from dfer.jobs.parts import Part
from dfer.jobs.pieces import Plan, forget, marks, read_plan
from dfer.storage import Folder

PIECES, SUMMARY = "pieces", "summary.json"
MAX_PIECE_BYTES = 64 * 2**20
SHOWN = 20
"""Most clips that a message names."""
Form = Literal["csv", "jsonl"]
_ENCODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The answer for a clip. predicted: the most probable class; shares: probability of every class. error: why there
    is no answer; the two others are then empty."""

    key: str
    predicted: str = ""
    shares: tuple[float, ...] = ()
    error: str = ""


def piece_csv(rows: Sequence[Row], classes: Sequence[str]) -> bytes:
    """Format a piece: key, predicted, a probability per class with six decimals, error."""
    cells = [["key", "predicted", *classes, "error"]]
    for row in rows:
        shares = [f"{share:.6f}" for share in row.shares] or [""] * len(classes)
        cells.append([row.key, row.predicted, *shares, row.error])
    return _text(cells).encode(*_ENCODING)


def _text(cells: Sequence[Sequence[str]]) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


@dataclass
class _Totals:
    """What the joined rows add up to. failed: keys of the clips without an answer; again: their pieces."""

    clips: int
    failed: list[str]
    again: list[str]
    predicted: Counter[str]


def join(home: Folder, parts: Sequence[Part], *, form: Form) -> str:
    """Join the pieces of all parts into predictions.csv or .jsonl, in the order of the source, and write the summary;
    returns a text about it.

    Raises:
        CheckpointError: a part is not done, or a piece is missing or damaged; the same command then makes it again.
        DataError: some clips could not be read; the others were answered. The same command tries those clips again.
    """
    plan = read_plan(home)
    if plan is None:
        do = "Repeat the command, which starts it."
        raise CheckpointError(message(home, expected="a prediction that was begun", got="none", do=do))
    names = [str(name) for mark in marks(home, parts, plan) for name in mark["pieces"]]
    table = f"predictions.{form}"
    with home.whole(table) as path, path.open("w", newline="", encoding=_ENCODING[0], errors=_ENCODING[1]) as file:
        totals = _Totals(clips=0, failed=[], again=[], predicted=Counter())
        for text in _joined(home, names, parts, plan, totals, form):
            file.write(text)
    home.write(SUMMARY, (json.dumps(_summary(plan, totals), indent=1) + "\n").encode(*_ENCODING))
    if totals.failed:
        _give_up(home, parts, table, totals)
    counts = ", ".join(f"{count:,} {name}" for name, count in totals.predicted.most_common())
    return f"{home.where(table)}: {totals.clips:,} clips: {counts}"


def _joined(
    home: Folder, names: Sequence[str], parts: Sequence[Part], plan: Plan, totals: _Totals, form: Form
) -> Iterator[str]:
    """Yield the table in texts; counts its rows. Raises CheckpointError unless it holds every clip of the plan once."""
    head: list[str] | None = None
    keys = hashlib.sha256()
    for name in names:
        first, *rows = _piece(home, name, parts)
        if head is None:
            head = first
            totals.predicted.update(dict.fromkeys(first[2:-1], 0))
            if form == "csv":
                yield _text([first])
        if first != head or any(len(row) != len(head) for row in rows):
            raise _again(home, name, parts, expected="the columns of the other pieces", got="others")
        for row in rows:
            keys.update(f"{row[0]}\n".encode(*_ENCODING))
            _count(row, name, totals)
        yield _text(rows) if form == "csv" else "".join(_line(row, head) for row in rows)
    if keys.hexdigest() != plan.keys_sha256:
        for name in names:
            (home / PIECES).remove(name)
        forget(home, parts)
        expected, got = f"{plan.clips:,} clips, each once and in order", f"{totals.clips:,} others"
        do = "The pieces were removed; the same command makes them again."
        raise CheckpointError(message(home / PIECES, expected=expected, got=got, do=do))


def _piece(home: Folder, name: str, parts: Sequence[Part]) -> list[list[str]]:
    data = (home / PIECES).read(name, most=MAX_PIECE_BYTES)
    if data is None:
        raise _again(home, name, parts, expected="this piece", got="no such file")
    try:
        rows = list(csv.reader(StringIO(data.decode(*_ENCODING), newline=""), strict=True))
    except csv.Error as error:
        raise _again(home, name, parts, expected="a table", got=str(error)[:160]) from error
    if not rows or rows[0][:2] != ["key", "predicted"] or rows[0][-1] != "error":
        raise _again(home, name, parts, expected="the columns key, predicted, CLASSES, error", got="others")
    return rows


def _again(home: Folder, name: str, parts: Sequence[Part], *, expected: str, got: str) -> CheckpointError:
    """Remove a damaged piece, so that the next start makes it again."""
    (home / PIECES).remove(name)
    forget(home, parts)
    do = "The same command makes it again."
    return CheckpointError(message((home / PIECES).where(name), expected=expected, got=got, do=do))


def _count(row: Sequence[str], name: str, totals: _Totals) -> None:
    totals.clips += 1
    if not row[-1]:
        totals.predicted[row[1]] += 1
        return
    totals.failed.append(row[0])
    if name not in totals.again[-1:]:
        totals.again.append(name)


def _line(row: Sequence[str], head: Sequence[str]) -> str:
    found: dict[str, Any] = {"key": row[0]}
    if row[-1]:
        found["error"] = row[-1]
    else:
        shares = {name: float(share) for name, share in zip(head[2:-1], row[2:-1], strict=True)}
        found |= {"predicted": row[1], "probabilities": shares}
    return json.dumps(found) + "\n"


def _summary(plan: Plan, totals: _Totals) -> dict[str, Any]:
    return {
        "clips": totals.clips,
        "answered": totals.clips - len(totals.failed),
        "failed": len(totals.failed),
        "failed_clips": totals.failed,
        "predicted": dict(totals.predicted),
        "depends": plan.depends,
    }


def _give_up(home: Folder, parts: Sequence[Part], table: str, totals: _Totals) -> None:
    """Raise DataError that names the clips without an answer; the next start tries their pieces again."""
    for name in totals.again:
        (home / PIECES).remove(name)
    forget(home, parts)
    some = ", ".join(totals.failed[:SHOWN]) + (" and more" if len(totals.failed) > SHOWN else "")
    expected, got = f"to read all {totals.clips:,} clips", f"{len(totals.failed):,} that cannot be read: {some}"
    do = f"{table} has the others, and the error of each of these; repair or remove these, then repeat the command."
    raise DataError(message(home, expected=expected, got=got, do=do))
