"""Draw the frames of a clip: 8-bit RGB pictures of a face from its projected curves.

Shapes are antialiased polygons at sub-pixel positions. The skin is shaded by Gaussians (`shading`), and creases are a
blurred layer of lines; both multiply the skin's colour, so they fit every skin tone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.synthetic.action_units import Array
from shards.synthetic.geometry import EYE_X, EYE_Y, HEAD_WIDTH, SIDES, Camera, face_plane
from shards.synthetic.hair import style_hair
from shards.synthetic.identity import Colour, Identity, Scene
from shards.synthetic.motion import Motion
from shards.synthetic.shading import SkinShader

Image = NDArray[np.uint8]
Points = NDArray[np.int32]  # fixed point with SHIFT fractional bits
SHIFT = 4
INK = 0.62  # fraction of the light that the darkest crease absorbs
WHITE_OF_EYE: Colour = (236, 232, 228)
CAVITY: Colour = (58, 18, 22)
TEETH: Colour = (238, 234, 224)
TONGUE: Colour = (176, 84, 88)


def fixed(points: Array) -> Points:
    """Convert pixel coordinates to OpenCV's fixed-point integers; pixel centres are at halves."""
    out: Points = np.rint((points - 0.5) * (1 << SHIFT)).astype(np.int32)
    return out


def fill(image: Image, points: Points, colour: Colour | float) -> None:
    """Fill an antialiased polygon (n, 2)."""
    cv2.fillPoly(image, [points], colour, cv2.LINE_AA, SHIFT)


def stroke(image: Image, points: Points, colour: Colour | float, *, width: float, closed: bool = False) -> None:
    """Draw an antialiased polyline (n, 2) of `width` pixels, at least one."""
    cv2.polylines(image, [points], closed, colour, max(1, round(width)), cv2.LINE_AA, SHIFT)


def disc(image: Image, centre: Points, radius: float, colour: Colour) -> None:
    """Fill an antialiased circle around `centre` (2,) with a radius in pixels."""
    x, y = centre.tolist()
    cv2.circle(image, (x, y), max(1, round(radius * (1 << SHIFT))), colour, -1, cv2.LINE_AA, SHIFT)


def dim(colour: Colour, factor: float) -> Colour:
    """Multiply a colour's brightness by `factor`."""
    r, g, b = (min(255.0, c * factor) for c in colour)
    return (r, g, b)


def blend(below: Image, above: Image, mask: Image) -> None:
    """Blend `above` over `below` in place: opaque where `mask` (H, W) is 255, in proportion where it is less."""
    cover = cv2.merge((mask, mask, mask))
    kept = cv2.multiply(below, cv2.bitwise_not(cover), scale=1 / 255)
    cv2.add(cv2.multiply(above, cover, scale=1 / 255), kept, dst=below)


