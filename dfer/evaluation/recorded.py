"""metrics.jsonl of a run, read for the curves of its report: numbers by metric and step, as many as it shows."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfer.errors import CheckpointError, message
from dfer.storage import Folder

MAX_BYTES = 64 * 2**20
MAX_LINES, MAX_NUMBERS = 1_000_000, 500_000
"""Of one file; later ones are left out, and the report says so."""
MAX_METRICS, MAX_DAMAGED = 1000, 10_000
LARGEST = 1e30
"""No metric is larger, and axes cannot show much more."""


@dataclass(kw_only=True)
class Recorded:
    """points: value by step, by metric, as `train/lr/image`; a step recorded twice counts with its last record.
    damaged: lines that could not be read. cut: whether there were more than a report takes."""

    points: dict[str, dict[float, float]] = field(default_factory=dict)
    damaged: int = 0
    cut: bool = False


def read_recorded(folder: Folder, name: str) -> Recorded:
    """What a run recorded; nothing when there is no such file. A run that was killed leaves a torn line.

    Raises:
        CheckpointError: it is something else than a file of records.
        StorageError: it cannot be read, or is larger than any.
    """
    found, count = Recorded(), 0
    for number, line in enumerate(io.BytesIO(folder.read(name, most=MAX_BYTES) or b"")):
        if number >= MAX_LINES or count > MAX_NUMBERS:
            found.cut = True
            break
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            found.damaged += 1
            if found.damaged > MAX_DAMAGED:
                raise _problem(folder, name, f"more than {MAX_DAMAGED:,} lines that are none") from None
            continue
        if isinstance(record, dict) and is_number(record.get("step")):
            count += _add(found.points, record)
            if len(found.points) > MAX_METRICS:
                raise _problem(folder, name, f"more than {MAX_METRICS:,} metrics")
    return found


def _add(points: dict[str, dict[float, float]], record: Mapping[str, Any]) -> int:
    kind = record.get("kind")
    numbers = _numbers(record, kind if isinstance(kind, str) else "")
    for key, value in numbers:
        points.setdefault(key, {})[record["step"]] = value
    return len(numbers)


def _problem(folder: Folder, name: str, got: str) -> CheckpointError:
    do = "Put the file of this run back, or move it away: the report is then without curves."
    return CheckpointError(message(folder.where(name), expected="a record a line", got=got, do=do))


def _numbers(record: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    """The finite numbers of a record, nested ones too, by their path below `prefix`."""
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
    """Whether it can stand in a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
