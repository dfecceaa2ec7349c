"""Jobs whose parts are independent processes that divide the pieces of one source among them. Imports no torch.

    RUN/plan.json                what the pieces depend on; every part finds the same, or refuses
    RUN/worker_3/done.json       written when a part has made all its pieces
    RUN/worker_3/progress.json   its progress, for `dfer-launch status`

A piece is a range of consecutive clips, a batch a range within a piece. Both depend on the number of clips and the
batch size alone, so any number of parts makes the same pieces out of the same batches.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.config import ConfigProblem, from_plain, to_plain
from dfer.errors import CheckpointError, message
from dfer.jobs.parts import Part
from dfer.run.layout import PROGRESS
from dfer.storage import Folder

MAX_ROWS, MIN_PIECES = 256, 16
"""Clips of a piece, as a rule at most; fewest pieces, also of a small source, so that every part gets some."""
MAX_PARTS = 10_000
TELL_S = 10.0
_PLAN, _DONE = "plan.json", "done.json"
_MAX_JSON_BYTES = 64 * 2**20
_WORKER = "worker_"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a source is divided; iterates over the pieces, each the range of its clips' positions. clips: all of them.
    rows: clips of a piece; the last one may have fewer. batch: clips of a forward pass, at most `rows`; a piece has
    whole batches, except the last one."""

    clips: int
    rows: int
    batch: int

    @classmethod
    def of(cls, clips: int, *, batch: int) -> "Grid":
        """Divide a source. batch: most clips of a forward pass."""
        rows = min(MAX_ROWS, max(1, -(-clips // MIN_PIECES)))
        if batch >= rows:
            return cls(clips=clips, rows=rows, batch=rows)
        return cls(clips=clips, rows=-(-rows // batch) * batch, batch=batch)

    def __len__(self) -> int:
        """Number of pieces."""
        return -(-self.clips // self.rows)

    def __getitem__(self, number: int) -> range:
        """The positions of the clips of a piece."""
        return range(number * self.rows, min((number + 1) * self.rows, self.clips))

    def __iter__(self) -> Iterator[range]:
        return map(self.__getitem__, range(len(self)))


# --- parts


def check_workers(workers: int) -> None:
    """Raise ConfigProblem for a number of parts that is not possible."""
    if not 1 <= workers <= MAX_PARTS:
        expected = f"1 to {MAX_PARTS:,} parts"
        raise ConfigProblem(message("workers", expected=expected, got=str(workers), do="Correct it."))


def worker_parts(run: str, workers: int) -> list[Part]:
    """`worker_1` ... `worker_N`."""
    home = run.rstrip("/")
    return [Part(name=f"{_WORKER}{k}", run=f"{home}/{_WORKER}{k}") for k in range(1, workers + 1)]


def share(count: int, part: Part, *, of: int) -> range:
    """The numbers of a part's pieces out of `count`. They are consecutive, so that few parts read the same shard. part:
    `worker_3`, or `NAME/worker_3`."""
    number = int(part.name.rpartition(_WORKER)[2])
    return range((number - 1) * count // of, number * count // of)


# --- what all parts agree on


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the pieces of a job depend on. depends: by name, as plain values. clips, pieces: numbers of them.
    keys_sha256: of the clips' keys, in order."""

    version: int = 1
    depends: dict[str, Any]
    clips: int
    pieces: int
    keys_sha256: str

    @property
    def id(self) -> str:
        """Identify the plan."""
        return digest(to_plain(self))


def digest(plain: Any) -> str:
    """Return the first 16 digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def sha256_of_keys(keys: Sequence[str]) -> str:
    """Return the SHA-256 of keys in their order."""
    found = hashlib.sha256()
    for key in keys:
        found.update(f"{key}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def read_plan(home: Folder) -> Plan | None:
    """Read the plan of a run folder; None if no part has begun. Raises CheckpointError, StorageError."""
    plain = _json(home, _PLAN)
    if plain is None:
        return None
    try:
        return from_plain(Plan, plain)
    except ConfigProblem as problem:
        raise _damaged(home, _PLAN, str(problem)) from problem


def refuse_other(home: Folder, plan: Plan) -> None:
    """Raise CheckpointError if the run folder was begun with another plan."""
    before = read_plan(home)
    if before is None or before == plan:
        return
    old, new = ({**found.depends, "clips": found.clips} for found in (before, plan))
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)][:4]
    shown = [(name, contrast(old.get(name), new.get(name), most=120)) for name in names]
    expected, got = (", ".join(f"{name} {both[at]}" for name, both in shown) for at in (0, 1))
    do = (
        f"Put it back as it was, or start anew with run=FOLDER. Without {_PLAN} the run goes on with what there is now "
        "and makes those pieces again that depend on the change."
    )
    raise CheckpointError(message(home, expected=f"{expected}, as it was begun with", got=got, do=do))


def contrast(left: Any, right: Any, *, most: int = 60) -> tuple[str, str]:
    """Return two different plain values in words. Of those longer than `most` letters, the text around the first letter
    in which they differ."""
    texts = [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in (left, right)]
    differ = (at for at, (one, other) in enumerate(zip(*texts)) if one != other)
    at = next(differ, min(map(len, texts)))
    start = 0 if at < most // 2 else at - most // 4
    first, second = (_around(text, start, most) if max(map(len, texts)) > most else text for text in texts)
    return first, second


def _around(text: str, start: int, most: int) -> str:
    """Return the letters from `start`, at most `most` of them."""
    shown = text[start : start + most]
    return f"{'...' if start else ''}{shown}{'...' if start + most < len(text) else ''}"


def agree(home: Folder, plan: Plan) -> None:
    """Write the plan if no part has; raise CheckpointError if another part has begun with another one."""
    if read_plan(home) is None:
        home.write(_PLAN, (json.dumps(to_plain(plan), indent=1, sort_keys=True) + "\n").encode())
    refuse_other(home, plan)


def forget(home: Folder, parts: Sequence[Part]) -> None:
    """Let the next start plan anew. Finished pieces are found again by their names."""
    home.remove(_PLAN)
    for part in parts:
        Folder(part.run).remove(_DONE)


# --- finished parts


def mark_done(part: Part, plan: Plan, *, of: int, **facts: Any) -> None:
    """Record that a part, one of `of`, has made all its pieces. facts: plain values for the conclusion."""
    mark = {"plan": plan.id, "of": of, **facts}
    Folder(part.run).write(_DONE, (json.dumps(mark, sort_keys=True) + "\n").encode())


def mark_of(part: Part, plan: Plan | None, *, of: int) -> dict[str, Any] | None:
    """Return what `mark_done` recorded; None if the part is not done under this plan and division."""
    found = _json(Folder(part.run), _DONE) if plan is not None else None
    if not isinstance(found, dict) or plan is None or (found.get("plan"), found.get("of")) != (plan.id, of):
        return None
    return found


def marks(home: Folder, parts: Sequence[Part], plan: Plan) -> list[dict[str, Any]]:
    """Return the marks of all parts. Raises CheckpointError if some are not done."""
    found = {part.name: mark_of(part, plan, of=len(parts)) for part in parts}
    missing = [name for name, mark in found.items() if mark is None]
    if missing:
        got = f"none of {', '.join(missing[:10])}" + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        do = "The same command makes what is missing."
        raise CheckpointError(message(home, expected="the pieces of every part", got=got, do=do))
    return [mark for mark in found.values() if mark is not None]


def _json(folder: Folder, name: str) -> Any:
    data = folder.read(name, most=_MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, name, str(error)) from error


def _damaged(folder: Folder, name: str, got: str) -> CheckpointError:
    do = "Remove the file and give the same command again; finished pieces are kept."
    return CheckpointError(message(folder.where(name), expected="a file of this job", got=got[:160], do=do))


# --- progress


class Progress:
    """Prints a part's progress to the error stream, and records it for `dfer-launch status`."""

    def __init__(self, part: Part, *, what: str, total: int, standing: int, unit: str = "clips") -> None:
        """what: names the job. total: clips of the part; standing: clips of it that are finished already. unit: what
        they are called. The clock starts here, or again at `start`."""
        self._part, self._what, self._total, self._done, self._first = part, what, total, standing, standing
        self._unit = unit
        self.start()
        self._say(f"{total:,} {unit}" + (f", of which {standing:,} stand" if standing else ""))
        self._record({})

    def start(self) -> None:
        """Start the clock again, after models are loaded, so that the rate leaves out their loading."""
        self._began = self._told = time.monotonic()

    def add(self, clips: int) -> None:
        """Add a number of clips; tells the sum every TELL_S seconds."""
        self._done += clips
        now = time.monotonic()
        if now - self._told >= TELL_S:
            self._told = now
            rate = (self._done - self._first) / (now - self._began)
            left = (self._total - self._done) / rate
            self._say(f"{self._done:,} of {self._total:,} {self._unit}, {rate:.1f} {self._unit}/s, {left:.0f} s left")
            self._record({"clips_per_s": round(rate, 2), "eta_s": round(left, 1)})

    def end(self) -> None:
        """Tell the duration and the rate."""
        took = time.monotonic() - self._began
        rate = (self._done - self._first) / took if took else 0.0
        self._say(f"{self._done:,} {self._unit}, {took:.1f} s, {rate:.1f} {self._unit}/s")
        self._record({"clips_per_s": round(rate, 2), "eta_s": 0.0, "complete": self._done == self._total})

    def _record(self, facts: Mapping[str, Any]) -> None:
        record = {"step": self._done, "time": time.time(), **facts}
        Folder(self._part.run).write(PROGRESS, (json.dumps(record) + "\n").encode())

    def _say(self, text: str) -> None:
        print(f"{self._what}: {self._part.name}: {text}", file=sys.stderr, flush=True)
