"""Shade the skin with Gaussians that move with the face.

An axis-aligned Gaussian is the product of a row and a column, so a picture of K Gaussians is one matrix product of
(H, K) with (K, 3W): shading a frame costs less than copying it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from shards.synthetic.action_units import Array
from shards.synthetic.geometry import EYE_X, HEAD_BOTTOM, HEAD_TOP, HEAD_WIDTH, SIDES, Camera, FacePlane, curve
from shards.synthetic.identity import Identity

WHITE = (1.0, 1.0, 1.0)
BLUSH = (0.15, -1.0, -0.8)  # redder: less green and blue


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A Gaussian on the face: centre (T or 1, 1, 2), sigma in face units, strength (T or 1, 1), tint an RGB factor."""

    centre: Array
    sigma: tuple[float, float]
    strength: Array
    tint: tuple[float, float, float] = WHITE


def blob(
    x: float,
    y: float | Array,
    sx: float,
    sy: float,
    strength: float | Array,
    *,
    tint: tuple[float, float, float] = WHITE,
) -> Blob:
    """A blob at (x, y); `y` and `strength` may vary over time as (T, 1)."""
    centre = curve(np.full((1, 1), x), np.asarray(y, np.float32).reshape(-1, 1))
    return Blob(centre=centre, sigma=(sx, sy), strength=np.asarray(strength, np.float32).reshape(-1, 1), tint=tint)


def still_blobs(who: Identity) -> list[Blob]:
    """Make the relief that no action unit changes: forehead, nose, stubble."""
    nose = who.nose_width
    return [
        blob(0.0, -0.62, 0.26, 0.14, 0.09),
        blob(0.0, -0.02, 0.035, 0.17, 0.13),
        blob(0.0, 0.155, 0.05 * nose, 0.045, 0.16),
        blob(-0.095 * nose, 0.06, 0.035, 0.13, -0.13),
        blob(0.095 * nose, 0.06, 0.035, 0.13, -0.13),
        blob(0.0, 0.265, 0.11 * nose, 0.028, -0.24),
        blob(0.0, 0.33, 0.02, 0.04, -0.06),
        blob(0.0, 0.72, 0.11, 0.06, 0.09),
        blob(0.0, 0.15, 0.09, 0.07, 0.06, tint=BLUSH),
        blob(0.0, 0.55, 0.34, 0.22, -who.stubble),
        blob(0.0, -0.93, 0.5, 0.09, -0.16),
    ]


def moving_blobs(plane: FacePlane) -> list[Blob]:
    """Make the relief that follows the lips, the chin and the brows."""
    au = plane.units
    lip = plane.mouth.outer_lower[:, 12:13, 1]
    blobs = [
        blob(0.0, lip + 0.045, 0.13, 0.03, -0.20),
        blob(0.0, lip + 0.13, 0.09, 0.05, 0.05 + 0.10 * au["17"]),
        blob(0.0, -0.36, 0.05, 0.07, -0.14 * au["4"] - 0.10 * au["9"]),
        blob(0.0, -0.08, 0.08, 0.05, -0.18 * au["9"]),
    ]
    for side, sign in SIDES:
        cheek = 0.6 * au["6"] + 0.4 * au["12" + side]
        corner = plane.mouth.inner_upper[:, :1] if sign < 0 else plane.mouth.inner_upper[:, -1:]
        blobs += [
            blob(sign * EYE_X, -0.17, 0.15, 0.075, -0.13),
            blob(sign * 0.13, -0.13, 0.04, 0.07, -0.16 - 0.08 * au["9"]),
            blob(sign * 0.43, 0.14 - 0.06 * cheek, 0.12, 0.085, 0.09 + 0.11 * cheek),
            blob(sign * 0.42, 0.18 - 0.05 * cheek, 0.15, 0.11, 0.10 + 0.08 * cheek, tint=BLUSH),
            blob(sign * 0.50, 0.42, 0.10, 0.16, -0.10 - 0.05 * au["26"]),
            Blob(centre=corner, sigma=(0.035, 0.04), strength=-0.16 - 0.12 * au["14" + side]),
        ]
    return blobs


class SkinShader:
    """Draws the shaded skin of every frame of a clip at half its resolution."""

    def __init__(self, camera: Camera, *, plane: FacePlane) -> None:
        who, frames = camera.identity, len(camera.motion.units)
        blobs = still_blobs(who) + moving_blobs(plane)
        self.skin = np.array(who.skin, np.float32)
        self.side = max(8, camera.size // 2)
        to_small = self.side / camera.size
        self.key = camera.scene.key
        self.centres = np.concatenate([camera.project(b.centre) for b in blobs], axis=1) * to_small
        self.sigma = np.array([b.sigma for b in blobs], np.float32) * camera.pixels * to_small
        strengths = [np.broadcast_to(b.strength * np.array(b.tint, np.float32), (frames, 3)) for b in blobs]
        self.strength = np.stack(strengths, axis=1)
        self.middle = camera.project(np.zeros((1, 1, 2), np.float32), depth=0.0)[:, 0] * to_small
        self.radius = np.array([HEAD_WIDTH * who.width, (HEAD_TOP + HEAD_BOTTOM) / 2 * who.height]) * camera.pixels
        self.radius *= to_small
        self.grid = np.arange(self.side, dtype=np.float32) + 0.5

    def draw(self, frame: int) -> Array:
        """Draw the skin of one frame, (S/2, S/2, 3) float32 in grey levels, unclipped, over the whole picture."""
        off = (self.grid - self.centres[frame, :, :, None]) / self.sigma[..., None]
        bell = np.exp(-0.5 * off * off)
        columns = bell[:, 0, :, None] * self.strength[frame, :, None, :]
        # OpenCV's product, not NumPy's: BLAS uses its own threads, which would change the order of sums.
        relief = cv2.gemm(bell[:, 1], columns.reshape(len(columns), -1), 1.0, None, 0.0, flags=cv2.GEMM_1_T)
        relief = relief.reshape(self.side, self.side, 3)
        x, y = (self.grid[None, :] - self.middle[frame, :, None]) / self.radius[:, None]
        x, y = x.astype(np.float32), y.astype(np.float32)
        edge = np.minimum(x[None, :] ** 2 + y[:, None] ** 2, 1.2)
        falloff = 1.04 - 0.30 * edge * edge * edge + self.key[0] * x[None, :] + self.key[1] * y[:, None]
        shaded: Array = self.skin * ((1.0 + relief) * falloff[..., None])
        return shaded
