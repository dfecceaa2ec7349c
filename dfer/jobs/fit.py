"""Fit a projection head to pairs of features (Exp-CLIP, Zhao et al., WACV 2025, section 3.2) as a job: one part, or one
for every combination of a sweep; the conclusion is a table of them.

    RUN/fit                               without a sweep
    RUN/temperature_0.01_batch_512        with one
    RUN/fit/head/head.safetensors         the head, `mlp.weight` [D S]; beside it the released layout and a card

Imports no torch before a part runs or is checked.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfer import config_files
from dfer.config import ConfigProblem, changed, key
from dfer.errors import CheckpointError, UsageError, message
from dfer.jobs.extract import places
from dfer.jobs.pairs import PairsConfig
from dfer.jobs.parts import Part, absolute_places
from dfer.models.config import ProjectionConfig
from dfer.run import folder
from dfer.run.config import CheckpointConfig
from dfer.run.layout import CONFIG
from dfer.storage import Folder
from dfer.teacher.config import is_noisy
from dfer.training.config import (
    ConstantScheduleConfig,
    EngineConfig,
    GroupConfig,
    OptimConfig,
    ScheduleConfig,
    SgdConfig,
)

if TYPE_CHECKING:
    from dfer.distributed import World
    from dfer.interruption import Stop

grouped = True
check_s = 600.0
RESULT = "results/fit.json"
HEAD = "head"
"""Name of the parameters' group, and of the folder for the fitted head."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Values to try; every combination is a part. instruction: of the teacher. lr: learning rate."""

    temperature: tuple[float, ...] = ()
    batch: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    lr: tuple[float, ...] = ()
    instruction: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            values = getattr(self, each.name)
            if len({*values}) < len(values):
                listed = ", ".join(map(str, values))
                raise ConfigProblem(f"{each.name}: expected each value once, got {listed}. Correct it in sweep")


KEYS = {
    "temperature": "head.temperature",
    "batch": "batch",
    "epochs": "epochs",
    "lr": f"optim.groups.{HEAD}.lr",
    "instruction": "pairs.teacher.instruction",
}
"""The key of the configuration that each value of a sweep sets."""


def _recipe() -> SgdConfig:
    """SGD as in Exp-CLIP's released script."""
    return SgdConfig(momentum=0.9, weight_decay=1e-4, groups={HEAD: GroupConfig(lr=1e-3)})


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A fit. The defaults are the recipe of Exp-CLIP's released script; its head is drawn as PyTorch's Linear.

    run: folder over all parts. on: fit to stored `features`, or to `pictures`, which both models then see in every
    epoch: for augmented pictures, or a teacher with dropout. flip: probability of mirroring a picture, on pictures.
    pairs: what is fitted. batch: pairs of a step over all ranks, each of which has the others as negatives. eval_every:
    epochs between two measurements of the retrieval accuracy, none = only at the end; val_share: share of the pairs
    that are held out for it, 0 = measured on a random sample of the fitted ones. sweep: values to try.
    """

    job: Literal["fit"] = key("fit", resume="free")
    run: str = key(path=True, resume="free")
    seed: int = 1
    on: Literal["features", "pictures"] = "features"
    flip: float = 0.0
    pairs: PairsConfig
    epochs: int = key(5, resume="raised")
    batch: int = 512
    eval_every: int | None = key(1, resume="free")
    val_share: float = 0.0
    log_every: int = key(1, resume="free")
    head: ProjectionConfig = field(default_factory=ProjectionConfig)
    optim: OptimConfig = field(default_factory=_recipe)
    schedule: ScheduleConfig = field(default_factory=ConstantScheduleConfig)
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(name="ddp"))
    checkpoint: CheckpointConfig = key(factory=CheckpointConfig, resume="free")
    sweep: SweepConfig = key(factory=SweepConfig, resume="free")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "eval_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigProblem(f"{name}: expected at least 1, got {value}. Correct it")
        if self.seed < 0:
            raise ConfigProblem(f"seed: expected 0 or more, got {self.seed}. Correct it")
        if not 0 <= self.val_share < 1:
            raise ConfigProblem(f"val_share: expected a share from 0 to below 1, got {self.val_share}. Correct it")
        if not 0 <= self.flip <= 1:
            raise ConfigProblem(f"flip: expected a probability, got {self.flip}. 0.5 is usual")
        if self.on == "features" and (self.flip or is_noisy(self.pairs.teacher)):
            got = "flip" if self.flip else "pairs.teacher.dropout"
            raise ConfigProblem(
                f"{got}: expected neither flip nor dropout with stored features, which do not change, got {got}. "
                "Set on=pictures, or leave it out"
            )
        if self.sweep.instruction and not hasattr(self.pairs.teacher, "instruction"):
            raise ConfigProblem(
                f"sweep.instruction: expected a teacher that takes instructions, got {self.pairs.teacher.name}. "
                "Leave it out"
            )


Config = FitConfig


def load(files: Sequence[str | Path], overrides: Sequence[str]) -> FitConfig:
    """Load the configuration. Raises ConfigProblem."""
    return config_files.load(files, FitConfig, overrides)


def absolute(config: FitConfig) -> FitConfig:
    """Make paths absolute."""
    return absolute_places(config, places(config.pairs))


def shared(config: FitConfig) -> dict[str, str]:
    """Return the places of pictures and features."""
    kind = "pairs.shards" if config.pairs.shards is not None else "pairs.pictures"
    return {kind: config.pairs.source, "pairs.features": config.pairs.features}


def combinations(config: FitConfig) -> dict[str, dict[str, Any]]:
    """Return the values that each part sets, by the part's name. Instructions are numbered from 1."""
    lists = {each.name: getattr(config.sweep, each.name) for each in fields(SweepConfig)}
    used = {name: values for name, values in lists.items() if values}
    found = {}
    for chosen in itertools.product(*(enumerate(values, start=1) for values in used.values())):
        words = [f"{name}_{n if name == 'instruction' else _named(v)}" for name, (n, v) in zip(used, chosen)]
        found["_".join(words) or "fit"] = {name: value for name, (_, value) in zip(used, chosen)}
    return found


