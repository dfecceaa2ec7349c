"""A build over several hosts: parts that need no other process, and the last step that makes their shards a data set.

    make part 1 of 3, part 2 of 3, part 3 of 3    anywhere, at any time, in any order
    finish 3                                      once they have ended

Part k of n makes the shards k, k + n, k + 2n, ... of the plan. Besides them it writes its report, and the plan that all
parts share; so parts cannot disturb each other, and two copies of one part write the same bytes. The result does not
depend on n.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from dfer.config import ConfigProblem, from_plain
from dfer.errors import DataError, UsageError, message
from dfer.storage import Folder
from dfer.store.format import MANIFEST, Manifest, read_manifest
from shards.build import SHOWN, Build, Made, notes
from shards.output import only_writer, storage_errors
from shards.plan import PLAN, Plan, has_plan, plan, remove_plan
from shards.pool import tick
from shards.shard import BuildOptions, ShardPlan, ShardState, finished
from shards.sources.clips import RawSet

T = TypeVar("T")
MAX_PARTS = 10_000


@dataclass(frozen=True, kw_only=True)
class BuildPart:
    """Part `number`, counted from 1, of `of` parts of a build. Raises UsageError for numbers that make no sense."""

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
        """The file the part leaves when it has ended well."""
        return f"{self.name}.json"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that fall to this part."""
        return items[self.number - 1 :: self.of]


def parts(of: int) -> list[BuildPart]:
    """All parts of a build in `of` parts."""
    return [BuildPart(number=number, of=of) for number in range(1, of + 1)]


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What a part has made. plan: digest of the plan it followed; shards: name -> fingerprint.

    Counts, missing clips and what is to be told of the pictures stand in each shard's `.done.json`.
    """

    plan: str
    shards: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished build. already: it was finished before, and no part has begun since; notes: as in `BuildReport`."""

    manifest: Manifest
    already: bool = False
    notes: tuple[str, ...] = ()


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
    """Make the shards of one part below `url`, continuing what an earlier call began.

    allow_missing: when more clips of this part are missing, a finished data set is left as it is; on a new one `finish`
    decides.

    Raises:
        DataError: more clips are missing than a finished build allows; the split files number the classes otherwise.
        UsageError: the folder holds something else, a build with other options, or another plan.
        StorageError: disk full, folder not writable, a build without parts at work.
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
    if not has_plan(out, ours):  # a copy of this part was quicker, and the build is finished
        out.remove(part.report)


def finish(
    raw: RawSet,
    url: str,
    options: BuildOptions,
    *,
    of: int,
    command: str,
    jobs: int = 1,
    allow_missing: int = 0,
    progress: bool = True,
) -> Finished:
    """Make a data set of the shards of `of` parts: check that all are there, settle missing clips, write the manifest.

    Args:
        command: the command line that makes a part, up to `--part`; for messages.
        allow_missing: how many clips may be left out, over all parts.
    Raises:
        DataError: parts are missing or incomplete; more clips cannot be packed.
        UsageError: the folder holds something else, a build with other options, or another plan.
        StorageError: a part is still at work on this machine; the folder cannot be read or written.
    """
    all_parts = parts(of)
    with storage_errors(url, builds=True):
        work = Build(raw, url, options, jobs=jobs, allow_missing=allow_missing, progress=progress)
        work.check()
        ours = plan(raw, options, work.plans)
        if not has_plan(work.out, ours):
            if (data := work.out.read(MANIFEST)) is not None:
                return Finished(manifest=read_manifest(data, where=work.out.where(MANIFEST)), already=True)
            raise _missing(url, all_parts, all_parts, command)
        with only_writer(work.out):
            states = _states(work, ours, all_parts, command)
            manifest = work.finish(states, again=_again(states, all_parts))
            remove_plan(work.out, work.out.names())
    return Finished(manifest=manifest, notes=notes(states))


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A shard of a part, and the fingerprint the part's report gives; none where there is no report."""

    plan: ShardPlan
    out: str
    fingerprint: str | None


def _states(work: Build, ours: Plan, all_parts: Sequence[BuildPart], command: str) -> list[ShardState]:
    """The states of all shards, in order. Raises DataError naming the parts that are not there whole."""
    reported = [_reported(work.out, part, ours) for part in all_parts]
    claims = [
        _Claim(plan=shard, out=work.out.url, fingerprint=(reported[number % len(all_parts)] or {}).get(shard.name))
        for number, shard in enumerate(work.plans)
    ]
    states = work.over(_made, claims, total=len(claims), label="checking", unit="shards")
    missing = [
        part for part, shards in zip(all_parts, reported, strict=True) if shards is None or None in part.share(states)
    ]
    if missing:
        raise _missing(work.out.url, all_parts, missing, command)
    return [state for state in states if state is not None]


def _made(claim: _Claim) -> ShardState | None:
    """The shard's state when it is there as its part reported it."""
    tick(1)
    if claim.fingerprint is None:
        return None
    return finished(Folder(claim.out), claim.plan, claim.fingerprint)


def _reported(out: Folder, part: BuildPart, ours: Plan) -> dict[str, str] | None:
    """The fingerprints a part reports; None for a report that is absent or damaged, or of another plan."""
    data = out.read(part.report)
    try:
        report = None if data is None else from_plain(PartReport, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem):
        return None
    return report.shards if report and report.plan == ours.digest else None


def _missing(url: str, all_parts: Sequence[BuildPart], missing: Sequence[BuildPart], command: str) -> DataError:
    of = len(all_parts)
    got = f"{of - len(missing)} (missing or not finished: {_listed(missing)})"
    lines = [f"  {command} --part {part}" for part in missing[:SHOWN]]
    do = "\n".join(["Run", *lines, "and then this command again; finished shards are kept."])
    return DataError(message(url, expected=f"{of} finished part{'s' if of > 1 else ''}", got=got, do=do))


def _again(states: Sequence[ShardState], all_parts: Sequence[BuildPart]) -> str:
    """Which parts have to be run again once the raw data are mended."""
    gaps = [part for part in all_parts if any(state.excluded for state in part.share(states))]
    return f"run part{'s' if len(gaps) > 1 else ''} {_listed(gaps)} again, then this command"


def _listed(some: Sequence[BuildPart]) -> str:
    more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
    return ", ".join(map(str, some[:SHOWN])) + more
