"""`dfer-shards build`: build shards from a raw data set, an index for each, and the manifest of the data set.

Steps: list every raw folder and the output of earlier builds; build the shards that are missing or whose input changed,
each whole or not at all; check the number of clips that could not be packed; write the manifest. So a killed build
resumes, and a build without changes does nothing. `shards.parts` divides the same steps among hosts.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TypeVar

from dfer.emotions import Emotions
from dfer.errors import DataError, UsageError, message
from dfer.storage import TEMPORARY, Folder
from dfer.store.format import MANIFEST, Excluded, FrameSettings, Manifest, Overlap, to_json
from shards import pool
from shards.check import check_raw
from shards.output import only_writer, shard_folder, storage_errors
from shards.overlap import Packed, duplicates, overlap
from shards.plan import remove_plan
from shards.protocols import write_protocols
from shards.shard import BuildOptions, ShardPlan, ShardState, ShardTask, make, plan_shards, scan
from shards.sources.clips import RawSet
from shards.totals import renumbered

BEGUN = "build.json"
EXCLUDED = "excluded.txt"
OURS = re.compile(r"[a-z0-9_]+/[0-9]{5}\.(tar|index\.json|done\.json)|protocols/[a-z0-9_.]+\.txt")
SHOWN = 20
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True)
class Made:
    """Result of building some shards. states: of these shards, in order; new: how many of them had to be built; frames,
    seconds: number of frames packed into the new ones, and the time it took."""

    states: tuple[ShardState, ...]
    new: int
    frames: int
    seconds: float

    @property
    def unchanged(self) -> int:
        return len(self.states) - self.new


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """A finished data set. notes: remarks for the user about the pictures."""

    manifest: Manifest
    made: Made
    notes: tuple[str, ...] = ()


def build(
    raw: RawSet,
    url: str,
    options: BuildOptions,
    *,
    jobs: int = 1,
    allow_missing: int = 0,
    progress: bool = True,
) -> BuildReport:
    """Build all shards of `raw` below `url`. The result does not depend on `jobs`.

    allow_missing: most clips that may be left out because their folder or readable frames are missing.

    Raises:
        DataError: more clips cannot be packed; the split files number the classes differently; the format cannot hold
            what the source returns.
        UsageError: the folder holds something else, or a build with other options.
        StorageError: the disk is full, the folder is not writable, or another builder is running.
    """
    with storage_errors(url, builds=True):
        work = Build(raw, url, options, jobs=jobs, allow_missing=allow_missing, progress=progress)
        names = work.check()
        with only_writer(work.out):
            remove_plan(work.out, names)
            work.begin(names)
            made = work.make(work.plans)
            manifest = work.finish(made.states)
    return BuildReport(manifest=manifest, made=made, notes=notes(made.states))


class Build:
    """The steps of one build, and the arguments that they share. plans: of all shards."""

    def __init__(
        self, raw: RawSet, url: str, options: BuildOptions, *, jobs: int, allow_missing: int, progress: bool
    ) -> None:
        check_raw(raw)
        check_numbering(raw)
        self.raw, self.out, self.options = raw, shard_folder(url), options
        self.jobs, self.allow_missing, self.progress = jobs, allow_missing, progress
        self.plans = plan_shards(raw.clips, raw.emotions.names, options)

    def check(self) -> list[str]:
        """List the files of the output. Raises UsageError if they are not those of a build with these options."""
        names = self.out.names()
        _check_folder(self.out, names, self.raw, self.options)
        return names

    def begin(self, names: Sequence[str]) -> None:
        """Write the first file, which marks the folder as that of a build. names: the existing files."""
        if BEGUN not in names:
            self.out.write(BEGUN, _begun(self.raw, self.options))

    def make(self, plans: Sequence[ShardPlan], *, report: str = "") -> Made:
        """Build those of the shards that are not up to date. report: a file to remove before the first is built."""
        scans = self.over(scan, self._tasks(plans), total=len(plans), label="checking", unit="shards")
        self._protect_finished([item for found in scans for item in found.excluded])
        todo = [plan for plan, found in zip(plans, scans, strict=True) if found.state is None]
        frames = sum(found.frames for found in scans if found.state is None)
        start = time.monotonic()
        new: list[ShardState] = []
        if todo:
            if report:
                self.out.remove(report)
            new = self.over(make, self._tasks(todo), total=frames, label="packing", unit="frames")
        seconds = time.monotonic() - start
        made = iter(new)
        states = tuple(found.state or next(made) for found in scans)
        return Made(states=states, new=len(todo), frames=frames, seconds=seconds)

    def over(self, function: Callable[[A], B], items: Sequence[A], *, total: int, label: str, unit: str) -> list[B]:
        """Compute `[function(item) for item in items]` in the build's processes, with a progress bar."""
        with pool.progress_bar(total, label=label, unit=unit, show=self.progress) as bar:
            return pool.run(function, items, jobs=self.jobs, bar=bar)

    def _tasks(self, plans: Sequence[ShardPlan]) -> list[ShardTask]:
        return [ShardTask(plan=plan, out=self.out.url) for plan in plans]

    def _protect_finished(self, excluded: Sequence[Excluded]) -> None:
        """Raise DataError, before anything is changed, if too many clips are missing and there is a finished build: the
        disk with the raw data may not be mounted."""
        if len(excluded) > self.allow_missing and self.out.size(MANIFEST) is not None:
            raise DataError(f"{_excluded_text(self.out.url, excluded)}The finished build there is left as it is.")

    def finish(
        self,
        done: Sequence[ShardState],
        *,
        again: str = "run the same command again",
        allow: str = "--allow-missing ",
    ) -> Manifest:
        """Check the number of clips that could not be packed, and write the manifest. done: states of all shards.

        again, allow: for the message, what to do after the raw data are repaired, and the option that accepts missing
        clips, up to its number. Raises DataError if too many are missing.
        """
        excluded = sorted((item for state in done for item in state.excluded), key=lambda item: item.key)
        self._protect_finished(excluded)
        if len(excluded) > self.allow_missing:
            self.out.write(EXCLUDED, "".join(f"{e.key}\t{e.reason}\n" for e in excluded).encode())
            raise DataError(
                f"{_excluded_text(self.out.url, excluded)}No manifest was written; all are listed in {EXCLUDED} there."
                f" Mend the raw data and {again} (finished shards are kept), or accept the gaps"
                f" with {allow}{len(excluded)}."
            )
        manifest = self._manifest(done, tuple(excluded))
        self._remove_stale(manifest)
        data = to_json(manifest)
        if self.out.read(MANIFEST) != data:
            self.out.write(MANIFEST, data)
        return manifest

    def _manifest(self, done: Sequence[ShardState], excluded: tuple[Excluded, ...]) -> Manifest:
        lost = {item.key for item in excluded}
        packed = {clip.key for clip in self.raw.clips} - lost
        partitions = {state.shard.partition for state in done if state.shard is not None}
        counts = {plan.partition: [0] * len(self.raw.emotions) for plan in self.plans}
        for plan, state in zip(self.plans, done, strict=True):
            counts[plan.partition] = [a + b for a, b in zip(counts[plan.partition], state.counts, strict=True)]
        return Manifest(
            dataset=self.raw.dataset,
            classes=self.raw.emotions.names,
            builder=f"dfer {version('dfer')}",
            media=self.options.media,
            faces=self.raw.faces,
            frames=FrameSettings(
                max_side=self.options.max_side,
                quality=self.options.quality,
                kept=sum(state.kept for state in done),
                encoded=sum(state.encoded for state in done),
            ),
            counts={partition: tuple(row) for partition, row in counts.items()},
            protocols=write_protocols(
                self.raw.protocols, self.out, partitions=partitions, keys=packed, overlaps=self._overlaps(done, packed)
            ),
            licence=self.raw.licence,
            excluded=excluded,
            shards=tuple(state.shard for state in done if state.shard is not None),
            options={**self.raw.options, "clips_per_shard": str(self.options.clips_per_shard)},
        )

    def _overlaps(self, done: Sequence[ShardState], packed: Collection[str]) -> dict[str, Overlap]:
        """Count the overlap of training and test in every protocol."""
        clips = {clip.key: clip for clip in self.raw.clips if clip.key in packed and clip.label is not None}
        pictures = {key: name for state in done for key, name in state.pictures.items() if key in clips}
        there = Packed(clips=clips, pictures=pictures)
        return {name: overlap(protocol, there) for name, protocol in self.raw.protocols.items()}

    def _remove_stale(self, manifest: Manifest) -> None:
        """Remove shards of clips that the split files no longer name, and the list of missing clips of an earlier
        refusal."""
        wanted = {plan.state_name for plan in self.plans}
        wanted |= {name for shard in manifest.shards for name in (shard.path, shard.index_path)}
        wanted |= {subset.keys for subset in manifest.subsets()}
        for name in self.out.names():
            if name == EXCLUDED or (OURS.fullmatch(name) and name not in wanted):
                self.out.remove(name)


