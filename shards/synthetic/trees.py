"""Write the raw trees of data sets with generated faces.

A clip's pictures depend only on the seed, the clip and its identity, so any number of processes writes the same bytes.
A clip is drawn into `<folder>.part` and renamed when its last frame is written, stills are renamed one by one;
`synthetic.json` is written last. So an interrupted run leaves only whole clips behind, and the same command resumes it.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from dfer.errors import StorageError, UsageError, message
from shards import pool
from shards.sources.generated import BEGUN, RECORD, read_record
from shards.synthetic.face import ClipPainter
from shards.synthetic.identity import draw_identity, draw_scene
from shards.synthetic.layouts import Clip, Layout, plan_clips
from shards.synthetic.motion import clip_motion
from shards.synthetic.pictures import descriptions, draw_still, join_rows, still_paths
from shards.synthetic.stills import layout_of

VERSION = 1  # increase when the same arguments give different pictures
SIZES = range(32, 1025)


@dataclass(frozen=True, kw_only=True)
class SynthSummary:
    """Result of `synth`. drawn: clips drawn by this call, 0 when the tree was already complete."""

    out: Path
    dataset: str
    clips: int
    frames: int
    drawn: int
    seconds: float
    frames_per_second: float
    per_class: dict[str, int]
    identities: int

    def __str__(self) -> str:
        what = f"{self.clips} clips, {self.frames} frames, {self.identities} identities"
        classes = ", ".join(f"{name} {count}" for name, count in self.per_class.items())
        if not self.drawn:
            return f"{self.out} is complete already: generated {self.dataset}, {what}. Nothing to do."
        speed = f"{self.drawn} clips drawn in {self.seconds:.1f} s, {self.frames_per_second:.0f} frames/s"
        return f"{self.out}: generated {self.dataset}, {what} ({classes}); {speed}."


def synth(
    dataset: str, out: Path, *, clips: int, seed: int, jobs: int = 1, size: int | None = None, progress: bool = True
) -> SynthSummary:
    """Write a data set's raw tree of generated faces into `out`. dataset: a name of `shards.synthetic.stills.LAYOUTS`.

    clips: number in all folds together, of CK+ and KMU-FED that of sequences. size: side of the faces in pixels, None
    for the layout's. jobs: processes; the bytes written do not depend on it. A complete tree of the same arguments is
    left unchanged, an incomplete one is completed.
    Raises UsageError for wrong arguments and for a folder with other files, StorageError when the disk is full or not
    writable.
    """
    layout = layout_of(dataset)
    size = layout.size if size is None else size
    check_numbers(seed=seed, jobs=jobs, size=size)
    check_csv_size(layout, size)
    plan = plan_clips(layout, clips=clips, seed=seed)
    arguments = {"generator": VERSION, "dataset": dataset, "clips": clips, "seed": seed, "size": size}
    check_target(out, arguments=arguments)
    missing = missing_clips(out, layout=layout, plan=plan)
    began = time.perf_counter()
    with explained(out):
        if missing or not (out / RECORD).exists():
            write_tree(
                out, layout=layout, plan=plan, missing=missing, arguments=arguments, jobs=jobs, progress=progress
            )
    seconds = time.perf_counter() - began
    return summarise(out, dataset=dataset, plan=plan, missing=missing, seconds=seconds)


def check_numbers(*, seed: int, jobs: int, size: int) -> None:
    """Raise UsageError for numbers out of range."""
    if seed < 0:
        raise UsageError(message("--seed", expected="0 or more", got=str(seed), do="Choose another seed."))
    if jobs < 1:
        raise UsageError(message("--jobs", expected="1 process or more", got=str(jobs), do="Leave it out for one."))
    if size not in SIZES:
        expected = f"{SIZES[0]} to {SIZES[-1]} pixels"
        raise UsageError(message("--size", expected=expected, got=str(size), do="The real crops have 224."))


def check_csv_size(layout: Layout, size: int) -> None:
    """Raise UsageError for pictures of a size that the layout's csv does not have."""
    if layout.form and layout.form.csv and size != layout.size:
        expected = f"{layout.size} pixels, as {layout.form.csv} has them"
        raise UsageError(message("--size", expected=expected, got=str(size), do="Leave --size out."))


