"""Pairs of features as a job: CLIP's image tower and a teacher see every unlabelled picture once. Parts are independent
processes, each of which makes some feature shards; the conclusion writes the manifest.

    FEATURES/KEY/...             the feature shards (`dfer.data.features`), named by what they depend on, and the commit
                                 of a teacher from a hub (`dfer.teacher.build.agree_commit`)
    RUN/plan.json, RUN/worker_3  the job's own files (`dfer.jobs.pieces`)
    RUN/instruction_2/...        the same for each of several instructions, which make pairs of their own

Imports no torch before a part runs or is checked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfer import config_files
from dfer.config import ConfigProblem, changed, key
from dfer.errors import CheckpointError, DataError, message
from dfer.jobs.pairs import PairsConfig
from dfer.jobs.parts import Part, absolute_places
from dfer.jobs.pieces import (
    Grid,
    Plan,
    Progress,
    agree,
    check_workers,
    forget,
    mark_done,
    mark_of,
    marks,
    read_plan,
    refuse_other,
    sha256_of_keys,
    share,
    worker_parts,
)
from dfer.storage import Folder
from dfer.teacher.config import is_noisy

if TYPE_CHECKING:
    from torch import Tensor

    from dfer.data.features import FeatureSet, FeatureShard
    from dfer.distributed import World
    from dfer.interruption import Stop
    from dfer.jobs.pair_data import Pairs, Source

grouped = False
check_s = 600.0


@dataclass(frozen=True, kw_only=True)
class InstructionsConfig:
    """instruction: of the teacher, each of which makes pairs of its own; as `sweep.instruction` of a fit, which finds
    them."""

    instruction: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({*self.instruction}) < len(self.instruction):
            listed = ", ".join(self.instruction)
            raise ConfigProblem(f"instruction: expected each value once, got {listed}. Correct it in sweep")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Pairs of features to store. run: folder of the job's own files. workers: number of parts, of each instruction if
    there is a sweep."""

    job: Literal["extract"] = key("extract", resume="free")
    run: str = key(path=True, resume="free")
    workers: int = key(1, resume="free")
    pairs: PairsConfig
    sweep: InstructionsConfig = key(factory=InstructionsConfig, resume="free")

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if is_noisy(self.pairs.teacher):
            do = "Set pairs.teacher.dropout=false, or fit on pictures: dfer fit with on: pictures."
            expected = "a teacher whose features do not change"
            raise ConfigProblem(message("pairs.teacher", expected=expected, got="dropout=true", do=do))
        if self.sweep.instruction and not hasattr(self.pairs.teacher, "instruction"):
            expected, got = "a teacher that takes instructions", self.pairs.teacher.name
            raise ConfigProblem(message("sweep.instruction", expected=expected, got=got, do="Leave it out."))


Config = ExtractConfig


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> ExtractConfig:
    """Load the configuration. Raises ConfigProblem."""
    return config_files.load(files, ExtractConfig, overrides)


def absolute(config: ExtractConfig) -> ExtractConfig:
    """Make paths absolute."""
    return absolute_places(config, places(config.pairs))


def places(pairs: PairsConfig) -> dict[str, str]:
    """Return the values of keys that name files in place of names, by dotted key."""
    from dfer.models.files import is_tag

    named = {"pairs.towers.arch": pairs.towers.arch if pairs.towers.arch.endswith(".json") else None}
    weights = pairs.towers.pretrained
    named["pairs.towers.pretrained"] = weights if weights and not is_tag(pairs.towers.arch, weights) else None
    model = getattr(pairs.teacher, "model", None)
    named["pairs.teacher.model"] = model if model and Path(model).is_dir() else None
    return {name: value for name, value in named.items() if value}


def shared(config: ExtractConfig) -> dict[str, str]:
    """Return the places of pictures and features."""
    kind = "pairs.shards" if config.pairs.shards is not None else "pairs.pictures"
    return {kind: config.pairs.source, "pairs.features": config.pairs.features}


def all_gpus(config: ExtractConfig) -> str:
    """Return the setting that spreads the teacher over several GPUs; empty if it uses one."""
    return "pairs.teacher.devices=all" if getattr(config.pairs.teacher, "devices", "one") == "all" else ""


def by_instruction(config: ExtractConfig) -> dict[str, ExtractConfig]:
    """Return the job of each instruction by its name, `instruction_1`; without a sweep, the job itself by no name."""
    if not config.sweep.instruction:
        return {"": config}
    one, home = replace(config, sweep=InstructionsConfig()), config.run.rstrip("/")
    names = {f"instruction_{number}": text for number, text in enumerate(config.sweep.instruction, start=1)}
    return {
        name: changed(replace(one, run=f"{home}/{name}"), {"pairs.teacher.instruction": text})
        for name, text in names.items()
    }


