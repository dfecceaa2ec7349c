"""Prediction as a job: independent parts answer for pieces of any number of clips; the conclusion joins their tables.

    RUN/pieces/00003-0123456789abcdef.csv   one piece; named by its number and all that it depends on
    RUN/predictions.csv                     all clips in the order of the source: key, predicted, CLASSES, error
    RUN/summary.json                        clips, failures, clips of each predicted class

The files of `dfer.jobs.pieces` lie beside them. Any number of parts, killed and resumed, gives the same bytes. Imports
no torch before a part runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfer import config_files
from dfer.choices import Precision
from dfer.config import ConfigProblem, key
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.errors import DataError, UsageError, message
from dfer.jobs.answering import Answering, answering
from dfer.jobs.parts import Part, absolute_places
from dfer.jobs.pieces import (
    Grid,
    Plan,
    check_workers,
    digest,
    mark_of,
    read_plan,
    refuse_other,
    sha256_of_keys,
    worker_parts,
)
from dfer.jobs.saved import input_of
from dfer.media.clip_folders import ClipFolders
from dfer.run.layout import CONFIG
from dfer.storage import Folder
from dfer.store.cache import Cache
from dfer.store.format import manifest_sha256
from dfer.store.shards import CACHE_GIB, Store

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

grouped = False


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A model, and the clips that it answers for.

    run: folder for pieces and predictions. model: run folder of one fold, or a saved model. shards, clips: folder or
    URL of shards, labelled or not; or a folder below which every folder with pictures is a clip, or a text file that
    lists such folders, one a line; one of the two. partitions: of the shards, none = all. workers: number of parts, one
    process each. batch: most clips of a forward pass, counted with all their views; part of what the probabilities
    depend on, to the last digit. precision: none = the model's own. format: of the predictions: a table, or a JSON
    object a line. loaders: decoding processes of a part. cache, cache_gib, read_ahead: as in DataConfig.
    """

    job: Literal["predict"] = "predict"
    run: str = key(path=True, resume="free")
    model: str = key(path=True)
    shards: str | None = key(None, path=True)
    clips: str | None = key(None, path=True)
    partitions: tuple[str, ...] = ()
    workers: int = key(1, resume="free")
    batch: int = 16
    precision: Precision | None = None
    format: Literal["csv", "jsonl"] = key("csv", resume="free")
    loaders: int = key(2, resume="free")
    cache: str | None = key(None, path=True, resume="free")
    cache_gib: float = key(CACHE_GIB, resume="free")
    read_ahead: bool = key(True, resume="free")

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.clips is None):
            got = "neither" if self.shards is None else "both"
            do = "Set shards=FOLDER_OR_URL, for example."
            raise ConfigProblem(message("predict", expected="shards or clips", got=got, do=do))
        if self.clips is not None and "://" in self.clips:
            do = "Pack the clips into shards, or copy them to a disk."
            raise ConfigProblem(message("clips", expected="a folder or a file on a disk", got=self.clips, do=do))
        if self.clips is not None and self.partitions:
            got, do = ", ".join(self.partitions), "Leave them out."
            raise ConfigProblem(message("partitions", expected="none with clips", got=got, do=do))
        check_workers(self.workers)
        for name, low in {"batch": 1, "loaders": 0}.items():
            if getattr(self, name) < low:
                got = str(getattr(self, name))
                raise ConfigProblem(message(name, expected=f"at least {low}", got=got, do="Correct it."))
        if self.cache_gib <= 0:
            got = str(self.cache_gib)
            raise ConfigProblem(message("cache_gib", expected="more than 0", got=got, do="Correct it."))


Config = PredictConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clips of a job, in order. clips: those of shards; folders: those of a disk; one of the two."""

    clips: ClipSet | None = None
    folders: ClipFolders | None = None

    @cached_property
    def keys(self) -> list[str]:
        """Key of every clip, each once."""
        if self.clips is not None:
            return self.clips.keys
        assert self.folders is not None
        return list(self.folders.names)

    @cached_property
    def _shards(self) -> list[str]:
        """SHA-256 of the shard of every clip."""
        assert self.clips is not None
        hashes = [shard.sha256 for shard in self.clips.table.shards]
        return [hashes[number] for number in self.clips.shard_of.tolist()]

    def identity(self) -> str:
        """Identify all clips: the manifest of shards; names and sizes of all pictures."""
        if self.clips is not None:
            return manifest_sha256(self.clips.store.manifest)
        assert self.folders is not None
        return digest([[*pair] for pair in zip(self.folders.names, self.folders.contents)])

    def contents(self, piece: range) -> list[Any]:
        """Identify the clips of a piece: their keys, with the hash of their shard or of the names and sizes of their
        pictures."""
        keys = self.keys[piece.start : piece.stop]
        if self.clips is not None:
            return [keys, list(dict.fromkeys(self._shards[piece.start : piece.stop]))]
        assert self.folders is not None
        return [keys, list(self.folders.contents[piece.start : piece.stop])]


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that the parts need to know: the model, how it sees clips, the clips and their division into pieces."""

    answering: Answering
    data: DataConfig
    precision: Precision
    source: Source
    grid: Grid
    plan: Plan

    @cached_property
    def names(self) -> list[str]:
        """The file name of every piece."""
        shared = {name: value for name, value in self.plan.depends.items() if name != "source"}
        ids = [digest([shared, self.grid.batch, self.source.contents(piece)]) for piece in self.grid]
        return [f"{number:05d}-{name}.csv" for number, name in enumerate(ids)]


