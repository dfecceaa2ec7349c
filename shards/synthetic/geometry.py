"""Compute the curves of a face, in pixels, for every frame of a clip.

A face is built in its own plane: the origin between eyes and nose, x to the image's right, y down, the unit half a face
height. Action units displace the control points; then every point gets a depth on a shallow ellipsoid, is rotated with
the head (so that the nose moves against the outline) and projected to pixels. All curves have shape (T, n, 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shards.synthetic.action_units import COLUMN, Array
from shards.synthetic.identity import Identity, Scene
from shards.synthetic.motion import Motion

EYE_Y, BROW_Y, NOSE_Y, MOUTH_Y = -0.12, -0.36, 0.20, 0.46
EYE_X = 0.31
HEAD_WIDTH, HEAD_TOP, HEAD_BOTTOM = 0.72, 0.98, 0.90
ZOOM = 0.98  # half image widths per face unit
SIDES = (("L", -1.0), ("R", 1.0))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Turns points of the face plane into pixels of S x S frames, T frames at once."""

    motion: Motion
    identity: Identity
    scene: Scene
    size: int

    @property
    def pixels(self) -> float:
        """Pixels per face unit."""
        return self.size / 2 * ZOOM * self.scene.scale

    def project(self, points: Array, *, depth: float | Array | None = None) -> Array:
        """Project `points` (T or 1, n, 2) to pixels (T, n, 2) float32; without `depth` they are on the face surface."""
        x, y = points[..., 0] * self.identity.width, points[..., 1] * self.identity.height
        z = surface(points) if depth is None else depth
        yaw, pitch, roll = (self.motion.rotation[:, i, None] for i in range(3))
        x, y = x * np.cos(yaw) + z * np.sin(yaw), y * np.cos(pitch) + z * np.sin(pitch)
        x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
        offset = (self.motion.shift + np.array([0.0, 0.04]))[:, None, :]
        out = np.stack([x, y], axis=-1) * self.pixels + (offset + 1.0) * (self.size / 2)
        pixels: Array = out.astype(np.float32)
        return pixels


def surface(points: Array) -> Array:
    """Depth of face-plane points (..., 2) on the ellipsoid of the head, (...)."""
    r2 = (points[..., 0] / HEAD_WIDTH) ** 2 + (points[..., 1] / HEAD_TOP) ** 2
    return (0.6 * np.sqrt(np.clip(1.0 - r2, 0.0, None))).astype(np.float32)


