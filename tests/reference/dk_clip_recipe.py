"""What the arrays of `dk_clip.npz` were computed from: weights drawn by name, inputs, and what is written down.

Shared by the recorder and the tests. Names and shapes of weights are those of the released DK-CLIP code.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from tests.reference import recipe

WIDTH, EMBED, LAYERS, PATCH, SIZE = 128, 128, 2, 8, 32
FRAMES, SNIPPET, CONTEXT, VOCABULARY = 16, 4, 77, 49408
CLIPS = 3
X_FRAMES = 8
CLIP_LAYOUT = {
    "embed_dim": EMBED,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "head_width": 64},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": WIDTH // 64,
        "layers": LAYERS,
    },
}

BLOCK_WIDTH, BLOCK_HEADS, BLOCK_TOKENS = 32, 2, 5

TRACED = (
    "visual.class_embedding",
    "visual.transformer.resblocks.0.message_ln.weight",
    "visual.transformer.resblocks.1.ln_2.bias",
    "visual_semantic.class_embedding",
    "visual_semantic.transformer.resblocks.0.message_fc.bias",
    "msim.positional_embedding",
    "msim.resblocks.0.ln_1.weight",
    "prompts_generator_cmam.alpha",
    "prompts_generator_cmam.decoder.1.norm1.weight",
    "prompts_visual_ln.weight",
)
"""Parameters whose gradients are recorded whole; of all others, the norm and the product with `direction`."""

RATE, DECAY, STEPS = 1e-4, 1e-3, 5
"""Of the five optimizer steps; ten times the rate for messages, prompts and integration, as released."""

STEPPED = (
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.transformer.resblocks.1.message_ln.bias",
    "prompts_generator_cmam.alpha",
    "prompts_visual_ln.bias",
)
"""Parameters that are written down after the steps."""

Array = NDArray[np.float32]


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def tensor(name: str, shape: tuple[int, ...]) -> Array:
    """Normal values from a generator seeded with the name, scaled so that every layer matters."""
    if name.endswith("logit_scale"):
        return np.array(math.log(100), dtype=np.float32)
    x = _rng(name).standard_normal(shape, dtype=np.float32)
    if name.endswith("alpha"):
        return np.float32(0.1) + np.float32(0.03) * x
    if name.endswith(("embedding", "embedding.weight")):
        return np.float32(0.5) * x
    if len(shape) == 1:
        return np.float32(name.endswith("weight")) + np.float32(0.1) * x
    fan_in = shape[0] if name.endswith(("visual.proj", "text_projection", "visual_proj")) else int(np.prod(shape[1:]))
    return x / np.float32(np.sqrt(fan_in))


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    return {name: tensor(name, shape) for name, shape in shapes.items()}


def direction(name: str, shape: tuple[int, ...]) -> Array:
    """What a parameter's gradient is multiplied with, so that one number tells whole gradients apart."""
    return _rng(f"direction of {name}").standard_normal(shape, dtype=np.float32)


def clips() -> NDArray[np.uint8]:
    """Clips [3 16 3 32 32]."""
    return recipe.clips(CLIPS)


def labels() -> NDArray[np.int64]:
    return np.arange(CLIPS) * 2


def block_input(name: str, sequences: int) -> Array:
    """Tokens [5 sequences 32] of a block, in the released order: tokens first."""
    return _rng(f"input of {name}").standard_normal((BLOCK_TOKENS, sequences, BLOCK_WIDTH), dtype=np.float32)


SIMILAR = ((0.9, 0.2, 0.3, 0.4), (0.1, 0.85, 0.8, 0.9), (0.05, 0.1, 0.9, 0.88))
"""Cosine similarities of snippets with their clip, of which 0, 1 and 2 are erased."""


def weighing() -> dict[str, Array]:
    """Unit vectors clip [3 64] and snippets [3 4 64] with the similarities SIMILAR, values [3 4 6 8] to average, and
    logits [3 4 7]."""
    rng = _rng("weighing")
    clip = rng.standard_normal((3, 64))
    clip /= np.linalg.norm(clip, axis=-1, keepdims=True)
    other = rng.standard_normal((3, 4, 64))
    other -= np.einsum("bd,bsd->bs", clip, other)[..., None] * clip[:, None]
    other /= np.linalg.norm(other, axis=-1, keepdims=True)
    cosine = np.array(SIMILAR)[..., None]
    snippets = cosine * clip[:, None] + np.sqrt(1 - cosine**2) * other
    found = {
        "clip": clip,
        "snippets": snippets,
        "values": rng.standard_normal((3, 4, 6, 8)),
        "logits": 10 * rng.standard_normal((3, 4, 7)),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}
