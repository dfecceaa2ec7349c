"""Read a run's metrics.jsonl for the curves of its report: values by metric and step, up to the limits below."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfer.storage import Folder

MAX_BYTES = 64 * 2**20
SPLITS = ("validation", "test")
MAX_LINES, MAX_NUMBERS = 1_000_000, 500_000
"""Most lines and numbers that are read of one file; the rest is left out, and the report says so."""
MAX_METRICS, MAX_DAMAGED = 1000, 10_000
LARGEST = 1e30
"""Larger numbers are ignored: no metric is as large, and plots cannot scale to much more."""


@dataclass(kw_only=True)
class Recorded:
    """points: metric (`train/lr/image`, `eval/test/war`) -> step -> value; of a step recorded twice, the last record is
    used. damaged: number of lines that could not be parsed. cut: whether the file exceeded a limit, so that its end is
    left out."""

    points: dict[str, dict[float, float]] = field(default_factory=dict)
    damaged: int = 0
    cut: bool = False


def read_recorded(folder: Folder, name: str) -> Recorded:
    """Read what a run recorded; empty if there is no such file. A killed run may leave an incomplete line.

    A file that is too large or malformed gives shorter curves, never an error.

    Raises:
        StorageError: it cannot be read.
    """
    text, found, count = folder.beginning(name, most=MAX_BYTES) or b"", Recorded(), 0
    if len(text) > MAX_BYTES:
        text, found.cut = text[: text.rfind(b"\n") + 1], True
    for number, line in enumerate(io.BytesIO(text)):
        if number >= MAX_LINES or count > MAX_NUMBERS or found.damaged > MAX_DAMAGED:
            found.cut = True
            break
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            found.damaged += 1
            continue
        if isinstance(record, dict) and is_number(record.get("step")):
            count += _add(found, record)
    return found


def _add(found: Recorded, record: Mapping[str, Any]) -> int:
    """Add the numbers of a record to `found`, for at most MAX_METRICS metrics; returns how many the record has."""
    numbers = _numbers(record, _prefix(record))
    for key, value in numbers:
        if key in found.points or len(found.points) < MAX_METRICS:
            found.points.setdefault(key, {})[record["step"]] = value
        else:
            found.cut = True
    return len(numbers)


def _prefix(record: Mapping[str, Any]) -> str:
    """Return `train`, `eval/test` or, for records of older versions that do not name their split, `eval`."""
    kind, split = record.get("kind"), record.get("split")
    if not isinstance(kind, str):
        return ""
    return f"{kind}/{split}" if split in SPLITS else kind


def _numbers(record: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    """List the finite numbers of a record, also nested ones, with their paths below `prefix`."""
    found: list[tuple[str, float]] = []
    for key, value in record.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            if path.count("/") < 10:
                found += _numbers(value, path)
        elif key != "step" and is_number(value):
            found.append((path, value))
    return found


def is_number(value: Any) -> bool:
    """Whether a value can be a point of a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
