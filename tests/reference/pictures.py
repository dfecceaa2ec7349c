"""Pictures for the recorder of the input recipes and for its tests: drawn from integers, the same on every machine."""

import numpy as np
from numpy.typing import NDArray


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Blocks of eight pixels under noise, uint8 [H W 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, axis=0).repeat(8, axis=1)
    noise = rng.integers(-30, 31, (height, width, 3))
    made: NDArray[np.uint8] = np.clip(blocks[:height, :width] + noise, 0, 255).astype(np.uint8)
    return made