def notes(states: Sequence[ShardState]) -> tuple[str, ...]:
    """Write notes on the numbers of frames that look different after packing, and on stills with the same picture."""
    found = (
        (
            sum(state.hides for state in states),
            "with colours under pixels that are not opaque: the colours were stored, a viewer shows others",
        ),
        (
            sum(state.dark for state in states),
            "of 16 bits that use at most 14 of them: the upper 8 were stored, which is dark",
        ),
    )
    same = duplicates({key: name for state in states for key, name in state.pictures.items()})
    return (*(f"{count} frame{'s' if count > 1 else ''} {what}" for count, what in found if count), *same)


def count_clips(raw: RawSet) -> dict[str, tuple[int, ...]]:
    """Count the clips per class of each partition in the split files."""
    return {
        partition: tuple(
            sum(clip.label == label for clip in raw.clips if clip.partition == partition)
            for label in range(len(raw.emotions))
        )
        for partition in sorted({clip.partition for clip in raw.clips})
    }


def check_numbering(raw: RawSet) -> None:
    """Raise DataError if a partition has the published counts, but under other classes."""
    counts = count_clips(raw)
    partition = renumbered(raw.dataset, counts)
    if partition is not None:
        raise DataError(
            message(
                f"{raw.dataset} {partition}",
                expected="the published number of clips of each class",
                got=f"the same numbers in another order ({_named(raw.emotions, counts[partition])})",
                do="The split files number the emotions in another order; use those of the release.",
            )
        )


