"""Cases of FMix masks, for the recorder and for the tests."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """share: of the pixels that are kept; up: whether their number is rounded up."""

    seed: int
    height: int
    width: int
    share: float
    up: bool
    decay: float = 3.0

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}-{self.seed}"

    def noise(self) -> np.ndarray:
        """The normal noise of the released code, [2 F 2]: it draws [1 H F 2], of which it uses the first two rows."""
        frequencies = self.width // 2 + 1 + self.width % 2
        drawn = np.random.RandomState(self.seed).standard_normal((1, self.height, frequencies, 2))
        return drawn[0, :2]


CASES = (
    Case(seed=1, height=224, width=224, share=0.3, up=True),
    Case(seed=2, height=224, width=224, share=0.81, up=False),
    Case(seed=3, height=224, width=224, share=0.004, up=True, decay=1.5),
    Case(seed=4, height=32, width=48, share=0.77, up=False),
    Case(seed=5, height=33, width=21, share=0.5, up=True),
    Case(seed=6, height=33, width=21, share=0.5, up=False),
    Case(seed=7, height=20, width=45, share=0.999, up=True),
)