def _named(value: float) -> str:
    """Write a number with all its digits, so that no two have one name: 0.01, 0.010000001, 512, 1e22."""
    return repr(value).removesuffix(".0").replace("+", "")


def parts(config: FitConfig) -> list[Part]:
    """List `fit`, or a part for each combination of the sweep."""
    home = config.run.rstrip("/")
    return [Part(name=name, run=f"{home}/{name}") for name in combinations(config)]


def config_of_part(config: FitConfig, part: Part) -> FitConfig:
    """Return the configuration of one part, with its own folder and values."""
    values = {KEYS[name]: value for name, value in combinations(config)[part.name].items()}
    return changed(replace(config, run=part.run, sweep=SweepConfig()), values)


def check(config: FitConfig, parts: Sequence[Part], worlds: Sequence[int]) -> None:
    """Detect what would stop these parts.

    Raises:
        UsageError: a batch is not divisible by the processes, or larger than the pairs. DataError: there are no pairs
            of this CLIP, teacher, revision and instruction. CheckpointError: a part was begun with another
            configuration or other pairs, or files are missing. StorageError.
    """
    from dfer.jobs.fitting import check_parts

    for part in parts:
        own, home = config_of_part(config, part), Folder(part.run, what="run")
        for size in worlds:
            if own.batch % size:
                do = "Set another batch, or other numbers of nodes or processes."
                raise UsageError(message("batch", expected=f"a multiple of {size} ranks", got=str(own.batch), do=do))
        if home.exists(CONFIG):
            folder.check(home, own)
    check_parts([config_of_part(config, part) for part in parts])


def done(config: FitConfig, part: Part) -> bool:
    """Whether a part has fitted its head for all its epochs. Raises CheckpointError, StorageError."""
    found = read_fit(Folder(part.run, what="run"))
    return found is not None and found["epochs"] >= config_of_part(config, part).epochs


def read_fit(home: Folder) -> dict[str, Any] | None:
    """Read the result of a part; None if there is none. Raises CheckpointError."""
    text = home.text(RESULT)
    if text is None:
        return None
    try:
        plain = json.loads(text)
        if isinstance(plain, dict) and isinstance(plain["epochs"], int):
            return plain
    except (ValueError, KeyError, RecursionError):
        pass
    do = "Remove the file; the same command writes it again."
    raise CheckpointError(message(home.where(RESULT), expected="a result of a fit", got="something else", do=do))


def run(config: FitConfig, part: Part, world: "World | None", stop: "Stop") -> str:
    """Fit one head, on all ranks; resumes. Raises as `dfer.training.loop.train`."""
    from dfer.jobs.fitting import fit

    assert world is not None, "parts are grouped"
    found = fit(config_of_part(config, part), world, stop)
    return f"{part.name}: {line_of(found)}, {part.run}/{HEAD}"


def line_of(found: dict[str, Any]) -> str:
    """Say how well a head fits."""
    text = f"loss {found['loss']:.4f}, picture -> teacher {found['accuracy']:.2%} of {found['of']}"
    trained = found.get("train_accuracy")
    return text if trained is None else f"{text}; {trained:.2%} in the steps of the last epoch"


def conclude(config: FitConfig) -> str:
    """Write the table of all finished parts; returns it. Raises CheckpointError."""
    from dfer.report.fits import write_fits

    rows = {part.name: found for part in parts(config) if (found := read_fit(Folder(part.run))) is not None}
    if not rows:
        do = "The same command fits them."
        raise CheckpointError(message(config.run, expected="a fitted head", got="none", do=do))
    texts = config.sweep.instruction
    return write_fits(Folder(config.run, what="run"), rows, of=len(parts(config)), instructions=texts)