def _own(config: ExtractConfig, part: Part) -> ExtractConfig:
    """Return the job of a part's instruction."""
    return by_instruction(config)[part.name.rpartition("/")[0]]


def parts(config: ExtractConfig) -> list[Part]:
    """`worker_1` ... `worker_N`, or `instruction_1/worker_1` ... with a sweep."""
    return [
        replace(part, name="/".join(filter(None, (name, part.name))))
        for name, own in by_instruction(config).items()
        for part in worker_parts(own.run, own.workers)
    ]


def check(config: ExtractConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect what would stop the parts.

    Raises:
        CheckpointError: files of CLIP or teacher are missing, or the run folder was begun with other features.
        DataError: the pictures cannot be read, or have no descriptions for a teacher that reads them. StorageError.
        UsageError: a package is missing.
    """
    from dfer.jobs.pair_data import check_descriptions, check_tower

    works = _works(config, parts)
    for work in works:
        home = Folder(work.config.run, what="run")
        refuse_other(home, work.plan)
        home.check_writable()
    missing = [work for work in works if not work.stands]
    for work in missing:
        work.home.check_writable()
    for work in missing[:1]:  # all have the same models and pictures
        check_tower(config.pairs)
        check_descriptions(config.pairs, work.source)


def done(config: ExtractConfig, part: Part) -> bool:
    """Whether a part has computed its features. Raises CheckpointError, StorageError."""
    return mark_of(part, read_plan(Folder(_own(config, part).run, what="run")), of=config.workers) is not None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The features to compute with one instruction. config: without a sweep. home: where they are stored. grid: how the
    pictures are divided into shards and batches, so that any number of parts makes the same bytes."""

    config: ExtractConfig
    source: "Source"
    home: Folder
    plan: Plan
    grid: Grid

    @classmethod
    def of(cls, config: ExtractConfig, source: "Source") -> "_Work":
        """Plan what is computed for pictures. Raises DataError, StorageError, CheckpointError."""
        from dfer.jobs.pair_data import home_of, key_of

        found = key_of(config.pairs, source)
        grid = Grid.of(len(source), batch=config.pairs.batch)
        keys = sha256_of_keys(source.keys)
        plan = Plan(depends=found, clips=len(source), pieces=len(grid), keys_sha256=keys)
        return cls(config=config, source=source, home=home_of(config.pairs, found), plan=plan, grid=grid)

    @property
    def stands(self) -> bool:
        """Whether all features are stored, by the manifest and the names of the shards."""
        from dfer.data.features import read_manifest

        manifest = read_manifest(self.home)
        return manifest is not None and {shard.path for shard in manifest.shards} <= {*self.home.children()}

    @property
    def keys(self) -> list[list[str]]:
        """The names of the pictures of each shard."""
        keys = self.source.keys
        return [keys[piece.start : piece.stop] for piece in self.grid]

    def standing(self, only: Sequence[int] | None = None) -> "dict[int, FeatureShard]":
        """The complete shards, by number."""
        from dfer.data.features import standing_shards

        return standing_shards(self.home, self.keys, only=only)


def _works(config: ExtractConfig, parts: Sequence[Part]) -> "list[_Work]":
    """Open the pictures once, and plan the instructions of these parts. Raises as `_Work.of`."""
    from dfer.jobs.pair_data import open_source, refuse_no_pictures

    source = open_source(config.pairs)
    refuse_no_pictures(source)
    runs = {_own(config, part).run for part in parts}
    return [_Work.of(own, source) for own in by_instruction(config).values() if own.run in runs]


def run(config: ExtractConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Compute the features of a part's pictures that are not stored yet.

    Raises:
        CheckpointError: the job was begun with other features. DataError: a picture cannot be read. StorageError.
        StoppedError: a stop was requested; complete shards are kept.
    """
    from dfer.distributed import World
    from dfer.jobs.pair_data import loaded

    return run_with(config, part, stop, lambda: loaded(_own(config, part).pairs, World().device))


def run_with(config: ExtractConfig, part: Part, stop: "Stop", models: Callable[[], "Pairs"]) -> str:
    """Do what `run` does. models: loads CLIP and the teacher, if there is work for them."""
    from dfer.data.features import MANIFEST
    from dfer.teacher.build import agree_commit

    works = {work.config.run: work for work in _works(config, parts(config))}
    work = works.pop(_own(config, part).run)
    agree(Folder(work.config.run, what="run"), work.plan)
    mine = share(len(work.grid), part, of=config.workers)
    pictures = sum(len(work.grid[number]) for number in mine)
    standing = [*work.standing(mine)]
    todo = [number for number in mine if number not in standing]
    if todo:
        work.home.remove(MANIFEST)  # of shards of which some were lost or damaged since
    earlier = mark_of(part, work.plan, of=config.workers) or {}
    facts = {name: str(value) for name, value in earlier.items() if name == "origin"}
    if todo:
        before = sum(len(work.grid[number]) for number in standing)
        progress = Progress(part, what="extract", total=pictures, standing=before, unit="pictures")
        loaded = models()
        agree_commit(work.home, loaded.teacher)
        progress.start()
        facts["origin"] = _compute(loaded, work, todo, stop, progress, [other.home for other in works.values()])
        progress.end()
    mark_done(part, work.plan, of=config.workers, **facts)
    return f"{part.name}: {pictures:,} pictures in {len(mine)} shards, {len(standing)} of them stored before"


def _compute(
    models: "Pairs", work: _Work, todo: Sequence[int], stop: "Stop", progress: Progress, others: Sequence[Folder]
) -> str:
    """Compute and write shards; returns the origins of both models, in words. others: where the pairs of the same
    pictures and student with other instructions are stored."""
    from dfer.data.features import write_shard
    from dfer.training.loop import stopped

    plan = [(number, batch) for number in todo for batch in _batches(work.grid, number)]
    students = _students(work, todo, others)
    made = models.encoded(work.source, [batch for _, batch in plan], students=students)
    rows: list[dict[str, Tensor]] = []
    for (number, batch), features in zip(plan, made, strict=True):
        rows.append(features)
        progress.add(len(batch))
        if batch.stop == work.grid[number].stop:
            write_shard(work.home, number, models.joined(rows), keys=work.keys[number])
            rows = []
        if stop.requested:
            raise stopped(stop, at=f"the features in {work.home}")
    return models.origin


def _students(work: _Work, todo: Sequence[int], others: Sequence[Folder]) -> "Iterator[Tensor | None]":
    """Yield the student's features of each batch of these shards out of the shards of other instructions, None where
    there are none yet."""
    from dfer.data.features import read_shard, standing_shards
    from dfer.models.projection import STUDENT

    found: dict[int, tuple[Folder, FeatureShard]] = {}
    for home in others:
        standing = standing_shards(home, work.keys, only=[number for number in todo if number not in found])
        found |= {number: (home, shard) for number, shard in standing.items()}
    for number in todo:
        rows = read_shard(*found[number])[0][STUDENT] if number in found else None
        first = work.grid[number].start
        for batch in _batches(work.grid, number):
            yield None if rows is None else rows[batch.start - first : batch.stop - first]


def _batches(grid: Grid, number: int) -> Iterator[range]:
    """The positions of the pictures of each batch of a shard."""
    piece = grid[number]
    return (range(at, min(at + grid.batch, piece.stop)) for at in range(piece.start, piece.stop, grid.batch))


def conclude(config: ExtractConfig) -> str:
    """Write the manifest over the shards of all parts, of each instruction.

    Raises:
        CheckpointError: a part is not done, or a shard is missing or damaged; the same command then computes it again.
    """
    from dfer.jobs.pair_data import let_go

    let_go()
    return "\n".join(map(_concluded, _works(config, parts(config))))


def _whole(work: _Work) -> "FeatureSet | None":
    """Read the stored pairs; None without a manifest, which is removed if its shards are lost or damaged."""
    from dfer.data.features import MANIFEST, FeatureSet

    try:
        return FeatureSet.open(work.home)
    except DataError:
        work.home.remove(MANIFEST)
        return None


def _concluded(work: _Work) -> str:
    """Write the manifest of one instruction. Raises as `conclude`."""
    from dfer.data.features import FeatureSet, write_manifest

    home, config = Folder(work.config.run, what="run"), work.config
    found = marks(home, parts(config), work.plan)
    pairs = _whole(work)
    if pairs is None:
        shards = work.standing()
        missing = len(work.grid) - len(shards)
        if missing:
            forget(home, parts(config))
            expected, got = f"{len(work.grid)} whole shards", f"{missing} missing or damaged"
            raise CheckpointError(message(work.home, expected=expected, got=got, do="The same command makes them."))
        origins = [str(mark["origin"]) for mark in found if "origin" in mark]
        origin = origins[0] if origins else ""
        write_manifest(work.home, work.plan.depends, [shard for _, shard in sorted(shards.items())], origin=origin)
        pairs = FeatureSet.open(work.home)
    assert pairs is not None, "the manifest was written"
    dims = ", ".join(f"{name} {width}" for name, width in sorted(pairs.dims.items()))
    size = sum(value.nbytes for value in pairs.features.values()) / 2**30
    return f"{work.home}: {len(pairs):,} pairs ({dims}), {size:.2f} GiB; dfer fit with the same `pairs` reads them"
