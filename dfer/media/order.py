"""Order numbered files in time. All names of a folder are compared; an ambiguous order is an error, never a guess."""

import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

NUMBER = re.compile(r"((?:(?<![^\W_])-)?[0-9]+(?:\.[0-9]+)*)")
"""A number in a name. A minus is a sign only if no letter or digit precedes it: `img-1` is frame 1."""
DIGITS_OF_A_COUNTER = 9
"""Most digits of a frame counter; a clip has fewer than a billion frames. More digits after a point are a fraction."""


class NoOrder(ValueError):
    """The names give no unambiguous order. The text names one or two of them."""


class _Number(NamedTuple):
    """A number as it is written. fraction: the digits after its point, None without a point."""

    negative: bool
    whole: str
    fraction: str | None


Key = Fraction | tuple[int, int]


def time_order(names: Sequence[str]) -> list[str]:
    """Sort names by time, first frame first. The text around the numbers must be equal in all, except case and suffix.

    `9.jpg`, `10.jpg`: by the number. `1.0010.jpg`, `500.50050050050055.jpg`: by the value. If several numbers vary,
    each must give the same order. If a number can be read in two ways (`1.9.jpg`, `1.10.jpg`: values or counters),
    both must give the same order.

    Raises:
        NoOrder: a name without a number, names of different form, a repeated number, or readings that disagree.
    """
    forms, numbers = [], []
    for name in names:
        form, found = _parts(name)
        if not found:
            raise NoOrder(f"frame {name} has no number in its name")
        forms.append(form)
        numbers.append(found)
    unlike = next((position for position, form in enumerate(forms) if form != forms[0]), None)
    if unlike is not None:
        raise NoOrder(f"{_two(names[0], names[unlike])} are named in unlike ways")
    varying = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    if not varying and len(names) > 1:
        raise NoOrder(f"{_two(names[0], names[1])} have the same number")
    orders = _orders(names, varying)
    first = next(orders, list(names))
    for other in orders:
        for one, two in zip(first, other, strict=True):
            if one != two:
                raise NoOrder(f"{_two(one, two)} can be put in order in two ways")
    return first


def _parts(name: str) -> tuple[tuple[str, ...], list[_Number]]:
    """Split a name into the text around the numbers, and the numbers; `1.2.3` is three numbers."""
    pieces = NUMBER.split(os.path.splitext(name)[0].casefold())  # noqa: PTH122 (a million calls: no Path objects)
    form, numbers = [pieces[0]], []
    for written, text in zip(pieces[1::2], pieces[2::2], strict=True):
        digits = written.lstrip("-").split(".")
        negative = written.startswith("-")
        if len(digits) <= 2:
            numbers.append(_Number(negative, digits[0], digits[1] if len(digits) == 2 else None))
        else:
            form += ["."] * (len(digits) - 1)
            numbers += [_Number(negative, part, None) for part in digits]
        form.append(text)
    return tuple(form), numbers


def _orders(names: Sequence[str], varying: Sequence[Sequence[_Number]]) -> Iterator[list[str]]:
    """Yield the names in the order of every reading: how the numbers are read, and which of them is compared first."""
    readings = [_readings(column) for column in varying]
    for reading in range(max(map(len, readings), default=0)):
        keys = [choices[min(reading, len(choices) - 1)] for choices in readings]
        rows = list(zip(*keys, strict=True))
        _check_distinct(names, rows)
        for column in keys:
            places = sorted(range(len(names)), key=lambda at, column=column, rows=rows: (column[at], rows[at]))  # type: ignore[misc]
            yield [names[at] for at in places]


def _check_distinct(names: Sequence[str], rows: Sequence[tuple[Key, ...]]) -> None:
    seen: dict[tuple[Key, ...], str] = {}
    for name, row in zip(names, rows, strict=True):
        if seen.setdefault(row, name) is not name:
            raise NoOrder(f"{_two(name, seen[row])} have the same number")


def _readings(column: Sequence[_Number]) -> list[Sequence[Key]]:
    """Return the possible readings of a column's numbers; one if it is unambiguous."""
    # A minus before all of the numbers may be a sign or a dash.
    signs = [True, False] if all(number.negative for number in column) else [True]
    counters = [False] if _are_values(column) else [False, True]
    return [[_key(n, signed=sign, counter=counter) for n in column] for sign in signs for counter in counters]


def _are_values(column: Sequence[_Number]) -> bool:
    """Whether the digits after the points are fractions, or there are no points.

    A counter has no leading zeros, or the same width in all names: `0.04` beside `0.2` is not a counter.
    """
    fractions = [number.fraction for number in column if number.fraction is not None]
    if not fractions:
        return True
    shortest, longest = min(map(len, fractions)), max(map(len, fractions))
    padded = any(digits.startswith("0") and len(digits) > shortest for digits in fractions)
    return padded or longest > max(shortest, DIGITS_OF_A_COUNTER)


def _key(number: _Number, *, signed: bool, counter: bool) -> Key:
    sign = -1 if signed and number.negative else 1
    if counter:
        return sign * int(number.whole), sign * (-1 if number.fraction is None else int(number.fraction))
    if number.fraction is None:
        return Fraction(sign * int(number.whole))
    return sign * Fraction(f"{number.whole}.{number.fraction}")


def _two(one: str, other: str) -> str:
    first, second = sorted((one, other))
    return f"frames {first} and {second}"
