"""An exponential moving average of the trained parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Average:
    """Averages of fp32 tensors: after an update, decay x average + (1 - decay) x tensor. They begin as the tensors.

    The tensors are those that the optimizer updates, under ZeRO flat parts of the parameters: the arithmetic is by
    element, so an average does not depend on how the parameters are divided.
    """

    def __init__(self, masters: Sequence[Tensor], *, decay: float) -> None:
        self.decay = decay
        self._masters = list(masters)
        self._values = {id(master): master.detach().clone() for master in masters}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the tensors after an update."""
        for master in self._masters:
            self.of(master).mul_(self.decay).add_(master, alpha=1 - self.decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Begin again from the tensors."""
        for master in self._masters:
            self.of(master).copy_(master)

    def of(self, master: Tensor) -> Tensor:
        """Return the average of one of the tensors, which may be written to."""
        return self._values[id(master)]
