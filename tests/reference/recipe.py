"""What the recorded arrays were computed from: weights drawn by name, clips, and the cases.

Shared by the recorder and the tests, so that no weights need to be stored. Names and shapes are those of the released
DFER-CLIP checkpoints; the CLIP is a small one with the embedding width of 512 that the released code is written for.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EMBED, WIDTH, LAYERS, PATCH, SIZE, CONTEXT, VOCABULARY = 512, 128, 2, 8, 32, 77, 49408
FRAMES, HEADS, HEAD_DIM, MLP = 16, 8, 64, 1024
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

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    classes: int = 7
    text: str = "class_descriptor"
    contexts: int = 8
    position: str = "end"
    shared: bool = False
    depth: int = 1


CASES = (
    Case(name="published"),
    Case(name="published_11", classes=11),
    Case(name="middle_depth2", position="middle", depth=2),
    Case(name="front_shared_names_depth3", position="front", shared=True, contexts=4, text="class_names", depth=3),
    Case(name="front_16_context_11", classes=11, position="front", contexts=16, text="class_names_with_context"),
    Case(name="middle_odd_shared_names", position="middle", shared=True, contexts=5, text="class_names"),
    Case(name="end_16_shared_context_depth2", contexts=16, shared=True, text="class_names_with_context", depth=2),
    Case(name="no_contexts", contexts=0, text="class_names_with_context"),
    Case(name="names_11_depth3", classes=11, contexts=4, text="class_names", depth=3),
)


def tensor(name: str, shape: tuple[int, ...]) -> Array:
    """Normal values from a generator seeded with the name, scaled so that every layer matters."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if name.endswith(
        ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")
    ):
        return 1 + np.float32(0.1) * x
    if name.endswith("bias"):
        return np.float32(0.1) * x
    if name.endswith(("embedding", "embedding.weight", "ctx", "cls_token")):
        return np.float32(0.5) * x
    fan_in = shape[0] if name.endswith(("proj", "text_projection")) else int(np.prod(shape[1:]))
    return x / np.float32(np.sqrt(max(fan_in, 1)))


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """An OpenAI CLIP's names and shapes."""
    visual = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, WIDTH),
        "visual.proj": (WIDTH, EMBED),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **_norm("visual.ln_pre"),
        **_norm("visual.ln_post"),
        **_blocks("visual.transformer.resblocks"),
    }
    text = {
        "positional_embedding": (CONTEXT, WIDTH),
        "text_projection": (WIDTH, EMBED),
        "token_embedding.weight": (VOCABULARY, WIDTH),
        **_norm("ln_final"),
        **_blocks("transformer.resblocks"),
    }
    return {**visual, **text, "logit_scale": ()}


def new_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the method adds to CLIP."""
    shapes: dict[str, tuple[int, ...]] = {
        "prompt_learner.ctx": (case.contexts, WIDTH) if case.shared else (case.classes, case.contexts, WIDTH),
        "temporal_net.cls_token": (1, 1, EMBED),
        "temporal_net.pos_embedding": (1, FRAMES + 1, EMBED),
    }
    for layer in range(case.depth):
        root = f"temporal_net.temporal_transformer.layers.{layer}"
        shapes |= {
            **_norm(f"{root}.0.fn.norm"),
            f"{root}.0.fn.fn.to_qkv.weight": (3 * HEADS * HEAD_DIM, EMBED),
            **_linear(f"{root}.0.fn.fn.to_out.0", EMBED, HEADS * HEAD_DIM),
            **_norm(f"{root}.1.fn.norm"),
            **_linear(f"{root}.1.fn.fn.net.0", MLP, EMBED),
            **_linear(f"{root}.1.fn.fn.net.3", EMBED, MLP),
        }
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    return {name: tensor(name, shape) for name, shape in shapes.items()}


def clips(number: int = 3) -> NDArray[np.uint8]:
    """Clips [number 16 3 32 32] with a pattern of their own, noise in every frame, and a drift over time."""
    rng = np.random.default_rng(20230815)
    pattern = rng.uniform(0, 255, (number, 1, 3, SIZE, SIZE))
    drift = np.linspace(-1, 1, FRAMES).reshape(1, FRAMES, 1, 1, 1) * rng.uniform(-60, 60, (number, 1, 3, 1, 1))
    noise = rng.normal(0, 30, (number, FRAMES, 3, SIZE, SIZE))
    return np.clip(pattern + drift + noise, 0, 255).astype(np.uint8)


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.weight": (WIDTH if not name.startswith("temporal") else EMBED,),
        f"{name}.bias": (WIDTH if not name.startswith("temporal") else EMBED,),
    }


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _blocks(root: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        block = f"{root}.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
            **_linear(f"{block}.attn.out_proj", WIDTH, WIDTH),
            **_norm(f"{block}.ln_1"),
            **_norm(f"{block}.ln_2"),
            **_linear(f"{block}.mlp.c_fc", 4 * WIDTH, WIDTH),
            **_linear(f"{block}.mlp.c_proj", WIDTH, 4 * WIDTH),
        }
    return shapes
