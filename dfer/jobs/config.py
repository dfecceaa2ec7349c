"""RunConfig: the whole configuration of one run, composed of the configurations of the rooms."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfer.choices import Selection
from dfer.config import ConfigProblem, key, to_plain
from dfer.config_files import find, load, read, shown
from dfer.data.config import DataConfig
from dfer.evaluation.results import Published
from dfer.jobs.published import departures
from dfer.jobs.rows import own_file, published_of
from dfer.models.config import ModelConfig
from dfer.models.config_clivp_fer import CnnConfig, check_side
from dfer.models.config_dk_clip import DkClipConfig, check_frames
from dfer.models.files import takes_targets
from dfer.run.config import CheckpointConfig
from dfer.training.config import (
    ConstantScheduleConfig,
    EarlyStopConfig,
    EngineConfig,
    OptimConfig,
    ScheduleConfig,
)

if TYPE_CHECKING:
    from dfer.distributed import World


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The whole configuration of one run; it is written, resolved, into the run folder.

    job: the kind of job that launchers run: `features` computes `data.features` alone, in `workers` independent parts.
    run: run folder. seed: of the order of clips, the random draws and the initial weights. seeds: a cross-validation is
    repeated with each of them, none = only with `seed`. fold: number of the fold (1 for FERV39k). epochs: passes over
    the training clips; may be raised on resume under the constant, step and exponential schedules, whose rates at a
    step do not depend on it. batch: clips of an optimizer step over all ranks; micro_batch: most clips of one forward
    pass of a rank, none = its whole share; eval_batch: the same in evaluation. eval_every: epochs between evaluations
    during training, none = as often as the selection needs. select: which checkpoint is reported; val_share: fraction
    of the training clips held out for `best_on_val`. ema: decay of an exponential moving average of the weights, which
    is then evaluated in place of the weights, none = no average. early_stop: end training when the score of `select`
    stops improving. published: a paper's numbers, to show beside ours. rank_mean: number of ranks, for papers that
    print means over ranks; the result then also has UAR and recalls averaged over that many shares of the test clips.
    record_clips: write the clips of each step into metrics.jsonl.
    """

    job: Literal["crossval", "features"] = key("crossval", resume="free")
    workers: int = key(1, resume="free")
    run: str = key(path=True, resume="free")
    seed: int = 1
    seeds: tuple[int, ...] = key((), resume="free")
    fold: int = 1
    epochs: int = key(resume="raised")
    batch: int = 48
    micro_batch: int | None = key(None, resume="free")
    eval_batch: int = key(16, resume="free")
    eval_every: int | None = key(None, resume="noted")
    log_every: int = key(1, resume="free")
    record_clips: bool = key(False, resume="free")
    select: Selection = "last"
    val_share: float = 0.1
    ema: float | None = None
    early_stop: EarlyStopConfig | None = None
    rank_mean: int | None = key(None, resume="free")
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    schedule: ScheduleConfig = field(default_factory=ConstantScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = key(factory=CheckpointConfig, resume="free")
    published: Published | None = key(None, resume="free")

    def __post_init__(self) -> None:
        for name in ("workers", "fold", "epochs", "batch", "micro_batch", "eval_batch", "eval_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigProblem(f"{name}: expected at least 1, got {value}. Correct it")
        for name, seed in (("seed", self.seed), *(("seeds", seed) for seed in self.seeds)):
            if seed < 0:
                raise ConfigProblem(f"{name}: expected 0 or more, got {seed}. Correct it")
        if len({*self.seeds}) < len(self.seeds):
            listed = ", ".join(map(str, self.seeds))
            raise ConfigProblem(f"seeds: expected each of them once, got {listed}. Correct it")
        if self.rank_mean is not None and self.rank_mean < 2:
            raise ConfigProblem(f"rank_mean: expected at least 2 ranks, got {self.rank_mean}. DK-CLIP's tables have 2")
        if not 0 < self.val_share < 1:
            raise ConfigProblem(f"val_share: expected a share between 0 and 1, got {self.val_share}. 0.1 is usual")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigProblem(f"ema: expected a decay between 0 and 1, got {self.ema}. 0.999 is usual; null: none")
        if self.early_stop is not None and self.select == "last":
            do = "Set select=best_on_val, or early_stop=null"
            raise ConfigProblem(f"early_stop: expected a `select` that evaluates, got select=last. {do}")
        if isinstance(self.model, CnnConfig):
            check_side(self.data.size)
        if isinstance(self.model, DkClipConfig):
            check_frames(self.data.frames, self.model.snippet)
        if not takes_targets(self.model):
            self._refuse_targets()
        if self.data.features is not None:
            self._refuse_without_features()

    def _refuse_targets(self) -> None:
        """Raise ConfigProblem for keys that change what a loss aims at: the method has no such loss."""
        data, mix = self.data, self.data.mix
        mixed = {f"mix.{name}": getattr(mix, name) for name in ("label_smoothing", "mixup", "fmix")}
        found = {"targets": data.targets if data.targets != "labels" else None, **mixed}
        given = [f"data.{name}={value}" for name, value in found.items() if value]
        if given:
            got = f"{', '.join(given)} with model.name={self.model.name}, which has no class targets"
            do = "Leave them out, or choose another method"
            raise ConfigProblem(f"data: expected nothing that changes class targets, got {got}. {do}")

    def _refuse_without_features(self) -> None:
        """Raise ConfigProblem if features are configured for a method that cannot read them, or whose tower's weights
        are not known before the model is built."""
        do = "Leave data.features out"
        if self.model.frozen_tower is None:
            expected = "a method with a frozen image tower, such as linear_probe"
            got = f"model.name={self.model.name}"
            raise ConfigProblem(f"data.features: expected {expected}, got {got}. {do}, or choose another method")
        if self.model.start is not None:
            got = f"model.start={self.model.start}"
            raise ConfigProblem(
                f"data.features: expected weights of model.towers, got {got}. {do}, or set model.start=null"
            )

    def share(self, world: "World") -> int:
        """Number of clips in a micro-batch of a rank in training. A rank's clips of a step are divided into the fewest
        micro-batches of at most `micro_batch` clips; all have equal size, except the last, which may be smaller.
        """
        whole = max(1, self.batch // world.size)
        times = -(-whole // min(self.micro_batch or whole, whole))
        return -(-whole // times)


def load_run(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a run from files and `a.b=c` overrides, joined as by `dfer.config_files.load`.

    If dfer ships SET/METHOD.yaml, that file is used instead of the join of the method and the set. The default of `run`
    for a join is runs/SET/METHOD, by the names of the files. The default of `published` for a row of a published table
    is the paper's numbers, unless the overrides change what those stand for (`dfer.jobs.published`).

    Raises:
        ConfigProblem: a file does not exist, or the files do not give a complete configuration.
    """
    paths = [find(name) for name in files]
    names = [shown(path) for path in paths]
    own, published = own_file(names), published_of(names)
    defaults: dict[str, Any] = {}
    sets = [path.stem for path in paths if path.parent.name == "sets"]
    others = [path.stem for path in paths if path.parent.name != "sets"]
    if len(sets) == 1 and others:
        defaults["run"] = f"runs/{sets[0]}/{'_'.join(others)}"
    used = [own] if own else files
    written = "published" in read(used, RunConfig) or any(
        text.partition("=")[0].partition(".")[0] == "published" for text in overrides
    )
    if published:  # recalls of a paper do not stand beside other scores of the user's
        defaults["published"] = to_plain(replace(published, recall={}, dataset="") if written else published)
    found = load(used, RunConfig, overrides, defaults=defaults)
    if published is None or written or not overrides:
        return found
    plain = load(used, RunConfig, defaults=defaults)
    return replace(found, published=None) if departures(to_plain(plain), to_plain(found)) else found
