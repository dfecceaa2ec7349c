"""RunConfig: everything one run is made of, composed of what each room needs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dfer.choices import Selection
from dfer.config import ConfigProblem, key
from dfer.data.config import DataConfig
from dfer.evaluation.results import Published
from dfer.models.config import ModelConfig
from dfer.run.config import CheckpointConfig
from dfer.training.config import ConstantScheduleConfig, EngineConfig, OptimConfig, ScheduleConfig

if TYPE_CHECKING:
    from dfer.distributed import World


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run is made of; the resolved whole is written into its folder.

    run: run folder. seed: of the order, the draws and the initial weights. seeds: with each of them a cross-validation
    is repeated, none = with `seed` alone. fold: which partition tests (1 for FERV39k). epochs: passes over the training
    clips, may grow under constant and step schedules. batch: clips of an optimizer step over all ranks; micro_batch:
    most clips a rank takes through the model at once, none = its whole share;
    eval_batch: the same in evaluation. eval_every: epochs between evaluations during training, none = as often as the
    selection needs. select: which checkpoint is reported; val_share: part of the training clips held out for
    `best_on_val`. published: a paper's numbers, to show beside ours. record_clips: write into metrics.jsonl which clips
    made up each step.
    """

    run: str = key(path=True)
    seed: int = 1
    seeds: tuple[int, ...] = ()
    fold: int = 1
    epochs: int
    batch: int = 48
    micro_batch: int | None = None
    eval_batch: int = 16
    eval_every: int | None = None
    log_every: int = 1
    record_clips: bool = False
    select: Selection = "last"
    val_share: float = 0.1
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    schedule: ScheduleConfig = field(default_factory=ConstantScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    published: Published | None = None

    def __post_init__(self) -> None:
        for name in ("fold", "epochs", "batch", "micro_batch", "eval_batch", "eval_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigProblem(f"{name}: expected at least 1, got {value}. Correct it")
        for name, seed in (("seed", self.seed), *(("seeds", seed) for seed in self.seeds)):
            if seed < 0:
                raise ConfigProblem(f"{name}: expected 0 or more, got {seed}. Correct it")
        if len({*self.seeds}) < len(self.seeds):
            listed = ", ".join(map(str, self.seeds))
            raise ConfigProblem(f"seeds: expected each of them once, got {listed}. Correct it")
        if not 0 < self.val_share < 1:
            raise ConfigProblem(f"val_share: expected a share between 0 and 1, got {self.val_share}. 0.1 is usual")

    def share(self, world: "World") -> int:
        """Clips a rank takes through the model at once in training: its whole part of a step, or that cut into as few
        micro-batches of at most `micro_batch` as there can be, all equally long but for the last, which may be shorter.
        """
        whole = max(1, self.batch // world.size)
        times = -(-whole // min(self.micro_batch or whole, whole))
        return -(-whole // times)
