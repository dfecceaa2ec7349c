"""What the recorded arrays of the CNNs and of CLIVP-FER's head were computed from, shared by recorders and tests.

Weights are drawn by name, so that none need to be stored. Names are those of the released code.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

NETS = ("vgg19", "resnet18")
SIZE, CLASSES, PICTURES, SHOWN = 44, 7, 4, 4
"""Pixels, classes, pictures of a batch, first numbers that are stored of every tensor."""
STEPS, STEP_SIZE, STEP_PICTURES = 5, 32, 3
"""Optimizer steps, their pixels and pictures. They are computed in double precision: five steps multiply the rounding
of single precision by more than a thousand, so that another order of the same sums would give other weights."""
LR, MOMENTUM, DECAY, CLAMP = 0.01, 0.9, 5e-4, 0.1
"""mainpro_FER.py."""

EMBED, FACES, CAPTIONS, HEAD_STEPS = 512, 12, 6, 5
HEAD_LR, HEAD_DECAY = 3e-3, 1e-4
"""CLIP_KMU.py."""


def tensor(name: str, shape: tuple[int, ...]) -> Array:
    """Normal values from a generator seeded with the name, scaled so that a deep network with ReLU keeps its spread."""
    x = generator(name).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return np.exp(np.float32(0.2) * x)
    if name.endswith(("bias", "running_mean")):
        return np.float32(0.1) * x
    if len(shape) == 1:
        return 1 + np.float32(0.1) * x
    return x * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Weights by name; counters are left to the network."""
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items() if not name.endswith("tracked")}


def pictures() -> NDArray[np.uint8]:
    """Grey pictures [4 3 44 44], the same in every channel, each with a pattern of its own and noise."""
    rng = generator("pictures")
    coarse = rng.uniform(0, 255, (PICTURES, 1, SIZE // 4, SIZE // 4)).repeat(4, axis=2).repeat(4, axis=3)
    grey = np.clip(coarse + rng.normal(0, 25, (PICTURES, 1, SIZE, SIZE)), 0, 255)
    return np.repeat(grey, 3, axis=1).astype(np.uint8)


def step_pictures() -> NDArray[np.uint8]:
    """The corners of three of them, [3 3 32 32]."""
    return np.ascontiguousarray(pictures()[:STEP_PICTURES, :, :STEP_SIZE, :STEP_SIZE])


def labels() -> NDArray[np.int64]:
    return np.arange(PICTURES) % CLASSES


def image_features() -> Array:
    """Features [12 512] of the size of CLIP's, about 10."""
    return np.float32(0.45) * generator("image features").standard_normal((FACES, EMBED), dtype=np.float32)


def text_features() -> Array:
    """Features [6 512] of the captions, not normalised."""
    return np.float32(0.4) * generator("text features").standard_normal((CAPTIONS, EMBED), dtype=np.float32)


def face_labels() -> NDArray[np.int64]:
    return np.arange(FACES) * 5 % CAPTIONS


def dropout_seed(step: int) -> int:
    """torch's seed before the forward pass of a step."""
    return 1000 + step


def digest(tensors: Mapping[str, Array]) -> dict[str, NDArray[np.float64] | Array]:
    """Sum and norm [P 2] of each tensor, and its first numbers [P 4], in the order of the names."""
    names = sorted(tensors)
    flat = [np.asarray(tensors[name], dtype=np.float64).ravel() for name in names]
    first = [np.pad(x[:SHOWN], (0, SHOWN - min(SHOWN, len(x)))) for x in flat]
    return {
        "sums": np.array([[x.sum(), np.sqrt((x**2).sum())] for x in flat]),
        "first": np.array(first, dtype=np.float32),
    }