def oval(x: float, y: float, rx: float, ry: float, *, power: float = 1.0) -> Array:
    """Make a closed curve (1, 28, 2) in the face plane: an ellipse, or with `power` below 1 a rounded rectangle."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    ring = [x + rx * np.sign(c) * np.abs(c) ** power, y + ry * np.sign(s) * np.abs(s) ** power]
    return np.stack(ring, axis=-1)[None].astype(np.float32)


def polygon(*corners: tuple[float, float]) -> Array:
    """Convert corner points to a curve (1, n, 2)."""
    return np.array([corners], np.float32)


@lru_cache(maxsize=4)
def noise_pool(size: int) -> Array:
    """Make sensor noise of unit scale (2S, 2S, 3), of which each frame takes a crop: mostly luminance noise, common to
    the channels, and some independent noise in each."""
    rng = np.random.default_rng(size)
    luminance = rng.standard_normal((2 * size, 2 * size, 1), np.float32)
    return 0.8 * luminance + 0.5 * rng.standard_normal((2 * size, 2 * size, 3), np.float32)


class ClipPainter:
    """Draws the frames of a clip one after the other; holds its common data (curves of all frames, colours, scene)."""

    def __init__(self, motion: Motion, *, who: Identity, scene: Scene, size: int) -> None:
        self.who, self.scene, self.size = who, scene, size
        self.camera = Camera(motion=motion, identity=who, scene=scene, size=size)
        self.plane = face_plane(motion, who=who)
        self.pixels = self.camera.pixels
        self.shader = SkinShader(self.camera, plane=self.plane)
        self.lips, self.lids = np.array(who.lips), dim(who.skin, 0.55)
        self._project_face()
        self._project_props()

    def _at(self, points: Array, *, depth: float | None = None) -> Points:
        return fixed(self.camera.project(points, depth=depth))

    def _project_face(self) -> None:
        plane = self.plane
        self.head = self._at(plane.outline, depth=0.0)
        self.creases = [(self._at(points), dark[:, 0]) for points, dark in plane.lines.values()]
        self.creases += [(self._at(eye.crease), np.full(len(self.head), 0.6)) for eye in plane.eyes.values()]
        mouth = plane.mouth
        self.mouth = tuple(
            self._at(line) for line in (mouth.outer_upper, mouth.inner_upper, mouth.inner_lower, mouth.outer_lower)
        )
        self.eyes = [
            (self._at(e.upper), self._at(e.lower), self._at(e.iris)[:, 0], self._at(e.brow))
            for e in plane.eyes.values()
        ]
        lift = 0.02 * plane.units["9"]
        nostril = [oval(s * 0.058 * self.who.nose_width, 0.236, 0.030, 0.015) for _, s in SIDES]
        self.nostrils = [self._at(n - np.stack([0 * lift, lift], axis=-1).astype(np.float32)) for n in nostril]

    def _project_props(self) -> None:
        hair = style_hair(self.who)
        self.back = None if hair.back is None else self._at(hair.back, depth=-0.1)
        self.front = None if hair.front is None else self._at(hair.front)
        self.strands = [self._at(line) for line in hair.strands]
        self.ears = [self._at(oval(s * HEAD_WIDTH * 1.0, 0.02, 0.075, 0.16), depth=-0.05) for _, s in SIDES]
        self.neck = self._at(polygon((-0.42, 0.5), (0.42, 0.5), (0.46, 1.6), (-0.46, 1.6)), depth=-0.1)
        self.shoulders = self._at(
            polygon((-0.5, 1.0), (0.5, 1.0), (1.8, 1.3), (1.8, 2), (-1.8, 2), (-1.8, 1.3)), depth=-0.1
        )
        gap = EYE_X * self.who.eye_gap
        self.rims = [self._at(oval(s * gap, EYE_Y + 0.01, 0.215, 0.155, power=0.7), depth=0.62) for _, s in SIDES]
        self.bridge = self._at(
            polygon((0.215 - gap, EYE_Y - 0.03), (0.0, EYE_Y - 0.055), (gap - 0.215, EYE_Y - 0.03)), depth=0.64
        )
        self.temples = [
            self._at(polygon((s * (gap + 0.215), EYE_Y - 0.02), (s * 0.74, EYE_Y - 0.01)), depth=0.3) for _, s in SIDES
        ]

    def frames(self, *, rng: np.random.Generator) -> Iterator[Image]:
        """Yield the pictures (S, S, 3) of the clip in order; `rng` places the sensor noise."""
        pool = noise_pool(self.size)
        for frame in range(len(self.head)):
            x, y = rng.integers(0, self.size, 2).tolist()
            yield self._expose(self.draw(frame), pool[y : y + self.size, x : x + self.size])

    def _expose(self, image: Image, noise: Array) -> Image:
        """Apply the scene's light, then sensor noise."""
        lit = cv2.multiply(image, self.scene.light, dtype=cv2.CV_32F)
        out: Image = cv2.convertScaleAbs(cv2.max(cv2.scaleAdd(noise, self.scene.noise, lit), 0.0))
        return out

    def draw(self, frame: int) -> Image:
        """Draw the evenly lit picture of one frame, (S, S, 3)."""
        image = self.scene.background.copy()
        if self.back is not None:
            fill(image, self.back[frame], dim(self.who.hair, 0.7))
        fill(image, self.neck[frame], dim(self.who.skin, 0.68))
        fill(image, self.shoulders[frame], self.scene.cloth)
        for ear in self.ears:
            fill(image, ear[frame], dim(self.who.skin, 0.84))
        self._draw_skin(image, frame)
        for nostril in self.nostrils:
            fill(image, nostril[frame], dim(self.who.skin, 0.36))
        for upper, lower, iris, brow in self.eyes:
            self._draw_eye(image, upper[frame], lower[frame], iris[frame])
            fill(image, brow[frame], dim(self.who.hair, 0.72))
        self._draw_mouth(image, frame)
        self._draw_props(image, frame)
        return image

    def _draw_skin(self, image: Image, frame: int) -> None:
        small = cv2.convertScaleAbs(cv2.max(self.shader.draw(frame), 0.0))
        skin = cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        ink = np.zeros((self.size, self.size), np.uint8)
        for points, dark in self.creases:
            if dark[frame] > 0.04:
                stroke(ink, points[frame], 255 * float(dark[frame]), width=0.022 * self.pixels)
        ink = cv2.GaussianBlur(ink, (0, 0), 0.011 * self.pixels)
        left = cv2.convertScaleAbs(ink, alpha=-INK, beta=255)
        skin = cv2.multiply(skin, cv2.merge((left, left, left)), scale=1 / 255)
        mask = np.zeros_like(ink)
        fill(mask, self.head[frame], 255)
        blend(image, skin, mask)

    def _window(self, points: Points) -> tuple[slice, slice, Points]:
        """Return the window of pixels around a shape, clipped to the picture, and its corner in fixed point."""
        (x0, y0), (x1, y1) = (points.min(0) >> SHIFT) - 2, (points.max(0) >> SHIFT) + 3
        x0, y0 = (int(np.clip(v, 0, self.size - 1)) for v in (x0, y0))
        x1, y1 = (int(np.clip(v, low + 1, self.size)) for v, low in ((x1, x0), (y1, y0)))
        return slice(y0, y1), slice(x0, x1), np.array([x0, y0], np.int32) << SHIFT

    def _draw_eye(self, image: Image, upper: Points, lower: Points, iris: Points) -> None:
        shape = np.concatenate([upper, lower[::-1]])
        rows, columns, corner = self._window(shape)
        below = image[rows, columns]
        ball = np.empty_like(below)
        ball[:] = np.rint(WHITE_OF_EYE)
        size = self.pixels * self.who.eye_size
        disc(ball, iris - corner, 0.076 * size, dim(self.who.iris, 0.5))
        disc(ball, iris - corner, 0.064 * size, self.who.iris)
        disc(ball, iris - corner, 0.033 * size, (12, 10, 12))
        stroke(ball, upper - corner, (150, 140, 138), width=0.05 * size)
        glint = iris - corner + np.rint(np.array([-0.022, -0.026]) * size * (1 << SHIFT)).astype(np.int32)
        disc(ball, glint, 0.017 * size, (250, 250, 250))
        mask = np.zeros(below.shape[:2], np.uint8)
        fill(mask, shape - corner, 255)
        patch = below.copy()
        blend(patch, ball, mask)
        image[rows, columns] = patch
        stroke(image, lower, self.lids, width=0.010 * self.pixels)
        stroke(image, upper, dim(self.who.skin, 0.22), width=0.026 * self.pixels)

    def _draw_mouth(self, image: Image, frame: int) -> None:
        outer_upper, inner_upper, inner_lower, outer_lower = (line[frame] for line in self.mouth)
        fill(image, np.concatenate([outer_upper, inner_upper[::-1]]), dim(self.who.lips, 0.88))
        fill(image, np.concatenate([inner_lower, outer_lower[::-1]]), self.who.lips)
        shine = ((inner_lower + outer_lower) // 2)[8:17]
        stroke(image, shine, dim(self.who.lips, 1.16), width=0.012 * self.pixels)
        if (inner_lower - inner_upper)[:, 1].max() > (1 << SHIFT):
            self._draw_cavity(image, inner_upper, inner_lower)
        stroke(image, inner_upper, dim(self.who.lips, 0.42), width=0.012 * self.pixels)

    def _draw_cavity(self, image: Image, upper: Points, lower: Points) -> None:
        shape = np.concatenate([upper, lower[::-1]])
        rows, columns, corner = self._window(shape)
        below = image[rows, columns]
        inside = np.empty_like(below)
        inside[:] = np.rint(CAVITY)
        unit = self.pixels * (1 << SHIFT)
        gape = float((lower - upper)[:, 1].max())
        centre = lower[12] - corner + np.rint([0, 0.03 * unit - 0.1 * gape]).astype(np.int32)
        disc(inside, centre, 0.10 * self.pixels, TONGUE)
        drop = np.array([0, round(min(0.075 * unit, 0.75 * gape))], np.int32)
        teeth = np.concatenate([upper, upper[::-1] + drop]) - corner
        fill(inside, teeth, TEETH)
        mask = np.zeros(below.shape[:2], np.uint8)
        fill(mask, shape - corner, 255)
        patch = below.copy()
        blend(patch, inside, mask)
        image[rows, columns] = patch

    def _draw_props(self, image: Image, frame: int) -> None:
        hair = self.who.hair
        if self.front is not None:
            fill(image, self.front[frame], hair)
        for i, line in enumerate(self.strands):
            stroke(image, line[frame], dim(hair, (0.72, 1.3, 0.9)[i % 3]), width=0.014 * self.pixels)
        if self.who.glasses:
            for rim in self.rims:
                stroke(image, rim[frame], self.who.frame, width=0.026 * self.pixels, closed=True)
            for line in (self.bridge, *self.temples):
                stroke(image, line[frame], self.who.frame, width=0.024 * self.pixels)
