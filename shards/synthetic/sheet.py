"""Make a contact sheet of generated faces: one row per class, columns over people and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from dfer.emotions import BASIC7
from shards.synthetic.face import ClipPainter, Image
from shards.synthetic.identity import draw_identity, draw_scene
from shards.synthetic.motion import clip_motion

FRAMES = 24
TIMES = (0.04, 0.16, 0.5, 0.84, 0.96)


def clip_pictures(emotion: str, *, identity: int, seed: int, size: int, noise: float | None = None) -> list[Image]:
    """All frames (S, S, 3) of one clip of `FRAMES` frames; `noise` replaces the scene's sensor noise."""
    who = draw_identity(np.random.default_rng([seed, 1, identity]))
    rng = np.random.default_rng([seed, 2, identity])
    motion = clip_motion(emotion, frames=FRAMES, rng=rng)
    scene = draw_scene(size, rng=rng)
    scene = scene if noise is None else replace(scene, noise=noise)
    return list(ClipPainter(motion, who=who, scene=scene, size=size).frames(rng=rng))


def contact_sheet(
    *, emotions: Sequence[str] = BASIC7, people: int = 2, times: Sequence[float] = TIMES, seed: int = 2, size: int = 84
) -> Image:
    """Draw one row per class with `people` persons at the relative `times` of their clips. RGB, no sensor noise.

    Grey levels are multiples of eight, so that the picture is small enough for a page of documentation.
    """
    rows = []
    for row, emotion in enumerate(emotions):
        cells = [caption(emotion, size=size)]
        for i in range(people):
            frames = clip_pictures(emotion, identity=row * people + i, seed=seed, size=size, noise=0.0)
            cells += [frames[min(FRAMES - 1, int(t * FRAMES))] for t in times]
        rows.append(np.concatenate(cells, axis=1))
    sheet: Image = np.concatenate(rows, axis=0) & np.uint8(0xF8)
    return sheet


def caption(text: str, *, size: int) -> Image:
    """Draw a white cell with a word in it."""
    cell = np.full((size, size, 3), 255, np.uint8)
    cv2.putText(cell, text, (3, size // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.0045 * size, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def write_sheet(path: Path, *, sheet: Image) -> None:
    """Save an RGB picture as PNG."""
    _, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