def curve(x: Array, y: Array) -> Array:
    """Stack coordinates, broadcast against each other, to (T, n, 2)."""
    return np.stack(np.broadcast_arrays(x, y), axis=-1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Mouth:
    """The four lip lines from the image's left to right corner, each (T, n, 2) in the face plane."""

    outer_upper: Array
    inner_upper: Array
    inner_lower: Array
    outer_lower: Array


@dataclass(frozen=True, kw_only=True)
class Eye:
    """One eye in the face plane: lids (T, n, 2) from inner to outer corner, iris centre (T, 1, 2), brow (T, n, 2)."""

    upper: Array
    lower: Array
    crease: Array
    iris: Array
    brow: Array


@dataclass(frozen=True, kw_only=True)
class FacePlane:
    """All moving curves of a clip before projection, and the intensities (T, 1) by name they were made from."""

    units: dict[str, Array]
    mouth: Mouth
    eyes: dict[str, Eye]
    outline: Array
    lines: dict[str, tuple[Array, Array]] = field(default_factory=dict)


def outline(who: Identity, *, jaw_drop: Array) -> Array:
    """The head's contour (T, 72, 2): an ellipse narrowed towards the chin, which sinks with the jaw."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    low = np.clip(np.sin(angle), 0.0, 1.0)
    x = HEAD_WIDTH * np.cos(angle) * (1 - who.jaw * low**1.6)
    y = np.where(np.sin(angle) > 0, HEAD_BOTTOM, HEAD_TOP) * np.sin(angle)
    return curve(x, y + jaw_drop * low**2)


def build_mouth(who: Identity, au: dict[str, Array]) -> Mouth:
    """The lips under AUs 10, 12, 14, 15, 17, 20, 23, 24, 25 and 26."""
    u = np.linspace(-1, 1, 25)
    bow, centre = 1 - u**2, MOUTH_Y + who.mouth_height
    spread = 0.075 * au["20"] - 0.06 * au["23"] - 0.03 * au["24"] - 0.045 * au["26"] - 0.02 * au["17"]
    x, y = np.zeros_like(u), np.zeros_like(u)
    for side, sign in SIDES:
        share = np.clip(sign * u, 0.0, 1.0)
        smile, dimple = au["12" + side], au["14" + side]
        x = x + share * sign * (0.235 * who.mouth_width + spread + 0.085 * smile + 0.035 * dimple)
        y = y + share**1.5 * (-0.115 * smile + 0.10 * au["15"] - 0.02 * dimple + 0.03 * au["26"] + 0.03 * au["20"])
    smiles = (au["12L"] + au["12R"]) / 2
    seam = centre + y + bow * (0.02 * smiles - 0.045 * au["17"] - 0.015 * au["15"])
    open_bow = bow ** (0.62 - 0.25 * au["20"])
    raised = 0.012 * au["25"] + 0.065 * au["10"] + 0.02 * au["26"] + 0.012 * smiles * au["25"]
    dropped = 0.045 * au["25"] + 0.20 * au["26"] + 0.015 * au["20"] + 0.02 * smiles * au["25"]
    thin = np.clip(1 - 0.55 * au["24"] - 0.45 * au["23"] - 0.2 * smiles - 0.15 * au["20"], 0.15, 1)
    cupid = bow**0.8 * (1 - 0.22 * np.exp(-((u / 0.16) ** 2)))
    top, bottom = seam - raised * open_bow, seam + dropped * open_bow
    return Mouth(
        outer_upper=curve(x, top - 0.062 * who.lip_weight * thin * cupid),
        inner_upper=curve(x, top),
        inner_lower=curve(x, bottom),
        outer_lower=curve(x, bottom + (0.080 * thin + 0.02 * au["17"]) * who.lip_weight * bow**0.75),
    )


def build_eye(who: Identity, au: dict[str, Array], *, sign: float, gaze: Array) -> Eye:
    """One eye and its brow under AUs 1, 2, 4, 5, 6, 7, 9 and 43; `sign` is -1 for the image's left."""
    u = np.linspace(0, 1, 17)
    half = 0.150 * who.eye_size
    x = sign * (EYE_X * who.eye_gap - half + 2 * half * u)
    arch = (4 * u * (1 - u)) ** 0.75
    tilt = EYE_Y - who.eye_slant * (2 * u - 1)
    opening = np.clip(0.082 + 0.062 * au["5"] - 0.034 * au["7"] - 0.012 * au["6"] - 0.014 * au["9"], 0.02, 0.2)
    rise = np.clip(0.048 - 0.036 * au["7"] - 0.034 * au["6"] - 0.012 * au["9"] + 0.008 * au["5"], 0.0, 0.2)
    grief = np.clip(au["1"] + au["4"] - 1.0, 0.0, 1.0) * 0.03 * (0.5 - u)  # oblique upper lid of AU 1+4
    lower = tilt + rise * who.eye_size * arch
    opened = tilt - opening * who.eye_size * arch - grief * arch
    upper = opened + au["43"] * (lower - opened)
    lid_fold = tilt - (0.125 + 0.02 * au["5"] - 0.012 * au["4"]) * who.eye_size * arch - 0.012
    centre = curve(np.full((1, 1), sign * EYE_X * who.eye_gap) + 0.05 * gaze[:, :1], EYE_Y - 0.018 + 0.03 * gaze[:, 1:])
    return Eye(
        upper=curve(x, upper),
        lower=curve(x, lower),
        crease=curve(x, np.minimum(lid_fold, upper - 0.02)),
        iris=centre,
        brow=build_brow(who, au, sign=sign),
    )


def build_brow(who: Identity, au: dict[str, Array], *, sign: float) -> Array:
    """A closed, tapering brow (T, 2 x 13, 2) under AUs 1, 2, 4, 6 and 9."""
    u = np.linspace(0, 1, 13)
    inner, outer = (1 - u) ** 1.4, u**0.9 * (1.25 - 0.5 * u)
    frown = au["4"] * (1 - 0.8 * au["1"])
    y = BROW_Y + who.brow_height - who.brow_arch * np.sin(np.pi * (0.1 + 0.8 * u)) + 0.035 * u**3 + 0.022 * (1 - u) ** 2
    y = y - 0.115 * au["1"] * inner - 0.125 * au["2"] * outer - 0.03 * au["1"] * au["2"]
    y = (
        y
        + frown * (0.035 + 0.085 * inner)
        + 0.04 * au["9"] * inner
        + 0.015 * au["6"] * u
        + 0.025 * au["1"] * au["4"] * u
    )
    x = sign * (0.115 + 0.41 * u - 0.055 * au["4"] * inner)
    half = 0.034 * who.brow_weight * (0.75 + 0.6 * u - 1.25 * u**2) * (1 + 0.15 * au["4"])
    top, bottom = curve(x, y - half), curve(x, y + half)
    return np.concatenate([top, bottom[:, ::-1]], axis=1)


def face_plane(motion: Motion, *, who: Identity) -> FacePlane:
    """All curves of the clip before projection."""
    au = {name: motion.units[:, column, None] for name, column in COLUMN.items()}
    eyes = {side: build_eye(who, au, sign=sign, gaze=motion.gaze) for side, sign in SIDES}
    mouth = build_mouth(who, au)
    jaw = 0.10 * au["26"] + 0.015 * au["25"] - 0.012 * au["17"]
    plane = FacePlane(units=au, mouth=mouth, eyes=eyes, outline=outline(who, jaw_drop=jaw))
    plane.lines.update(forehead_lines(au))
    for side, sign in SIDES:
        plane.lines.update(side_lines(who, plane, side=side, sign=sign))
    plane.lines.update(middle_lines(who, plane))
    return plane


def forehead_lines(au: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Wrinkles of AUs 1 and 2 across the forehead and of AUs 4 and 9 between the brows: name -> (curve, darkness)."""
    u = np.linspace(-1, 1, 15)
    strength = np.clip(0.75 * au["1"] + 0.35 * au["2"], 0, 1)
    lines: dict[str, tuple[Array, Array]] = {}
    for i in range(3):
        reach = 0.30 + 0.12 * au["2"]
        y = -0.56 - 0.085 * i - 0.03 * au["2"] * np.cos(2 * np.pi * u) - 0.035 * au["1"] * np.cos(np.pi * u / 2)
        lines[f"forehead{i}"] = (curve(reach * u, y), strength * (0.9 - 0.15 * i))
    v = np.linspace(0, 1, 6)
    for side, sign in SIDES:
        x = sign * (0.055 - 0.015 * au["4"] + 0.012 * (2 * v - 1) ** 2)
        depth = np.clip(au["4"] * (1 - 0.5 * au["1"]) + 0.5 * au["9"], 0, 1)
        lines[f"glabella{side}"] = (curve(x, -0.47 + 0.17 * v), depth)
    return lines


def side_lines(who: Identity, plane: FacePlane, *, side: str, sign: float) -> dict[str, tuple[Array, Array]]:
    """Creases of one side: nasolabial fold, dimple, crow's feet, lower lid, nose wrinkles."""
    au, eye = plane.units, plane.eyes[side]
    smile, dimple = au["12" + side], au["14" + side]
    corner = plane.mouth.inner_upper[:, 0 if sign < 0 else -1]
    v = np.linspace(0, 1, 12)
    start_x, start_y = sign * (0.125 * who.nose_width + 0.01), NOSE_Y - 0.05 - 0.04 * au["9"] - 0.02 * au["10"]
    end_x, end_y = corner[:, :1] + sign * (0.055 + 0.02 * smile), corner[:, 1:] + 0.02 - 0.01 * smile
    bulge = sign * (0.03 + 0.035 * smile + 0.03 * au["10"]) * np.sin(np.pi * v)
    fold = curve(start_x + (end_x - start_x) * v + bulge, start_y + (end_y - start_y) * v)
    deep = np.clip(0.14 + 0.75 * smile + 0.7 * au["10"] + 0.4 * au["9"] + 0.2 * au["6"] + 0.25 * au["20"], 0, 1)
    lines = {f"fold{side}": (fold, deep)}
    dent = curve(corner[:, :1] + sign * (0.035 + 0.03 * np.sin(np.pi * v)), corner[:, 1:] - 0.06 + 0.11 * v)
    lines[f"dimple{side}"] = (dent, np.clip(1.0 * dimple + 0.25 * smile, 0, 1))
    tail = curve(corner[:, :1] + sign * 0.05 * v, corner[:, 1:] + 0.05 * v)
    lines[f"droop{side}"] = (tail, np.clip(au["15"], 0, 1))
    for i, slope in enumerate((-0.07, -0.005, 0.06)):
        x0, y0 = eye.upper[:, -1, :1] + sign * 0.03, eye.upper[:, -1, 1:]
        lines[f"crow{i}{side}"] = (curve(x0 + sign * 0.10 * v, y0 + 0.35 * slope + slope * v), 0.8 * au["6"])
    bag = eye.lower + np.array([0.0, 0.035], np.float32)
    lines[f"bag{side}"] = (bag, np.clip(0.18 + 0.6 * au["6"] + 0.45 * au["7"], 0, 1))
    scrunch = curve(sign * (0.03 + 0.07 * v), -0.05 - 0.07 * v**2)
    for i in range(3):
        lines[f"scrunch{i}{side}"] = (scrunch + np.array([0.0, 0.055 * i - 0.04], np.float32), au["9"])
    wing = curve(
        sign * who.nose_width * (0.115 + 0.025 * np.sin(np.pi * v) + 0.015 * au["9"]), start_y - 0.02 + 0.10 * v
    )
    lines[f"wing{side}"] = (wing, np.clip(0.45 + 0.3 * au["9"], 0, 1))
    return lines


def middle_lines(who: Identity, plane: FacePlane) -> dict[str, tuple[Array, Array]]:
    """The fold under the lower lip and the puckered chin of AU17."""
    au = plane.units
    u = np.linspace(-1, 1, 11)
    below = plane.mouth.outer_lower[:, 12:13, 1]
    fold = curve(0.15 * u, below + 0.055 + (0.03 * u**2) * (0.4 + au["17"]))
    lines = {"chinfold": (fold, np.clip(0.15 + 0.75 * au["17"], 0, 1))}
    for i, (x, y) in enumerate(
        ((-0.07, 0.11), (0.06, 0.12), (-0.01, 0.15), (0.1, 0.16), (-0.11, 0.165), (0.03, 0.185))
    ):
        dot = curve(np.array([x - 0.012, x, x + 0.012]), below + y + np.array([0.0, 0.006, 0.0]))
        lines[f"pucker{i}"] = (dot, 0.55 * au["17"])
    return lines
