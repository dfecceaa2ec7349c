"""The interface of a teacher.

Letters: B pictures, C colours, H height, W width, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Teacher(nn.Module, ABC):
    """A frozen model that gives one feature per picture. dim: D. origin: where its weights come from, in words.

    commit: of the weights, if they come from a hub. reads_text: whether it reads descriptions and not pictures.
    """

    dim: int
    origin: str
    commit: str | None = None
    reads_text: bool = False

    @abstractmethod
    def forward(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute features, fp32 [B D], without gradient.

        pictures: uint8 [B C H W], RGB. texts: the description of each picture, read only if `reads_text`.
        """

    def ask(self, instruction: str) -> None:
        """Take another instruction, for the pictures that follow."""
        raise NotImplementedError(f"{type(self).__name__} takes no instruction")
