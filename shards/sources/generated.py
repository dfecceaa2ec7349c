"""Whether a raw tree holds generated faces: `dfer-shards synth` leaves a record beside what it draws.

The layout is the real data set's, so the record is all that tells the two apart; it goes into the manifest.
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
    """The JSON object in `path`. Raises DataError when it is none."""
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
    """The set with `generated` among its options when `root` has the record of generated faces. Raises DataError."""
    root = root.resolve()
    places = [folder / name for folder in (root, root / root.name) for name in (RECORD, BEGUN)]
    path = next((place for place in places if place.exists() or place.is_symlink()), None)
    if path is None:
        return raw
    record = read_record(path)
    seed, generator = (str(record.get(key, "unknown"))[:40] for key in ("seed", "generator"))
    text = f"seed {seed}, generator {generator}"
    return replace(raw, options={**raw.options, "generated": text})