def check_target(out: Path, *, arguments: dict[str, Any]) -> None:
    """Raise UsageError unless `out` is absent, empty, or holds a tree of the same arguments, complete or not."""
    if out.exists() and not out.is_dir():
        raise UsageError(message(out, expected="a folder", got="a file", do="Choose another place for the data set."))
    found = next((read_record(out / name) for name in (RECORD, BEGUN) if (out / name).exists()), None)
    if found is None:
        if out.exists() and any(out.iterdir()):
            got = "a folder with other files in it"
            raise UsageError(message(out, expected="an empty or new folder", got=got, do="Choose another folder."))
        return
    other = {key: found.get(key) for key, value in arguments.items() if found.get(key) != value}
    if other:
        expected = ", ".join(f"{key} {arguments[key]}" for key in other)
        got = ", ".join(f"{key} {value}" for key, value in other.items())
        do = "Choose another folder, or delete this one to generate it again."
        raise UsageError(message(out, expected=f"generated faces with {expected}", got=got, do=do))


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn failures of the disk into StorageError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        do = "Free some space" if full else "Check the folder"
        do += " or choose another folder; the same command goes on with the clips that are missing."
        raise StorageError(message(out, expected="a folder that takes the frames", got=str(error), do=do)) from error


def missing_clips(out: Path, *, layout: Layout, plan: list[Clip]) -> list[Clip]:
    """List the clips that are not there, or not whole."""
    if layout.form is None:
        return [clip for clip in plan if not is_whole(out / clip.folder, frames=clip.frames)]
    if layout.form.csv and (out / layout.form.csv).exists():
        return []
    return [clip for clip in plan if not all(path.exists() for path in still_paths(clip, out))]


def is_whole(folder: Path, *, frames: int) -> bool:
    """Whether a clip's folder holds as many entries as it has frames."""
    return folder.is_dir() and sum(1 for _ in folder.iterdir()) == frames


def write_tree(
    out: Path,
    *,
    layout: Layout,
    plan: list[Clip],
    missing: list[Clip],
    arguments: dict[str, Any],
    jobs: int,
    progress: bool,
) -> None:
    """Draw the missing clips, then write the split files and, last, the record."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / BEGUN, text=json.dumps(arguments))
    (out / RECORD).unlink(missing_ok=True)
    drawing = partial(draw_still, form=layout.form) if layout.form else draw_clip
    draw = partial(drawing, out=out, seed=arguments["seed"], size=arguments["size"])
    frames = sum(clip.frames for clip in missing)
    with one_thread(), pool.progress_bar(frames, label=layout.name, unit="frames", show=progress) as bar:
        pool.run(draw, missing, jobs=jobs, bar=bar)
    files = layout.splits(plan, arguments["size"])
    if layout.form and layout.form.described:
        files |= descriptions(plan, layout.form, seed=arguments["seed"], size=arguments["size"])
    if layout.form and layout.form.csv and not (out / layout.form.csv).exists():
        join_rows(out, plan, name=layout.form.csv, rows=str(files.pop(layout.form.csv)))
    for name, text in files.items():
        if not (layout.form and name == layout.form.csv):
            write_text(out / name, text=text)
    hidden = ("folder", "name", "index", "first")
    clips = {c.key if layout.form else c.folder: {k: v for k, v in asdict(c).items() if k not in hidden} for c in plan}
    write_text(out / RECORD, text=json.dumps({**arguments, "per_clip": clips}, indent=1))
    (out / BEGUN).unlink()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit OpenCV to one thread within the block: for pictures this small its pool costs more than it saves."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def draw_clip(clip: Clip, *, out: Path, seed: int, size: int) -> None:
    """Draw and write one clip. Raises OSError when it cannot be written."""
    who = draw_identity(np.random.default_rng([seed, 1, clip.identity]))
    rng = np.random.default_rng([seed, 2, clip.index])
    motion = clip_motion(clip.emotion, frames=clip.frames, rng=rng)
    scene = draw_scene(size, rng=rng)
    folder = out / clip.folder
    part = folder.with_name(folder.name + ".part")
    for stale in (part, folder):
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    for number, image in enumerate(ClipPainter(motion, who=who, scene=scene, size=size).frames(rng=rng), start=1):
        data = simplejpeg.encode_jpeg(image, quality=scene.quality, colorspace="RGB", colorsubsampling="420")
        (part / clip.name.format(number)).write_bytes(data)
    part.rename(folder)
    pool.tick(clip.frames)


def write_text(path: Path, *, text: str | bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode() if isinstance(text, str) else text)
    part.replace(path)


def summarise(out: Path, *, dataset: str, plan: list[Clip], missing: list[Clip], seconds: float) -> SynthSummary:
    """Make the summary of a finished tree."""
    counts = Counter(clip.emotion for clip in plan)
    return SynthSummary(
        out=out,
        dataset=dataset,
        clips=len(plan),
        frames=sum(clip.frames for clip in plan),
        drawn=len(missing),
        seconds=seconds,
        frames_per_second=sum(clip.frames for clip in missing) / max(seconds, 1e-9),
        per_class={name: counts[name] for name in layout_of(dataset).emotions},
        identities=len({clip.identity for clip in plan}),
    )
