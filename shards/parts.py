"""A build over several hosts: independent parts, and a last step that combines their shards into a data set.

    make part 1 of 3, part 2 of 3, part 3 of 3    on any host, at any time, in any order
    finish 3                                      after they have ended

Part k of n builds the shards k, k + n, k + 2n, ... of the plan. Apart from these it only writes its own report, and the
plan, which is equal for all parts. So parts do not interfere with each other, and two copies of one part write the same
bytes. The result does not depend on n.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from dfer.config import ConfigProblem, from_plain
from dfer.errors import DataError, UsageError, message
from dfer.storage import Folder
from dfer.store.format import MANIFEST, Manifest, read_manifest, safe_path
from shards.build import SHOWN, Build, Made, notes
from shards.output import only_writer, storage_errors
from shards.plan import PLAN, Plan, has_plan, plan, remove_plan
from shards.pool import tick
from shards.shard import BuildOptions, ShardPlan, ShardState, finished
from shards.sources.clips import RawSet

T = TypeVar("T")
MAX_PARTS = 10_000
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class BuildPart:
    """Part `number`, counted from 1, of `of` parts of a build. Raises UsageError if a number is out of range."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= MAX_PARTS:
            do = "Correct the numbers, such as 2/3."
            expected = f"part K of N with K from 1 to N, and N at most {MAX_PARTS}"
            raise UsageError(message("part of a build", expected=expected, got=str(self), do=do))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        return f"part_{self.number}_of_{self.of}"

    @property
    def report(self) -> str:
        """Name of the file that the part writes when it has succeeded."""
        return f"{self.name}.json"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that belong to this part."""
        return items[self.number - 1 :: self.of]


def parts(of: int) -> list[BuildPart]:
    """List all parts of a build in `of` parts."""
    return [BuildPart(number=number, of=of) for number in range(1, of + 1)]


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """The report of a part. plan: digest of its plan; shards: name -> fingerprint, for each shard that it built.

    Counts, missing clips and facts for notes about the pictures are in each shard's `.done.json`.
    """

    plan: str
    shards: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished build. already: whether it was finished before and no part has begun since; notes: as in
    `BuildReport`."""

    manifest: Manifest
    already: bool = False
    notes: tuple[str, ...] = ()


class Advice(Protocol):
    """What messages tell the user to do. A launched build (`launch.build`) has other names and commands for parts."""

    @property
    def allow(self) -> str:
        """The option that accepts missing clips, up to its number."""

    @property
    def repeats(self) -> bool:
        """Whether the same command starts the parts again that have no report."""

    def name(self, part: BuildPart) -> str:
        """Return the user's name of a part."""

    def again(self, some: Sequence[BuildPart]) -> str:
        """Return what to do to build these parts and to finish."""


@dataclass(frozen=True)
class ByHand:
    """Advice for a build with `dfer-shards`. command: the command line of a part, up to `--part`."""

    command: str
    allow = "--allow-missing "
    repeats = False

    def name(self, part: BuildPart) -> str:
        return str(part)

    def again(self, some: Sequence[BuildPart]) -> str:
        lines = [f"  {self.command} --part {part}" for part in some[:SHOWN]]
        more = [f"  and so on for {len(some) - SHOWN} more"] if len(some) > SHOWN else []
        return "\n".join(["run", *lines, *more, "and then this command again"])


def make(
    raw: RawSet,
    url: str,
    options: BuildOptions,
    part: BuildPart,
    *,
    jobs: int = 1,
    allow_missing: int = 0,
    progress: bool = True,
) -> Made:
    """Build the shards of one part below `url`; resumes an interrupted part.

    allow_missing: if more clips of this part are missing, a finished data set is not changed. For a new data set, only
    `finish` checks the number of missing clips.

    Raises:
        DataError: too many clips are missing for changing a finished build; the split files number the classes
            differently.
        UsageError: the folder holds something else, a build with other options, or another plan.
        StorageError: the disk is full, the folder is not writable, or a build without parts is running.
    """
    with storage_errors(url, builds=True):
        work = Build(raw, url, options, jobs=jobs, allow_missing=allow_missing, progress=progress)
        names = work.check()
        ours = plan(raw, options, work.plans)
        with only_writer(work.out, beside_parts=True):
            work.begin(names)
            if not has_plan(work.out, ours):
                work.out.write(PLAN, ours.to_json())
            plans = part.share(work.plans)
            made = work.make(plans, report=part.report)
            _write_report(work.out, part, ours, plans, made)
    return made


