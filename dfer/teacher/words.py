"""A teacher without weights: a fixed random vector per word.

Letters: B pictures, D features.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfer.teacher.config import WordsTeacherConfig
from dfer.teacher.teacher import Teacher

_WORD = re.compile(r"[^\W_]+")


class WordsTeacher(Teacher):
    """The mean over the words of a description of one normally distributed vector per word, drawn from the word."""

    reads_text = True

    def __init__(self, config: WordsTeacherConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.origin = f"random vectors of words, seed {config.seed}"

    def forward(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute features, fp32 [B D]; zeros for a description without words."""
        rows = np.stack([self._row(text) for text in texts]) if texts else np.empty((0, self.dim), np.float32)
        return torch.from_numpy(rows).to(pictures.device)

    def _row(self, text: str) -> NDArray[np.float32]:
        words = _WORD.findall(text.lower())
        drawn = [_vector(word, self.dim, self.config.seed) for word in words]
        return np.mean(drawn, axis=0, dtype=np.float32) if drawn else np.zeros(self.dim, np.float32)


@lru_cache(maxsize=2**16)
def _vector(word: str, dim: int, seed: int) -> NDArray[np.float32]:
    """Draw the vector of a word from its hash."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed} {word}".encode()).digest(), "little")
    return np.random.default_rng(entropy).standard_normal(dim, dtype=np.float32)