def work_of(config: PredictConfig) -> Work:
    """Open the model's configuration and list the clips.

    Raises:
        UsageError: the model's folder is none, or the model needs the true label. CheckpointError: it has no weights.
        DataError: there are no clips, or the shards are damaged. StorageError.
    """
    found = answering(config.model)
    data = replace(
        found.config.data,
        shards=config.shards or "-",
        join=(),
        features=None,
        workers=config.loaders,
        cache=config.cache,
        cache_gib=config.cache_gib,
        read_ahead=config.read_ahead,
    )
    precision = config.precision or found.config.engine.precision
    source = _source(config)
    grid = Grid.of(len(source.keys), batch=max(1, config.batch // data.num_views))
    depends = {
        "model": found.identity(),
        "input": input_of(found.config, ()),
        "precision": precision + (", tf32" if found.config.engine.tf32 else ""),
        "batch": config.batch,
        "source": source.identity(),
        "partitions": list(config.partitions),
    }
    plan = Plan(
        depends=depends,
        clips=len(source.keys),
        pieces=len(grid),
        keys_sha256=sha256_of_keys(source.keys),
    )
    return Work(answering=found, data=data, precision=precision, source=source, grid=grid, plan=plan)


def _source(config: PredictConfig) -> Source:
    if config.clips is not None:
        return Source(folders=ClipFolders.open(Path(config.clips)))
    assert config.shards is not None
    store = Store(config.shards, cache=Cache(config.cache, budget=int(config.cache_gib * 2**30)))
    clips = ClipSet.every(store, config.partitions or store.manifest.partitions())
    if not len(clips):
        do = "Correct shards or partitions."
        raise DataError(message(store.url, expected="shards with clips", got="no clips", do=do))
    return Source(clips=clips)


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> PredictConfig:
    """Load the configuration of a prediction. Raises ConfigProblem."""
    return config_files.load(files, PredictConfig, overrides)


def absolute(config: PredictConfig) -> PredictConfig:
    """Make paths absolute."""
    return absolute_places(config)


def shared(config: PredictConfig) -> dict[str, str]:
    """Return the paths and URLs of the model and the clips."""
    found = {"model": config.model, "shards": config.shards, "clips": config.clips}
    return {name: place for name, place in found.items() if place is not None}


def parts(config: PredictConfig) -> list[Part]:
    """`worker_1` ... `worker_N`."""
    return worker_parts(config.run, config.workers)


def check(config: PredictConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect what would stop the parts.

    Raises:
        UsageError, CheckpointError, DataError, StorageError: as `work_of`; or the run folder is another run's, cannot
            be written, or was begun with another model or other clips.
    """
    home = Folder(config.run, what="run")
    if home.exists(CONFIG):
        do = "Choose another one with run=FOLDER."
        raise UsageError(message(home, expected="a folder for predictions", got="a run or a saved model", do=do))
    refuse_other(home, work_of(config).plan)
    home.check_writable()


def done(config: PredictConfig, part: Part) -> bool:
    """Whether a part has made all its pieces. Raises CheckpointError, StorageError."""
    return mark_of(part, read_plan(Folder(config.run, what="run")), of=config.workers) is not None


def run(config: PredictConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Answer for the clips of a part's pieces that are not there yet. Raises what `dfer.jobs.predict_pieces.answer`
    does."""
    from dfer.jobs.predict_pieces import answer

    return answer(config, part, work_of(config), stop)


def conclude(config: PredictConfig) -> str:
    """Join the pieces of all parts. Raises what `dfer.jobs.predict_table.join` does."""
    from dfer.jobs.predict_table import join

    return join(Folder(config.run, what="run"), parts(config), form=config.format)
