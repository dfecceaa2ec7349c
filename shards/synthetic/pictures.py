"""Draw and write stills, and sequences that rise to an apex.

Unlike in clips (`shards.synthetic.motion`), every class has a pattern of its own: a still has no order of frames that
could tell the classes of a temporal pair apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from shards.pool import tick
from shards.sources.described import CAPTIONED, DESCRIPTIONS
from shards.synthetic.action_units import ACTION_UNITS, CANONICAL, Array, mirror, vector
from shards.synthetic.describe import caption, description
from shards.synthetic.face import ClipPainter, Image
from shards.synthetic.identity import Identity, Scene, draw_identity, draw_scene
from shards.synthetic.layouts import Clip, Form
from shards.synthetic.motion import Motion, clip_motion, smoothstep
from shards.synthetic.stills import corner

QUALITY = 95


def still_motion(emotion: str, *, frames: int, start: float, rng: np.random.Generator) -> Motion:
    """Draw the movement of a sequence that rises from `start` to the apex of `emotion`; one frame is the apex."""
    motion = clip_motion("neutral", frames=frames, rng=rng)
    pattern = vector(CANONICAL[emotion])
    if rng.random() < 0.5:
        pattern = mirror(pattern)
    peak = pattern * rng.uniform(0.6, 1.0) * rng.uniform(0.8, 1.1, len(ACTION_UNITS))
    units = np.clip(motion.units + peak * _rise(frames, start)[:, None], 0.0, 1.0)
    return replace(motion, units=units.astype(np.float32))


def _rise(frames: int, start: float) -> Array:
    """Intensities (T,) from `start` to 1, which the last frames have nearly reached."""
    curve = smoothstep(np.linspace(0.0, 1.25, frames, dtype=np.float32)) if frames > 1 else np.ones(1, np.float32)
    out: Array = start + (1.0 - start) * curve
    return out


def draw_still(clip: Clip, form: Form, *, out: Path, seed: int, size: int) -> None:
    """Draw a clip's pictures and write each atomically. Raises OSError."""
    rng = np.random.default_rng([seed, 2, clip.index])
    who, motion, scene = _drawn(clip, form, seed=seed, size=size, rng=rng)
    folder = out / clip.folder
    folder.mkdir(parents=True, exist_ok=True)
    for path, image in zip(
        still_paths(clip, out), ClipPainter(motion, who=who, scene=scene, size=size).frames(rng=rng), strict=True
    ):
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(_encoded(_on_canvas(image, clip, form), form, path.suffix.lower()))
        part.replace(path)
    tick(clip.frames)


def _drawn(clip: Clip, form: Form, *, seed: int, size: int, rng: np.random.Generator) -> tuple[Identity, Motion, Scene]:
    """Draw the numbers that decide a clip's pictures. rng: a new one of the clip; it goes on with the sensor noise."""
    who = draw_identity(np.random.default_rng([seed, 1, clip.identity]))
    motion = still_motion(clip.emotion, frames=clip.frames, start=form.start, rng=rng)
    return who, motion, draw_scene(size, rng=rng)


def descriptions(plan: Sequence[Clip], form: Form, *, seed: int, size: int) -> dict[str, str | bytes]:
    """Make a file for each folder of stills, with the columns file and text: captions of the pictures of `train`,
    descriptions of the action units of the others. The words know the numbers that draw a picture, not its class."""
    rows: dict[str, list[str]] = {}
    for clip in plan:
        who, motion, scene = _drawn(clip, form, seed=seed, size=size, rng=np.random.default_rng([seed, 2, clip.index]))
        units, words = motion.units[-1], np.random.default_rng([seed, 3, clip.index])
        captioned = clip.folder == CAPTIONED
        text = caption(units, who=who, scene=scene, rng=words) if captioned else description(units, rng=words)
        rows.setdefault(clip.folder, ["file,text\n"]).append(f'{clip.name},"{text}"\n')
    return {f"{folder}/{DESCRIPTIONS}": "".join(lines) for folder, lines in rows.items()}


def still_paths(clip: Clip, out: Path) -> list[Path]:
    """List the files of a clip's pictures."""
    return [out / clip.folder / clip.name.format(clip.first + number) for number in range(clip.frames)]


def _on_canvas(image: Image, clip: Clip, form: Form) -> Image:
    """Put a face (S, S, 3) into a larger picture of one colour."""
    size = len(image)
    width, height = (round(size * share) for share in form.canvas)
    if (width, height) == (size, size):
        return image
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = image.mean((0, 1))
    left, top = corner(clip, size, form.canvas)
    canvas[top : top + size, left : left + size] = image
    return canvas


def _encoded(image: Image, form: Form, suffix: str) -> bytes:
    """Encode a picture by the suffix of its file; `.txt` is a row of numbers."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) if form.grey else None
    if suffix == ".txt":
        assert grey is not None
        return " ".join(map(str, grey.ravel().tolist())).encode()
    if suffix == ".png":
        return cv2.imencode(".png", grey if grey is not None else image[..., ::-1])[1].tobytes()
    pixels, colours = (image, ("RGB", "420")) if grey is None else (grey[..., None], ("GRAY", "GRAY"))
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, *colours)
    return jpeg


def join_rows(out: Path, clips: list[Clip], *, name: str, rows: str) -> None:
    """Put the rows of numbers into a csv, and remove their files. rows: the csv with `{}` in place of each picture."""
    path = out / name
    part = path.with_name(f"{path.name}.part")
    head, *lines = rows.splitlines(keepends=True)
    with part.open("w") as file:
        file.write(head)
        for clip, line in zip(clips, lines, strict=True):
            file.write(line.format(still_paths(clip, out)[0].read_text()))
    part.replace(path)
    for clip in clips:
        still_paths(clip, out)[0].unlink()
    (out / clips[0].folder).rmdir()
