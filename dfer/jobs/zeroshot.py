"""The zero-shot suite as a job: one part a data set; its conclusion is one table over all models and prompt kinds.

    RUN/dfew/results     counts and predictions of the data set `dfew`
    RUN/report           the table: report.md, report.json, index.html

The processes of a part compute the features of its clips together; the first one answers with them. Imports no torch
before a part is checked or runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfer import config_files
from dfer.errors import CheckpointError, DataError, UsageError, message
from dfer.jobs.parts import Part
from dfer.jobs.zeroshot_config import ZeroshotConfig, absence, made_absolute
from dfer.jobs.zeroshot_stands import standing_result
from dfer.report.zeroshot import suite_of
from dfer.run.layout import CONFIG
from dfer.storage import Folder

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

grouped = True
check_s = 600.0
Config = ZeroshotConfig


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> ZeroshotConfig:
    """Load the configuration of a suite. Raises ConfigProblem."""
    return config_files.load(files, ZeroshotConfig, overrides)


def absolute(config: ZeroshotConfig) -> ZeroshotConfig:
    """Make paths absolute, also those of heads, weights and texts."""
    return made_absolute(config)


def shared(config: ZeroshotConfig) -> dict[str, str]:
    """Return the places of the data sets that are given, and of the features."""
    places = {f"sets.{name}": each.source for name, each in config.sets.items()}
    return {"features": config.features, **{key: place for key, place in places.items() if place is not None}}


def parts(config: ZeroshotConfig) -> list[Part]:
    """List the data sets that are there. Raises StorageError if a store cannot be asked."""
    home = config.run.rstrip("/")
    there = [name for name, each in config.sets.items() if not absence(each)]
    return [Part(name=name, run=f"{home}/{name}") for name in there]


def check(config: ZeroshotConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect, before any process starts, what would stop these parts: opens every data set that has no result yet.

    Raises:
        DataError: no data set is there, or one that is there cannot be tested. UsageError: the folder is the run of
            something else. CheckpointError: a head is missing, or made for other towers; weights are missing, and
            features made with them too. ConfigProblem: a file of texts cannot be read, or lacks a class. StorageError.
    """
    if not parts:
        got = "; ".join(f"{name}: {absence(each)}" for name, each in config.sets.items())
        do = "Set the folder of one: sets.dfew.shards=FOLDER, for example."
        raise DataError(message("sets", expected="at least one data set that is there", got=got, do=do))
    home = Folder(config.run, what="run")
    if home.exists(CONFIG):
        expected, do = "a folder for all data sets", "Choose another one with run=FOLDER."
        raise UsageError(message(home, expected=expected, got="the run of a single training", do=do))
    _check_texts(config)
    _check_heads(config)
    _check_sets(config, [part.name for part in parts if not done(config, part)])


def _check_sets(config: ZeroshotConfig, names: Sequence[str]) -> None:
    """Raise the error of the first data set that cannot be evaluated, by its clips, the texts or the towers."""
    if not names:
        return
    from concurrent.futures import ThreadPoolExecutor

    from dfer.jobs.zeroshot_features import check_towers
    from dfer.jobs.zeroshot_sets import open_set
    from dfer.models.texts import class_prompts

    with ThreadPoolExecutor(len(names)) as pool:  # stores answer at the same time
        opened = list(pool.map(lambda name: open_set(config, name), names))
    for data in opened:
        for kind in config.texts:
            class_prompts(data.emotions, kind)
    for model in config.models:
        check_towers(config, model, opened)


def _check_texts(config: ZeroshotConfig) -> None:
    """Raise ConfigProblem for a file of texts that cannot be read, or has none."""
    from dfer.models.texts import given_classes, is_file

    for kind in filter(is_file, config.texts):
        given_classes(kind)


def _check_heads(config: ZeroshotConfig) -> None:
    """Raise CheckpointError unless every head is there, as wide as its tower's features, and not of another CLIP;
    ConfigProblem for an architecture that cannot be used."""
    with_heads = {name: model for name, model in config.models.items() if model.head is not None}
    for name, model in with_heads.items():
        path = Path(str(model.head))
        if not path.is_file():
            where, do = f"models.{name}.head={path}", "Correct the path."
            raise CheckpointError(message(where, expected="a local file", got="no such file", do=do))
    if not with_heads:
        return
    from dfer.models.towers import clip_settings  # not at the top: it imports torch
    from dfer.models.zero_shot import read_head

    for name, model in with_heads.items():
        where = f"models.{name}"
        dim = clip_settings(model.towers, model=where)["embed_dim"]
        read_head(Path(str(model.head)), dim=dim, model=where, towers=model.towers)


def done(config: ZeroshotConfig, part: Part) -> bool:
    """Whether a data set has a result of this configuration, of its clips and the weights as they are now.

    Raises:
        CheckpointError: the result is damaged. StorageError.
    """
    return standing_result(config, part.name, part.run) is not None


def run(config: ZeroshotConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Evaluate all models and prompt kinds on one data set, on all ranks. Raises what `evaluate_set` does."""
    from dfer.inference import enough_gpu_memory
    from dfer.jobs.zeroshot_scores import evaluate_set

    assert world is not None, "the processes of a data set are grouped"
    with enough_gpu_memory():
        found = evaluate_set(config, part.name, part.run, world, stop)
    return f"{part.name}: {len(found.models)} models x {len(found.kinds)} prompt kinds on {found.clips:,} clips"


def conclude(config: ZeroshotConfig) -> str:
    """Write the table over the data sets that have a result; returns it as text.

    Raises:
        CheckpointError: there is no result yet, or one is damaged. StorageError.
    """
    from dfer.report.zeroshot_page import write_suite

    home = config.run.rstrip("/")
    absent = {name: why for name, each in config.sets.items() if (why := absence(each))}
    found = {name: standing_result(config, name, f"{home}/{name}") for name in config.sets if name not in absent}
    results = [result for result in found.values() if result is not None]
    if not results:
        do = "Run the suite: dfer zeroshot CONFIG."
        raise CheckpointError(message(home, expected="the result of a data set", got="none", do=do))
    waiting = [name for name, result in found.items() if result is None]
    suite = suite_of(results, absent=absent, waiting=waiting, remark=config.remark)
    return write_suite(suite, Folder(f"{home}/report", what="run"))