def missing_clips(raw: RawSet, *, jobs: int, progress: bool) -> tuple[int, list[Excluded]]:
    """List all raw folders; returns the number of frames, and the clips without a folder or frames. Opens and writes
    nothing."""
    plans = plan_shards(raw.clips, raw.emotions.names, BuildOptions())
    tasks = [ShardTask(plan=plan, out="memory://dfer-shards-dry-run") for plan in plans]
    with pool.progress_bar(len(plans), label="checking", unit="shards", show=progress) as bar:
        scans = pool.run(scan, tasks, jobs=jobs, bar=bar)
    return sum(found.frames for found in scans), [item for found in scans for item in found.excluded]


def listed(excluded: Sequence[Excluded]) -> str:
    """Format the first clips with their reasons, one per line, and the number of others."""
    lines = [f"  {item.key}: {item.reason}" for item in excluded[:SHOWN]]
    return "\n".join(lines + ([f"  and {len(excluded) - SHOWN} more"] if len(excluded) > SHOWN else []))


def _excluded_text(url: str, excluded: Sequence[Excluded]) -> str:
    clips = "1 clip" if len(excluded) == 1 else f"{len(excluded)} clips"
    return f"{url}: expected every clip of the split files, got {clips} that cannot be packed:\n{listed(excluded)}\n"


def _named(emotions: Emotions, counts: Sequence[int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(emotions.names, counts, strict=True))


def _begun(raw: RawSet, options: BuildOptions) -> bytes:
    plain = {"dataset": raw.dataset, "options": asdict(options), "source": raw.options}
    return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()


def _check_folder(out: Folder, names: Sequence[str], raw: RawSet, options: BuildOptions) -> None:
    """Raise UsageError unless the folder is new, empty, or that of a build with the same options."""
    begun = out.read(BEGUN)
    if begun is None:
        others = [name for name in names if not TEMPORARY.search(name)]
        if others:
            raise UsageError(
                message(
                    out.url,
                    expected="a new or empty folder, or one that dfer-shards build began",
                    got=f"a folder with {', '.join(others[:5])}" + (" and more" if len(others) > 5 else ""),
                    do="Give another folder for the shards.",
                )
            )
    elif begun != _begun(raw, options):
        raise UsageError(
            message(
                out.url,
                expected=f"a build of {_one_line(_begun(raw, options))}",
                got=f"one of {_one_line(begun)}",
                do="Repeat the options of that build, or give another folder for this one.",
            )
        )


def _one_line(begun: bytes) -> str:
    return " ".join(re.sub(r'[{}":\n]+', " ", begun.decode(errors="replace")).replace(" ,", ",").split())[:200]
