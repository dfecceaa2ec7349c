"""Hair of the generated faces: flat shapes with strands, fixed to the head, in the face plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.synthetic.action_units import Array
from shards.synthetic.geometry import HEAD_TOP, HEAD_WIDTH
from shards.synthetic.identity import Identity

POINTS = 41


@dataclass(frozen=True, kw_only=True)
class Hair:
    """back: polygon (1, n, 2) behind the head or None. front: polygon in front or None. strands: (1, m, 2) lines."""

    back: Array | None
    front: Array | None
    strands: tuple[Array, ...]


def dome(*, width: float, height: float, low: float, bumps: float = 0.0) -> Array:
    """Compute the upper contour (n, 2) of hair, from the left at y = `low` over the crown to the right."""
    angle = np.linspace(np.pi, 2 * np.pi, POINTS)
    swell = 1 + bumps * np.abs(np.sin(9 * angle))
    arc = np.stack([HEAD_WIDTH * width * np.cos(angle) * swell, HEAD_TOP * height * np.sin(angle) * swell], axis=1)
    left, right = arc[:1].copy(), arc[-1:].copy()
    left[:, 1] = right[:, 1] = low
    return np.concatenate([left, arc, right])


def hairline(who: Identity) -> Array:
    """Compute the lower edge (n, 2) of the front hair, left to right, by style."""
    x = np.concatenate([[-1.0], np.linspace(-1, 1, POINTS), [1.0]])
    top, part = who.hairline - 0.70, who.parting
    side = np.abs(x)
    match who.style:
        case "fringe":
            y = (
                -0.50
                + 0.5 * who.hairline
                + 0.035 * np.abs(np.sin(7 * x + part))
                + 0.45 * np.clip(side - 0.82, 0, 1) / 0.18
            )
            reach = 0.66
        case "parted":
            y = top - 0.05 + 0.30 * np.abs(x - part) ** 1.3 + 0.42 * np.clip(side - 0.86, 0, 1) / 0.14
            reach = 0.67
        case "long":
            y = top - 0.10 + 0.95 * np.abs(x - 0.5 * part) ** 1.6 + 0.6 * np.clip(side - 0.9, 0, 1) / 0.1
            reach = 0.68
        case "curly":
            y = top + 0.06 + 0.05 * np.abs(np.sin(10 * x)) + 0.22 * side**3 + 0.42 * np.clip(side - 0.88, 0, 1) / 0.12
            reach = 0.68
        case _:
            y = top + 0.22 * side**4 + 0.48 * np.clip(side - 0.86, 0, 1) / 0.14
            reach = 0.68
    return np.stack([reach * x, y], axis=1)


def style_hair(who: Identity) -> Hair:
    """Make the hair of a person; empty for the style `bald`."""
    if who.style == "bald":
        return Hair(back=None, front=None, strands=())
    volume, bumps, back = {
        "short": (1.05, 0.0, None),
        "parted": (1.09, 0.0, None),
        "fringe": (1.08, 0.0, 0.35),
        "long": (1.12, 0.0, 1.6),
        "curly": (1.15, 0.05, 0.25),
    }[who.style]
    lower = hairline(who)
    upper = dome(width=1.0 + 0.8 * (volume - 1), height=volume, low=float(lower[0, 1]), bumps=bumps)
    front = np.concatenate([upper, lower[::-1]])[None].astype(np.float32)
    return Hair(back=None if back is None else behind(volume, low=back), front=front, strands=strands(upper, lower))


def behind(volume: float, *, low: float) -> Array:
    """Compute the polygon (1, n, 2) of hair behind the head, down to y = `low`."""
    arc = dome(width=volume + 0.06, height=volume, low=0.0)
    ends = np.array([[0.92 * volume * HEAD_WIDTH, low], [-0.92 * volume * HEAD_WIDTH, low]])
    return np.concatenate([arc, ends])[None].astype(np.float32)


def strands(upper: Array, lower: Array) -> tuple[Array, ...]:
    """Compute lines (1, 5, 2) from the hairline to the crown."""
    share = np.linspace(0.04, 0.9, 5)[:, None]
    bend = np.sin(np.pi * share) * np.array([0.05, 0.0])
    picks = range(4, len(upper) - 4, 2)
    lines = (lower[i] + (upper[i] - lower[i]) * share + bend * np.sign(lower[i, 0]) for i in picks)
    return tuple(line[None].astype(np.float32) for line in lines)
