"""Run a model's forward pass in a given precision, and turn CUDA's out-of-memory errors into messages."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfer.choices import Precision
from dfer.errors import GpuMemoryError, message
from dfer.recognition import Batch, ClipBatch, Learner, Progress, Recognition, Recognizer


@contextmanager
def enough_gpu_memory() -> Iterator[None]:
    """Turn an out-of-memory error into a GpuMemoryError that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        got = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")
        do = "Lower micro_batch (the step stays the same) or eval_batch, raise engine.zero, or take larger GPUs."
        expected = "the configuration to fit into a GPU's memory"
        raise GpuMemoryError(message(f"host {socket.gethostname()}", expected=expected, got=got, do=do)) from error


def autocast(precision: Precision, device: torch.device, *, cache: bool = True) -> torch.autocast:
    """torch's autocast for a forward pass at `precision`; cache: keep the parameters' copies within it."""
    low = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=low or torch.bfloat16, enabled=low is not None, cache_enabled=cache)


class Task(nn.Module):
    """Computes answer and loss in one forward pass, so that DDP's and ZeRO's hooks see every use of a parameter."""

    def __init__(self, learner: Learner, *, precision: Precision, cache: bool = True) -> None:
        super().__init__()
        self.learner = learner
        self._precision, self._cache = precision, cache

    def forward(self, batch: Batch, progress: Progress | None) -> Any:
        """Loss terms in fp32, or the learner's answer (logits in fp32) when `progress` is None."""
        with autocast(self._precision, batch.index.device, cache=self._cache):
            out = self.learner(batch)
            if progress is not None:
                return {name: term.float() for name, term in self.learner.loss(out, batch, progress).items()}
        if not isinstance(out, Recognition):
            return out
        variants = {name: logits.float() for name, logits in out.variants.items()}
        return replace(out, logits=out.logits.float(), variants=variants)


def inference(recognizer: Recognizer, *, precision: Precision, device: torch.device) -> Callable[[Batch], Recognition]:
    """Return a forward function for evaluation and prediction, without engine or optimizer. Moves the recognizer to
    `device`."""
    task = Task(recognizer, precision=precision).to(device).eval()

    @torch.no_grad()
    def forward(batch: Batch) -> Recognition:
        out = task(batch, None)
        assert isinstance(out, Recognition)
        return out

    return forward


def encoder(
    recognizer: Recognizer, *, precision: Precision, device: torch.device
) -> Callable[[ClipBatch], dict[str, Tensor]]:
    """The frozen tower's pass of `inference`: features by name; moves the recognizer to `device`."""
    recognizer.to(device).eval()

    @torch.no_grad()
    def encode(batch: ClipBatch) -> dict[str, Tensor]:
        with autocast(precision, device):
            return recognizer.encode(batch)

    return encode


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in both convolutions and matrix products; torch's defaults allow it in convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
