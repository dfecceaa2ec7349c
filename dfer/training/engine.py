"""The interface of a training step on all ranks, implemented with DeepSpeed (ZeRO 0-3) and with plain DDP.

Parameters, gradients and optimizer state are fp32 in every engine and ZeRO stage; bf16 and fp16 are `torch.autocast`
around the forward pass. So weights and optimizer state can move between engines, stages and world sizes unchanged.
One dynamic loss scale, shared by all engines, keeps fp16 gradients in range. A step's gradient is that of the mean loss
over the global batch, however the batch is divided into ranks and micro-batches.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dfer.distributed import World, average_over_ranks, broadcast_tensors, gather_objects, sum_over_ranks
from dfer.errors import NonFiniteLossError, UsageError, message
from dfer.inference import Task
from dfer.recognition import PADDING, Batch, Coupling, Progress, Recognition
from dfer.run.checkpoints import AVERAGE
from dfer.training import gradients
from dfer.training.average import Average
from dfer.training.config import CONFIGURED, EngineConfig, Rates
from dfer.training.gradients import Gradients
from dfer.training.optim import GroupSetting
from dfer.training.state import Layout, check_names, check_shapes, expected_state, with_fresh

LOSS_SCALE = "loss_scale"
MAX_KEYS = 8


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Result of one step over all ranks. loss and terms: means over the global batch; grad_norm: norm before clipping,
    inf if an fp16 overflow skipped the update; applied: False in that case; clips: number of clips without padding; lr:
    learning rate by group."""

    loss: float
    terms: dict[str, float]
    grad_norm: float
    clips: int
    applied: bool
    lr: dict[str, float]
    loss_scale: float | None = None


class LossScale:
    """Dynamic loss scale for fp16 (Micikevicius et al., 2018): halved on overflow, doubled after 2,000 good steps."""

    START, GROWTH_INTERVAL, LEAST = 2.0**16, 2_000, 2.0**-10

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = self.START if enabled else 1.0
        self.good_steps = 0

    def update(self, *, overflowed: bool) -> None:
        """Update the scale after a step. Raises NonFiniteLossError when no scale keeps the gradients finite."""
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.value /= 2
        elif self.enabled and self.good_steps % self.GROWTH_INTERVAL == 0:
            self.value *= 2
        if self.value < self.LEAST:
            expected, got = "finite fp16 gradients at some loss scale", f"overflow down to scale {self.value:g}"
            do = "Nothing was updated. Use engine.precision=bf16 or fp32, or lower the rates."
            raise NonFiniteLossError(message("gradients", expected=expected, got=got, do=do))


