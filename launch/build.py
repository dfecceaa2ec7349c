"""Building shards as a job: each part is an independent process on any host and builds some shards; the conclusion
combines the shards into a data set.

Records and logs of the job go to the folder `run`, the shards to `out`. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfer import config_files
from dfer.config import ConfigProblem, key
from dfer.errors import did_you_mean, message, without_secrets
from dfer.jobs.parts import Part, absolute_places
from dfer.storage import Folder
from dfer.store.format import MANIFEST, Media
from shards import parts as shard_parts
from shards import pool
from shards.build import SHOWN
from shards.parts import MAX_PARTS, BuildPart
from shards.plan import PLAN, read_plan
from shards.shard import BuildOptions
from shards.sources import SOURCES
from shards.sources.clips import RawSet
from shards.sources.generated import mark_generated

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

grouped = False
DEFAULTS = BuildOptions()


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The options of `dfer-shards build`, and the number of parts.

    run: folder for records and logs of the job. dataset: which data set `raw` holds. out: folder or URL of the shards.
    workers: number of parts, one per task in the queue. jobs: processes of a part, none = one per core it may use.
    media, max_side, quality, clips_per_shard, allow_missing: as the options of `dfer-shards build`.
    """

    job: Literal["build"] = "build"
    run: str = key(path=True, resume="free")
    dataset: str
    raw: str = key(path=True)
    out: str = key(path=True)
    workers: int = 2
    jobs: int | None = None
    media: Media | None = None
    max_side: int | None = None
    quality: int = DEFAULTS.quality
    clips_per_shard: int = DEFAULTS.clips_per_shard
    allow_missing: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in SOURCES:
            do = did_you_mean(self.dataset, SOURCES)
            raise ConfigProblem(message("dataset", expected=f"one of {', '.join(SOURCES)}", got=self.dataset, do=do))
        for name, low in (("workers", 1), ("jobs", 1), ("allow_missing", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigProblem(message(name, expected=f"{low} or more", got=str(value), do="Correct it."))
        if self.workers > MAX_PARTS:
            got, do = str(self.workers), "Correct it."
            raise ConfigProblem(message("workers", expected=f"at most {MAX_PARTS}", got=got, do=do))


Config = BuildConfig


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> BuildConfig:
    """Load the configuration of a build. Raises ConfigProblem."""
    return config_files.load(files, BuildConfig, overrides)


def absolute(config: BuildConfig) -> BuildConfig:
    """Make paths absolute."""
    return absolute_places(config)


def shared(config: BuildConfig) -> dict[str, str]:
    """Return the paths of the raw files and of the shards."""
    return {"raw": config.raw, "out": config.out}


def parts(config: BuildConfig) -> list[Part]:
    """`worker_1` ... `worker_N`."""
    home = config.run.rstrip("/")
    return [Part(name=f"worker_{k}", run=f"{home}/worker_{k}") for k in range(1, config.workers + 1)]


def check(config: BuildConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Read the split files and check the options. Raises DataError, UsageError, StorageError if parts would fail."""
    _raw(config)
    _options(config, None)
    Folder(config.out, what="out").names()


def done(config: BuildConfig, part: Part) -> bool:
    """Whether the part has built its shards, or the whole build is finished. Raises StorageError."""
    out = Folder(config.out, what="out")
    if not out.exists(PLAN):
        return out.exists(MANIFEST)
    plan = read_plan(out)
    return plan is not None and shard_parts.part_done(out, _of(config, part), plan)


def run(config: BuildConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Build the shards of one part. Raises what `shards.parts.make` raises."""
    raw = _raw(config)
    made = shard_parts.make(
        raw,
        config.out,
        _options(config, raw),
        _of(config, part),
        jobs=config.jobs or pool.default_jobs(),
        allow_missing=config.allow_missing,
        progress=False,
    )
    return f"{part.name}: {made.new} shards made, {len(made.states) - made.new} up to date"


def conclude(config: BuildConfig) -> str:
    """Combine the shards of all parts into a data set. Raises what `shards.parts.finish` raises."""
    raw = _raw(config)
    done = shard_parts.finish(
        raw,
        config.out,
        _options(config, raw),
        of=config.workers,
        advice=_Launched(),
        jobs=config.jobs or pool.default_jobs(),
        allow_missing=config.allow_missing,
        progress=False,
    )
    state = "finished before" if done.already else f"finished, made in {config.workers} parts"
    lines = [f"warning: {note}" for note in done.notes]
    return "\n".join([*lines, f"{without_secrets(config.out)}: {len(done.manifest.shards)} shards, {state}"])


def _raw(config: BuildConfig) -> RawSet:
    return mark_generated(SOURCES[config.dataset](Path(config.raw)), Path(config.raw))


def _options(config: BuildConfig, raw: RawSet | None) -> BuildOptions:
    return BuildOptions(
        media=config.media or (raw.media if raw else DEFAULTS.media),
        max_side=config.max_side or (raw.max_side if raw else DEFAULTS.max_side),
        quality=config.quality,
        clips_per_shard=config.clips_per_shard,
    )


def _of(config: BuildConfig, part: Part) -> BuildPart:
    return BuildPart(number=int(part.name.removeprefix("worker_")), of=config.workers)


@dataclass(frozen=True)
class _Launched:
    """Advice for a launched build, whose user knows the parts as workers and runs `dfer-launch`."""

    allow = "allow_missing="
    repeats = True

    def name(self, part: BuildPart) -> str:
        return f"worker_{part.number}"

    def again(self, some: Sequence[BuildPart]) -> str:
        names = [self.name(part) for part in some]
        only = f", also with `--only {','.join(names)}`" if len(names) <= SHOWN else ""
        return f"run the same dfer-launch command again{only}"
