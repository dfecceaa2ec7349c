"""What `exp_clip.npz` was computed from: the weights of a small CLIP and of a head, pictures and clips.

Shared by the recorder and the tests, so that no weights need to be stored. The CLIP is that of `recipe.py` for pictures
of 224 pixels, to which the released test resizes, with patches of 32.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.reference import recipe
from tests.reference.recipe import EMBED, WIDTH, Array

SIZE, PATCH, HEAD_WIDTH, SCALE = 224, 32, 4096, 100.0
CLIP_LAYOUT = {
    **recipe.CLIP_LAYOUT,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": recipe.LAYERS, "head_width": 64},
}
CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
KINDS = ("class_names", "class_names_with_context", "face_with_expression", "ensemble_5", "ensemble_10")
"""The release's five prompt kinds, in its order."""
LENGTHS = (40, 17, 16, 33, 5, 24, 1)
"""Frames of the seven clips, one a class; those of 16 frames or fewer are short."""
STORED = {"whole": (224, 224), "resized": (60, 72)}
"""Height and width of a stored picture: the size that the towers take, and one that is resized without its proportions,
which our filter does within one level of Pillow's."""


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the CLIP."""
    positions = ((SIZE // PATCH) ** 2 + 1, WIDTH)
    patches = {"visual.conv1.weight": (WIDTH, 3, PATCH, PATCH), "visual.positional_embedding": positions}
    return {**recipe.clip_shapes(), **patches}


def clip_weights() -> dict[str, Array]:
    """Values by name; `logit_scale` is OpenAI's."""
    return {**recipe.drawn(clip_shapes()), "logit_scale": np.float32(np.log(SCALE))}  # type: ignore[dict-item]


def head() -> Array:
    """The projection [4096 512]."""
    return recipe.tensor("mlp.weight", (HEAD_WIDTH, EMBED))


def picture(seed: int, time: float = 0.0, *, stored: str) -> NDArray[np.uint8]:
    """A picture [H W 3] with a pattern of its own that changes over time, and noise. stored: a name of STORED."""
    rng, (height, width) = np.random.default_rng(seed), STORED[stored]
    level, slope = rng.uniform(40, 215, 3), rng.uniform(-90, 90, (2, 3))
    rows, columns = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    drawn = level + slope[0] * rows * (1 - time) + slope[1] * columns * (1 - 2 * time)
    noise = np.random.default_rng([seed, round(1000 * time)]).uniform(-50, 50, (height, width, 3))
    return np.clip(drawn + noise, 0, 255).astype(np.uint8)


def write_pictures(root: Path, names: tuple[str, ...] = CLASSES, *, stored: str) -> Path:
    """Write two pictures of every class into a folder of class folders."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(picture(100 + 2 * k + number, stored=stored)).save(root / name / f"{number}.png")
    return root


def frames(number: int, *, stored: str) -> list[NDArray[np.uint8]]:
    """All frames of a clip."""
    return [picture(200 + number, at / LENGTHS[number], stored=stored) for at in range(LENGTHS[number])]


def write_clips(root: Path, *, stored: str) -> list[Path]:
    """Write every clip as a folder of frames; returns the folders."""
    for number in range(len(LENGTHS)):
        (root / f"clip_{number}").mkdir(parents=True)
        for at, frame in enumerate(frames(number, stored=stored)):
            Image.fromarray(frame).save(root / f"clip_{number}" / f"{at:03d}.png")
    return [root / f"clip_{number}" for number in range(len(LENGTHS))]