class Engine(ABC):
    """Trains a learner on all ranks. Every public method is COLLECTIVE: all ranks call it, in the same order."""

    def __init__(
        self,
        task: Task,
        *,
        config: EngineConfig,
        settings: Sequence[GroupSetting],
        world: World,
        layout: Layout,
        accumulation: int,
        key_of: Callable[[int], str],
        seed: int,
        coupling: Coupling,
    ) -> None:
        """coupling: that of the run, which is more than the learner's own if clips are mixed."""
        self.task, self.config, self.settings, self.world = task, config, tuple(settings), world
        self.layout, self.accumulation = layout, accumulation
        self.coupling = coupling
        self._key_of, self._seed = key_of, seed
        self._average: Average | None = None
        self._aside: dict[str, Tensor] = {}
        self._scale = LossScale(enabled=config.precision == "fp16")
        self._names = {id(p): name for name, p in task.learner.named_parameters()}
        # Read here, before ZeRO 3 replaces parameters by empty tensors.
        self._shapes = {name: value.shape for name, value in task.learner.state_dict().items()}
        self._gradients = Gradients(task.learner)

    def forward(self, batch: Batch) -> Recognition:
        """Return the recognizer's answer for this rank's batch, in evaluation mode and without gradients."""
        self.task.eval()
        with torch.no_grad():
            out = self.task(batch, None)
        assert isinstance(out, Recognition)
        return out

    def step(self, micro_batches: Sequence[Batch], *, progress: Progress, rates: Rates = CONFIGURED) -> StepReport:
        """Run forward, backward and update for this rank's micro-batches of one global batch, which are on the device.

        Raises:
            NonFiniteLossError: on all ranks and before the update, when any rank's loss is NaN or infinite.
            UsageError: likewise, when a trainable parameter got no gradient from a micro-batch of any rank.
        """
        if len(micro_batches) != self.accumulation:
            raise ValueError(f"expected {self.accumulation} micro-batches a step, got {len(micro_batches)}")
        self.task.train()
        self._set_rates(rates)
        counts = torch.stack([(batch.index != PADDING).sum() for batch in micro_batches])
        clips = sum_over_ranks(counts.sum())
        # The shares of all micro-batches add up to one. DDP and DeepSpeed average over ranks: multiply by world size.
        shares = counts.float() / clips.clamp(min=1)
        terms = []
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with self._gradients.of_one_backward(), self._random_stream(progress.step, i):
                terms.append(self._accumulate(batch, shares[i] * self.world.size, progress, last=last))
        means = self._agreed_means(micro_batches, terms, shares, progress)
        scale = self._scale.value if self._scale.enabled else None
        grad_norm = self._update()
        applied = math.isfinite(grad_norm)
        if not applied and not self._scale.enabled:
            raise NonFiniteLossError(self._gradient_message(progress))
        self._scale.update(overflowed=not applied)
        if self.task.learner.coupling == "micro_batch":
            # Batch statistics differ between ranks; all ranks must evaluate with the same model.
            average_over_ranks([b for b in self.task.learner.buffers() if b.is_floating_point()])
        if self._average is not None and applied:
            self._average.update()
        lr = {str(group["name"]): float(group["lr"]) for group in self._optimizer.param_groups}
        return StepReport(
            loss=sum(means.values()),
            terms=means,
            grad_norm=grad_norm,
            clips=int(clips),
            applied=applied,
            lr=lr,
            loss_scale=scale,
        )

    @contextmanager
    def _random_stream(self, step: int, number: int) -> Iterator[None]:
        """Seed the random draws of a forward pass (dropout) by (seed, step, rank, micro-batch), so that a resumed run
        repeats them and no two micro-batches share a mask. Restores the process's generators afterwards."""
        device = self.world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            text = f"{self._seed}/{step}/{self.world.rank}/{number}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` formats the stack where no GPU is in use
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield

    def weights(self) -> dict[str, Tensor]:
        """Gather all fp32 parameters and buffers by name, on the CPU; empty except on the first rank."""
        self._synchronize()
        full = self.task.learner.state_dict() if self.world.is_first else {}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in full.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load `weights` (full tensors, the same on every rank). Raises CheckpointError when names or shapes are not
        the recognizer's."""
        check_names("weights", got=weights, expected=self._shapes)
        check_shapes("weights", got=weights, expected=self._shapes)
        self._write_weights(weights)
        self._assert_settings()

    def start_average(self, decay: float) -> None:
        """Keep an exponential moving average of the trained parameters from now on; see `Average`."""
        self._average = Average(self._masters(), decay=decay)

    @property
    def decay(self) -> float | None:
        """Decay of the average of the weights; None if there is none."""
        return None if self._average is None else self._average.decay

    def show_average(self) -> None:
        """Put the averaged weights in the place of the trained ones, until `show_trained`; without an average, do
        nothing. Buffers stay those of training."""
        if self._average is None:
            return
        trained = self.weights()
        averages = {key.removesuffix(f"/{AVERAGE}"): value for key, value in self._read_average().items()}
        self._aside = broadcast_tensors(lambda: trained, self.world)
        self.load_weights({**self._aside, **broadcast_tensors(lambda: averages, self.world)})

    def show_trained(self) -> None:
        """Put the trained weights back, bit for bit."""
        if self._aside:
            self.load_weights(self._aside)
        self._aside = {}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Gather the full fp32 optimizer state as `parameter/slot`, on the CPU; empty except on the first rank, and
        before the first step. An average of the weights is another slot, which is there from the beginning."""
        self._synchronize()
        state = {**with_fresh(self._read_state(), self._optimizer, self._trained()), **self._read_average()}
        if self._scale.enabled and self.world.is_first:
            state[LOSS_SCALE] = torch.tensor([self._scale.value, self._scale.good_steps])
        return state

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `optimizer_state` of any engine, ZeRO stage and world size; full tensors on every rank.

        Group settings stay as configured. Raises CheckpointError for another optimizer or other parameters.
        """
        trained = self._trained()
        averages = {key: value for key, value in state.items() if key.endswith(f"/{AVERAGE}")}
        self._load_average(averages)
        slots = {key: value for key, value in state.items() if key != LOSS_SCALE and key not in averages}
        slots = with_fresh(slots, self._optimizer, trained)
        if slots:
            check_names("optimizer state", got=slots, expected=expected_state(self._optimizer, trained))
            parts = [key for key in slots if not key.endswith("/step")]
            check_shapes(
                "optimizer state",
                got={key: slots[key] for key in parts},
                expected={key: self._shapes[key.rpartition("/")[0]] for key in parts},
            )
            self._write_state(slots)
        if LOSS_SCALE in state and self._scale.enabled:
            self._scale.value, self._scale.good_steps = float(state[LOSS_SCALE][0]), int(state[LOSS_SCALE][1])
        self._assert_settings()

    def _load_average(self, averages: Mapping[str, Tensor]) -> None:
        """Load the averages of a checkpoint; without any, begin again from the weights."""
        if self._average is None:
            return
        self._average.reset()
        if averages:
            expected = {f"{name}/{AVERAGE}": shape for name, shape in self._trained().items()}
            check_names("average of the weights", got=averages, expected=expected)
            check_shapes("average of the weights", got=averages, expected=expected)
            self._write_average(averages)

    def close(self) -> None:  # noqa: B027
        """Release the model and its hooks; the engine cannot be used afterwards."""

    @property
    @abstractmethod
    def _optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer whose `param_groups` hold the rates."""

    @abstractmethod
    def _accumulate(self, batch: Batch, weight: Tensor, progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Add weight x loss scale x gradient of one micro-batch; returns its loss terms, detached."""

    @abstractmethod
    def _update(self) -> float:
        """Clip, update and clear the gradients; returns the norm before clipping. Skips the update when the norm is not
        finite."""

    @abstractmethod
    def _read_state(self) -> dict[str, Tensor]: ...

    @abstractmethod
    def _write_state(self, state: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def _masters(self) -> list[Tensor]:
        """Return the fp32 tensors that the optimizer updates on this rank."""

    @abstractmethod
    def _read_average(self) -> dict[str, Tensor]:
        """Gather the averages as `parameter/average` on the first rank; empty if there are none."""

    @abstractmethod
    def _write_average(self, averages: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def _write_weights(self, weights: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def _group_params(self) -> list[set[str]]:
        """Return the names of the parameters that each optimizer group really holds, in the order of `param_groups`."""

    def _trained(self) -> dict[str, torch.Size]:
        """Return the shapes of the parameters in the optimizer's groups, by name."""
        return {name: self._shapes[name] for setting in self.settings for name in setting.params}

    def _synchronize(self) -> None:
        """Wait for the GPU: DeepSpeed may still use its own streams, for which a copy does not wait."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _set_rates(self, rates: Rates) -> None:
        for setting, group in zip(self.settings, self._optimizer.param_groups, strict=True):
            group["lr"] = rates.of(setting.lr)

    def _assert_settings(self) -> None:
        """Assert that every group has its own parameters and settings: libraries have mixed them up on loading."""
        self._set_rates(CONFIGURED)
        expected = [(s.name, s.lr, s.weight_decay, s.others, set(s.params)) for s in self.settings]
        got = [
            (g["name"], g["lr"], g["weight_decay"], {key: g[key] for key in s.others}, params)
            for s, g, params in zip(self.settings, self._optimizer.param_groups, self._group_params(), strict=True)
        ]
        assert got == expected, f"optimizer groups changed on loading: {[g[:4] for g in got]}"

    def _agreed_means(
        self, batches: Sequence[Batch], terms: list[dict[str, Tensor]], shares: Tensor, progress: Progress
    ) -> dict[str, float]:
        """Average the terms over the global batch. COLLECTIVE. Raises on all ranks when a term is not finite on any
        rank, or a parameter got no gradient."""
        names = sorted(terms[0])
        values = torch.stack([torch.stack([t[name] for name in names]) for t in terms])
        bad = ~torch.isfinite(values).all(dim=1)
        left_out = self._gradients.take_missing()
        # One small all-reduce per step: the number of non-finite micro-batches, the number of parameters without a
        # gradient, and each term's part of the mean.
        counts = torch.stack([bad.sum().float(), values.new_tensor(float(len(left_out)))])
        sums = sum_over_ranks(torch.cat([counts, (values * shares[:, None]).sum(0)])).tolist()
        if sums[0]:
            raise NonFiniteLossError(self._loss_message(batches, values, bad, names, progress))
        if sums[1]:
            found = sorted({name for rank in gather_objects(left_out) for name in rank})
            raise UsageError(gradients.missing(found, where=f"step {progress.step} (epoch {progress.epoch})"))
        return dict(zip(names, sums[2:]))

    def _loss_message(
        self, batches: Sequence[Batch], values: Tensor, bad: Tensor, names: list[str], progress: Progress
    ) -> str:
        here = [
            (dict(zip(names, row)), index)
            for is_bad, row, index in zip(bad.tolist(), values.tolist(), [b.index.tolist() for b in batches])
            if is_bad
        ]
        found = [entry for entries in gather_objects(here) for entry in entries]
        wrong = {f"{name}={value}" for terms, _ in found for name, value in terms.items() if not math.isfinite(value)}
        clips = [self._key_of(i) for _, index in found for i in index if i != PADDING]
        more = f" and {len(clips) - MAX_KEYS} more" if len(clips) > MAX_KEYS else ""
        return message(
            f"step {progress.step} (epoch {progress.epoch})",
            expected="a finite loss",
            got=f"{', '.join(sorted(wrong))} in a micro-batch with the clips {', '.join(clips[:MAX_KEYS])}{more}",
            do="Nothing was updated. Look at these clips; lower the rates or set engine.clip_norm; or use "
            "engine.precision=fp32.",
        )

    @staticmethod
    def _gradient_message(progress: Progress) -> str:
        where = f"step {progress.step} (epoch {progress.epoch})"
        do = "Nothing was updated. Lower the rates, or look for a root or a logarithm of 0 in the loss."
        return message(where, expected="finite gradients", got="NaN or infinity behind a finite loss", do=do)
