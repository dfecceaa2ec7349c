"""Checks for the split files of every data set: each clip once, each train set equal to the other test sets."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dfer.errors import DataError, message

SHOWN = 10


def add_row(rows: dict[str, int], key: str, label: int, *, where: str) -> None:
    """Add one row of a split file. Raises DataError when the file has the clip already."""
    if key in rows:
        raise DataError(
            message(where, expected="every clip once", got=f"{key} a second time", do="Unpack the split files again.")
        )
    rows[key] = label


def check_some(rows: dict[str, int], *, where: Path) -> dict[str, int]:
    """Return the rows. Raises DataError when there are none."""
    if not rows:
        raise DataError(message(where, expected="at least one clip", got="none", do="Unpack the split files again."))
    return rows


def check_disjoint(parts: Mapping[str, Mapping[str, int]], *, where: str) -> None:
    """Raise DataError when a clip is in two of the sets (test folds, or train and test)."""
    home: dict[str, str] = {}
    for part, rows in parts.items():
        twice = [key for key in rows if key in home]
        if twice:
            raise DataError(
                message(
                    where,
                    expected="every clip in one part",
                    got=f"{listed(twice)} in {home[twice[0]]} and in {part}",
                    do="Scores on these splits would count training clips; unpack the split files again.",
                )
            )
        home.update(dict.fromkeys(rows, part))


def check_folds(tests: Sequence[Mapping[str, int]], trains: Sequence[Mapping[str, int]], *, where: str) -> None:
    """Raise DataError unless the test sets are disjoint and each train set is exactly the other test sets."""
    check_disjoint({f"test set {k}": rows for k, rows in enumerate(tests, start=1)}, where=where)
    labels = {key: label for rows in tests for key, label in rows.items()}
    for k, (test, train) in enumerate(zip(tests, trains, strict=True), start=1):
        rest = {key: label for key, label in labels.items() if key not in test}
        for text, keys in (
            ("{} in no test set", [key for key in train if key not in labels]),
            ("{} in test set {k} as well", [key for key in train if key in test]),
            ("{} left out", [key for key in rest if key not in train]),
            ("another label for {}", [key for key in rest if train.get(key, rest[key]) != rest[key]]),
        ):
            if keys:
                raise DataError(
                    message(
                        f"{where}, train set {k}",
                        expected=f"the {len(rest)} clips of the other test sets",
                        got=text.format(listed(keys), k=k),
                        do="Unpack the split files again; they are not those of the release.",
                    )
                )


def listed(keys: Collection[str]) -> str:
    """Format the first few keys and the number of the others."""
    shown = ", ".join(sorted(keys)[:SHOWN])
    return shown if len(keys) <= SHOWN else f"{shown} and {len(keys) - SHOWN} more"
