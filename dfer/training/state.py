"""The contents of a training checkpoint: the position of training, and the names and shapes of its tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dfer.config import ConfigProblem, from_plain
from dfer.errors import CheckpointError, message
from dfer.recognition import Coupling
from dfer.training.config import EarlyStopConfig


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Position in a run: the next step. epoch and step count from 0, step within the epoch, global_step over all
    epochs; evaluate: the epoch that just ended still has to be evaluated; bad_clips: keys of clips replaced so far.
    record, stale: of an early stop, the score in percent that an evaluation has to exceed, and how many in a row did
    not. No random state: every draw is a function of (seed, epoch, sample)."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    evaluate: bool = False
    bad_clips: tuple[str, ...] = ()
    record: float | None = None
    stale: int = 0

    def judged(self, score: float, rule: EarlyStopConfig | None) -> "TrainingState":
        """Return the state after an evaluation with this score in percent."""
        if rule is None:
            return self
        if self.record is not None and score < self.record + rule.min_delta:
            return replace(self, stale=self.stale + 1)
        return replace(self, record=score, stale=0)

    def after_step(self, *, steps_per_epoch: int) -> "TrainingState":
        """Return the position after one more step."""
        epoch_done = self.step + 1 == steps_per_epoch
        return replace(
            self,
            epoch=self.epoch + epoch_done,
            step=0 if epoch_done else self.step + 1,
            global_step=self.global_step + 1,
            evaluate=False,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's state.json."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Any, *, where: object) -> "TrainingState":
        """Read the position from a checkpoint's state. Raises CheckpointError when there is none."""
        try:
            return from_plain(cls, plain)
        except ConfigProblem as problem:
            raise CheckpointError(f"{where}: no position of a training run in its state ({problem}).") from problem

    @classmethod
    def from_json(cls, plain: Any, *, where: object, steps_per_epoch: int) -> "TrainingState":
        """As `from_plain`, and check the position. Raises CheckpointError when it does not fit `steps_per_epoch`."""
        state = cls.from_plain(plain, where=where)
        if state.global_step != state.epoch * steps_per_epoch + state.step or state.step >= steps_per_epoch:
            got = f"epoch {state.epoch}, step {state.step}, global step {state.global_step}"
            expected, do = (
                f"a position in epochs of {steps_per_epoch} steps",
                "Use the same data and batch, or a new run.",
            )
            raise CheckpointError(message(where, expected=expected, got=got, do=do))
        return state


LAYOUT = "layout"
"""Key of a checkpoint's state: how the steps up to it were cut."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a step is cut. ranks: processes that share it; micro_batch: clips that a rank takes at once."""

    ranks: int
    micro_batch: int

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{ranks} with micro-batches of {self.micro_batch}"


def fixed_layout(coupling: Coupling, state: Mapping[str, Any], *, where: object) -> Layout | None:
    """Return the layout of a training whose micro-batches are coupled; None for others, and for checkpoints of older
    versions, which tell none. state: of a checkpoint. Raises CheckpointError for a damaged one."""
    if coupling != "micro_batch" or LAYOUT not in state:
        return None
    try:
        return from_plain(Layout, state[LAYOUT])
    except ConfigProblem as problem:
        raise CheckpointError(f"{where}: no layout of a step in its state ({problem}).") from problem


def refuse_other_layout(coupling: Coupling, layout: Layout, state: Mapping[str, Any], *, where: object) -> None:
    """Raise CheckpointError where a method whose micro-batches are coupled would go on with steps cut otherwise.

    state: of the checkpoint to go on from; those of older versions tell no layout.
    """
    before = fixed_layout(coupling, state, where=where)
    if before is not None and before != layout:
        why = "The clips of a micro-batch share statistics or partners in this run, so others compute something else."
        do = f"{why} Start it on {before}, or a new run with run=FOLDER."
        raise CheckpointError(message(where, expected=f"{before}, as it was started on", got=str(layout), do=do))


def state_slots(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of the tensors that the optimizer keeps for each parameter; `step` is a single number."""
    if isinstance(optimizer, torch.optim.AdamW | torch.optim.Adam):
        return ("exp_avg", "exp_avg_sq", "step")
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()


def expected_state(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> set[str]:
    """Return the keys `parameter/slot` of the optimizer's state for these parameters."""
    return {f"{name}/{slot}" for name in names for slot in state_slots(optimizer)}


def with_fresh(
    state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Add zeros for parameters that have no state yet, since they never had a gradient. An empty state stays empty.

    shapes: of the trained parameters, by name.
    """
    known = {key.rpartition("/")[0] for key in state}
    new = [name for name in shapes if name not in known] if state else []
    zeros = {key: torch.zeros(_shape(key, shapes)) for key in expected_state(optimizer, new)}
    return {**state, **zeros}


def _shape(key: str, shapes: Mapping[str, torch.Size]) -> torch.Size:
    name, _, slot = key.rpartition("/")
    return torch.Size() if slot == "step" else shapes[name]


def check_names(what: str, *, got: Iterable[str], expected: Iterable[str]) -> None:
    """Raise CheckpointError that lists names missing from the checkpoint and names unknown to the model."""
    missing, unexpected = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or unexpected:
        found = f"missing {_some(missing)}; unexpected {_some(unexpected)}"
        do = "Use the configuration the checkpoint was trained with."
        raise CheckpointError(message(f"checkpoint {what}", expected="the names of this model", got=found, do=do))


def check_shapes(what: str, *, got: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raise CheckpointError that lists the tensors whose shape is not the model's."""
    wrong = [
        f"{name} {tuple(value.shape)} for {tuple(expected[name])}"
        for name, value in got.items()
        if value.shape != expected[name]
    ]
    if wrong:
        do = "Use the configuration the checkpoint was trained with."
        raise CheckpointError(
            message(f"checkpoint {what}", expected="the shapes of this model", got=_some(wrong), do=do)
        )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
