"""Detect generated faces in a raw tree, by the record that `dfer-shards synth` writes.

The layout is that of the real data set, so only the record distinguishes the two; it is copied into the manifest.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfer.errors import DataError, message
from shards.sources.clips import RawSet
from shards.sources.layout import read_small

RECORD, BEGUN = "synthetic.json", "synthetic.part.json"
MAX_RECORD_BYTES = 2**20


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`. Raises DataError when there is none."""
    try:
        found = json.loads(read_small(path, most=MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict):
        do = "Delete the folder, or choose another."
        raise DataError(
            message(path, expected="the record of generated faces, a JSON object", got=str(found)[:200], do=do)
        )
    return found


def mark_generated(raw: RawSet, root: Path) -> RawSet:
    """Add `generated` to the set's options when `root` has the record of generated faces. Raises DataError."""
    root = root.resolve()
    places = [folder / name for folder in (root, root / root.name) for name in (RECORD, BEGUN)]
    path = next((place for place in places if place.exists() or place.is_symlink()), None)
    if path is None:
        return raw
    record = read_record(path)
    seed, generator = (str(record.get(key, "unknown"))[:40] for key in ("seed", "generator"))
    text = f"seed {seed}, generator {generator}"
    return replace(raw, options={**raw.options, "generated": text})
