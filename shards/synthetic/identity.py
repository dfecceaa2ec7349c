"""The appearance of a generated person, and the scene of one clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Hair = Literal["bald", "short", "parted", "fringe", "long", "curly"]

SKINS: tuple[Colour, ...] = (
    (250, 218, 196),
    (240, 200, 172),
    (226, 178, 142),
    (203, 148, 110),
    (170, 116, 82),
    (128, 84, 60),
    (100, 66, 50),
)
HAIRS: tuple[Colour, ...] = (
    (28, 22, 20),
    (54, 36, 26),
    (88, 58, 36),
    (132, 92, 52),
    (196, 158, 98),
    (138, 60, 34),
    (150, 148, 146),
)
IRISES: tuple[Colour, ...] = ((62, 40, 26), (92, 62, 36), (70, 94, 60), (74, 110, 142), (96, 112, 120))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person. Lengths are in half face heights, factors are around 1, colours are RGB 0 to 255."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    style: Hair
    glasses: bool
    frame: Colour
    stubble: float
    width: float
    height: float
    jaw: float
    eye_size: float
    eye_gap: float
    eye_slant: float
    brow_height: float
    brow_weight: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    lip_weight: float
    hairline: float
    parting: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The surroundings of one clip of side S.

    background: (S, S, 3) uint8 RGB. light: (S, S, 3) float32, multiplies the finished picture.
    key: direction of the light on the face, right and down, at most 1. noise: sensor noise in grey levels.
    """

    background: NDArray[np.uint8]
    light: NDArray[np.float32]
    key: tuple[float, float]
    cloth: Colour
    scale: float
    noise: float
    quality: int


def between(colours: tuple[Colour, ...], *, rng: np.random.Generator) -> Colour:
    """Draw a colour between two neighbours of `colours`, slightly lighter or darker."""
    at = rng.uniform(0, len(colours) - 1)
    low = int(at)
    a, b = np.array(colours[low]), np.array(colours[min(low + 1, len(colours) - 1)])
    return as_colour((a + (at - low) * (b - a)) * rng.uniform(0.94, 1.04) + rng.normal(0, 1.5, 3))


def as_colour(values: NDArray[np.floating]) -> Colour:
    """Three floats clipped to 0..255."""
    r, g, b = np.clip(values, 0, 255).tolist()
    return (r, g, b)


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw a person; depends on `rng` only."""
    skin = between(SKINS, rng=rng)
    hair = HAIRS[int(rng.integers(len(HAIRS)))]
    redness = rng.uniform(0.75, 1.0)

    def around(spread: float) -> float:
        return float(rng.uniform(1 - spread, 1 + spread))

    return Identity(
        skin=skin,
        hair=as_colour(np.array(hair) * rng.uniform(0.85, 1.15)),
        iris=IRISES[int(rng.integers(len(IRISES)))],
        lips=as_colour(np.array(skin) * (0.80, 0.56 * redness, 0.58 * redness) + (8, 0, 4)),
        style=get_args(Hair)[int(rng.choice(6, p=(0.08, 0.24, 0.2, 0.14, 0.22, 0.12)))],
        glasses=bool(rng.random() < 0.2),
        frame=((30, 28, 30), (92, 52, 34), (120, 120, 126), (40, 44, 84))[int(rng.integers(4))],
        stubble=float(max(0.0, rng.uniform(-0.35, 0.2))),
        width=around(0.06),
        height=around(0.04),
        jaw=float(rng.uniform(0.12, 0.34)),
        eye_size=around(0.10),
        eye_gap=around(0.06),
        eye_slant=float(rng.uniform(-0.02, 0.018)),
        brow_height=float(rng.uniform(-0.025, 0.015)),
        brow_weight=around(0.35),
        brow_arch=float(rng.uniform(0.01, 0.05)),
        nose_width=around(0.14),
        nose_length=around(0.08),
        mouth_width=around(0.10),
        mouth_height=float(rng.uniform(-0.02, 0.02)),
        lip_weight=around(0.28),
        hairline=float(rng.uniform(-0.04, 0.06)),
        parting=float(rng.choice((-1.0, 1.0)) * rng.uniform(0.12, 0.35)),
    )


def backdrop(size: int, *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A gradient between two muted colours with a few blurred blobs, (S, S, 3) uint8."""
    low = rng.uniform(40, 200, (2, 2, 3)) * 0.3 + rng.uniform(40, 190, (2, 2, 1)) * 0.7
    small = cv2.resize(low.astype(np.float32), (56, 56), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.integers(0, 56, 2).tolist()
        colour = tuple((0.5 * rng.uniform(20, 235, 3) + 0.5 * rng.uniform(20, 235)).tolist())
        cv2.circle(small, (x, y), int(rng.integers(3, 13)), colour, -1)
    small = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(1.5, 5.0)))
    image = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    out: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return out


def draw_scene(size: int, *, rng: np.random.Generator) -> Scene:
    """Draw the scene of a clip with frames of `size` pixels per side; depends on `rng` only."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.22)
    key = (float(np.cos(angle)), float(0.6 * np.sin(angle)))
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = 1 + strength * (key[0] * axis[None, :] + key[1] * axis[:, None])
    tint = rng.uniform(0.82, 1.12) * rng.uniform(0.95, 1.05, 3)
    return Scene(
        background=backdrop(size, rng=rng),
        light=np.ascontiguousarray(ramp[..., None] * tint, dtype=np.float32),
        key=(key[0] * strength, key[1] * strength),
        cloth=as_colour(rng.uniform(25, 215, 3)),
        scale=float(rng.uniform(0.94, 1.06)),
        noise=float(rng.uniform(1.5, 6.0)),
        quality=int(rng.integers(86, 95)),
    )
