"""A contact sheet of generated faces: one row a class, columns over identities and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dfer.emotions import BASIC7
from shards.synthetic.face import ClipPainter, Image
from shards.synthetic.identity import draw_identity, draw_scene
from shards.synthetic.motion import clip_motion

FRAMES = 24


def clip_pictures(emotion: str, *, identity: int, seed: int, size: int) -> list[Image]:
    """All frames of one clip."""
    who = draw_identity(np.random.default_rng([seed, 1, identity]))
    rng = np.random.default_rng([seed, 2, identity, len(emotion)])
    painter = ClipPainter(
        clip_motion(emotion, frames=FRAMES, rng=rng), who=who, scene=draw_scene(size, rng=rng), size=size
    )
    return list(painter.frames(rng=rng))


def contact_sheet(
    *,
    emotions: Sequence[str] = BASIC7,
    identities: int = 3,
    columns: Sequence[float] = (0.04, 0.2, 0.5, 0.8, 0.96),
    seed: int = 1,
    size: int = 112,
) -> Image:
    """Rows of classes, in each `identities` people at the times `columns` of their clips; RGB."""
    rows = []
    for row, emotion in enumerate(emotions):
        label = np.full((size, size, 3), 255, np.uint8)
        cv2.putText(label, emotion, (4, size // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.0042 * size, (0, 0, 0), 1, cv2.LINE_AA)
        cells = [label]
        for i in range(identities):
            frames = clip_pictures(emotion, identity=row * identities + i, seed=seed, size=size)
            cells += [frames[min(FRAMES - 1, int(t * FRAMES))] for t in columns]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def write_sheet(path: Path, *, sheet: Image) -> None:
    """Save an RGB picture as PNG."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert ok
    path.write_bytes(data.tobytes())
