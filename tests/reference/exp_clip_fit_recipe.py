"""What the arrays of `exp_clip_fit.npz` were computed from; shared by the recorder and the test."""

import numpy as np
from numpy.typing import NDArray

STUDENT, TEACHER, TOKENS, BATCH, STEPS = 24, 40, 3, 12, 5
SIDE = 7
"""Pictures of 3 x 7 x 7 numbers, which hold a pair: the student's feature, then the teacher's tokens."""
LR, MOMENTUM, DECAY, SCALE = 1e-3, 0.9, 1e-4, 100.0
"""Of runner.sh, and the exponential of CLIP's logit scale."""


def pictures() -> NDArray[np.float32]:
    """Numbers in place of pictures, [steps batch 3 side side]."""
    drawn = np.random.RandomState(1).standard_normal((STEPS, BATCH, 3, SIDE, SIDE))
    return drawn.astype(np.float32)


def student(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """The student's features, [batch student]."""
    return flat[:, :STUDENT]


def tokens(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """The teacher's tokens, [batch tokens teacher]."""
    return flat[:, STUDENT : STUDENT + TOKENS * TEACHER].reshape(-1, TOKENS, TEACHER)


def head() -> NDArray[np.float32]:
    """The initial head, [teacher student]."""
    bound = STUDENT**-0.5
    return np.random.RandomState(2).uniform(-bound, bound, (TEACHER, STUDENT)).astype(np.float32)