def _write_report(out: Folder, part: BuildPart, ours: Plan, plans: Sequence[ShardPlan], made: Made) -> None:
    shards = {shard.name: state.fingerprint for shard, state in zip(plans, made.states, strict=True)}
    report = PartReport(plan=ours.digest, shards=shards)
    out.write(part.report, (json.dumps(asdict(report), sort_keys=True) + "\n").encode())
    if not has_plan(out, ours):  # meanwhile, a copy of this part ended and the build was finished
        out.remove(part.report)


def finish(
    raw: RawSet,
    url: str,
    options: BuildOptions,
    *,
    of: int,
    advice: Advice,
    jobs: int = 1,
    allow_missing: int = 0,
    progress: bool = True,
) -> Finished:
    """Combine the shards of `of` parts into a data set: check that all exist, check the number of missing clips, and
    write the manifest.

    Args:
        advice: the words for messages. If its command repeats parts, a refusal because of missing clips removes the
            reports of the parts that left them out.
        allow_missing: most clips that may be left out, over all parts.
    Raises:
        DataError: parts are missing or incomplete; more clips cannot be packed.
        UsageError: the folder holds something else, a build with other options, or another plan.
        StorageError: a part is still running on this machine; the folder cannot be read or written.
    """
    all_parts = parts(of)
    with storage_errors(url, builds=True):
        work = Build(raw, url, options, jobs=jobs, allow_missing=allow_missing, progress=progress)
        work.check()
        ours = plan(raw, options, work.plans)
        if not has_plan(work.out, ours):
            if (data := work.out.read(MANIFEST)) is not None:
                return Finished(manifest=read_manifest(data, where=work.out.where(MANIFEST)), already=True)
            raise _missing(url, all_parts, all_parts, advice)
        with only_writer(work.out):
            states = _states(work, ours, all_parts, advice)
            manifest = _finish(work, states, all_parts, advice)
            remove_plan(work.out, work.out.names())
    return Finished(manifest=manifest, notes=notes(states))


def _finish(work: Build, states: Sequence[ShardState], all_parts: Sequence[BuildPart], advice: Advice) -> Manifest:
    gaps = [part for part in all_parts if any(state.excluded for state in part.share(states))]
    try:
        return work.finish(states, again=advice.again(gaps), allow=advice.allow)
    except DataError:
        for part in gaps if advice.repeats else ():
            work.out.remove(part.report)
        raise


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A shard of a part, and its fingerprint in the part's report; None if there is no report."""

    name: str
    out: str
    fingerprint: str | None


def part_done(out: Folder, part: BuildPart, ours: Plan) -> bool:
    """Whether the part has reported shards of this plan, and all of them exist as in the report."""
    shards = _reported(out, part, ours)
    if shards is None:
        return False
    with ThreadPoolExecutor(THREADS) as threads:
        return all(threads.map(lambda item: finished(out, *item) is not None, shards.items()))


def _states(work: Build, ours: Plan, all_parts: Sequence[BuildPart], advice: Advice) -> list[ShardState]:
    """Read the states of all shards, in order; `part_done` in the build's processes. Raises DataError that names the
    missing or incomplete parts."""
    reported = [_reported(work.out, part, ours) for part in all_parts]
    claims = [
        _Claim(name=shard.name, out=work.out.url, fingerprint=(reported[number % len(all_parts)] or {}).get(shard.name))
        for number, shard in enumerate(work.plans)
    ]
    states = work.over(_made, claims, total=len(claims), label="checking", unit="shards")
    missing = [
        part for part, shards in zip(all_parts, reported, strict=True) if shards is None or None in part.share(states)
    ]
    if missing:
        raise _missing(work.out.url, all_parts, missing, advice)
    return [state for state in states if state is not None]


def _made(claim: _Claim) -> ShardState | None:
    """Read the shard's state; None unless the shard exists as in the report of its part."""
    tick(1)
    if claim.fingerprint is None:
        return None
    return finished(Folder(claim.out), claim.name, claim.fingerprint)


def _reported(out: Folder, part: BuildPart, ours: Plan) -> dict[str, str] | None:
    """Read the fingerprints in a part's report; None if the report is missing, damaged, or of another plan."""
    data = out.read(part.report)
    try:
        report = None if data is None else from_plain(PartReport, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem):
        return None
    if report is None or report.plan != ours.digest or len(report.shards) != len(part.share(range(ours.shards))):
        return None
    return report.shards if all(map(safe_path, report.shards)) else None


def _missing(url: str, all_parts: Sequence[BuildPart], missing: Sequence[BuildPart], advice: Advice) -> DataError:
    of = len(all_parts)
    got = f"{of - len(missing)} (missing or not finished: {_listed([advice.name(part) for part in missing])})"
    again = advice.again(missing)
    do = f"{again[0].upper()}{again[1:]}; finished shards are kept."
    return DataError(message(url, expected=f"{of} finished part{'s' if of > 1 else ''}", got=got, do=do))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
