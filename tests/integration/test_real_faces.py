"""Real faces through the whole chain at full size: video -> face crops -> DFEW's tree -> shards -> ViT-B/32 -> report.

The labels are invented: what is tested is that everything fits together, not that anything is learnt.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.integration.commands import finish, records, result

MEDIA = os.environ.get("DFER_TEST_MEDIA")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not MEDIA, reason="no real faces: set DFER_TEST_MEDIA to a folder with videos/"),
]
Picture = NDArray[np.uint8]
Box = tuple[int, int, int, int]

VIDEOS = (
    "grid_bbaf2n.mpg",
    "grid_brbk7n.mpg",
    "grid_lbax4n.mpg",
    "grid_lbbc2a.mpg",
    "grid_lrwp9a.mpg",
    "intel_asl_again.mkv",
    "intel_asl_eat.mkv",
    "intel_asl_no.mkv",
    "openmpf_h264_aac.mp4",
    "pyfeat_WolfgangLanger_Pexels.mp4",
)
CHOSEN = VIDEOS if os.environ.get("DFER_TEST_LONG") else VIDEOS[::2]
"""One or two clips of each fold are test clips, so that training has eight or four."""
BATCH = len(CHOSEN) * 2 // 5
"""Makes exactly two steps."""
SIDE, FRAMES, MARGIN = 224, 20, 0.2
CONFIGS = ("methods/dfer_clip", "sets/dfew")
FULL = ("model.towers.pretrained=null", "eval_batch=1", "epochs=1")


def frames(video: Path) -> Iterator[Picture]:
    """Frames as decoded; the container's count is not to be trusted."""
    capture = cv2.VideoCapture(str(video))
    try:
        while (read := capture.read())[0]:
            yield read[1].astype(np.uint8, copy=False)
    finally:
        capture.release()


def largest_face(finder: cv2.CascadeClassifier, picture: Picture) -> Box | None:
    found = finder.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 1.1, 5, minSize=(60, 60))
    x, y, w, h = max(found, key=lambda box: box[2] * box[3], default=(0, 0, 0, 0))
    return (int(x), int(y), int(w), int(h)) if w else None


def crop(picture: Picture, box: Box) -> Picture:
    x, y, w, h = box
    grow = round(MARGIN * w)
    part = picture[max(0, y - grow) : y + h + grow, max(0, x - grow) : x + w + grow]
    return cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def faces(video: Path) -> Iterator[Picture]:
    """Face crops; where no face is found, the last one's place."""
    finder = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    box: Box | None = None
    for picture in frames(video):
        box = largest_face(finder, picture) or box
        if box is not None:
            yield crop(picture, box)


def write_tree(root: Path, videos: list[Path]) -> None:
    """DFEW's layout: clip k is in the test set of fold k mod 5."""
    for number, video in enumerate(videos, start=1):
        folder = root / "Clip" / "clip_224x224" / f"{number:05d}"
        folder.mkdir(parents=True)
        for at, face in enumerate(islice(faces(video), FRAMES), start=1):
            assert cv2.imwrite(str(folder / f"{number:05d}_{at:05d}.jpg"), face, [cv2.IMWRITE_JPEG_QUALITY, 95])
    for fold in range(1, 6):
        for side in ("train", "test"):
            path = root / "EmoLabel_DataSplit" / f"{side}(single-labeled)" / f"set_{fold}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            mine = [n for n in range(1, len(videos) + 1) if (n % 5 + 1 == fold) == (side == "test")]
            path.write_text("video_name,label\n" + "".join(f"{n},{n % 7 + 1}\n" for n in mine))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    write_tree(folder / "raw", [Path(str(MEDIA)) / "videos" / name for name in CHOSEN])
    finish("build", "dfew", folder / "raw", folder / "shards", "--jobs", 2, "--no-progress", module="shards")
    return folder / "shards"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose checkpoints, a gigabyte, do not outlive the test."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)


def test_faces_are_found_and_packed(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    assert sum(map(sum, manifest["counts"].values())) == len(CHOSEN)
    assert sum(shard["frames"] for shard in manifest["shards"]) == FRAMES * len(CHOSEN)
    pictures = [cv2.imread(str(path)) for path in sorted(shards.parent.glob("raw/Clip/*/*/*_00010.jpg"))]
    assert {picture.shape for picture in pictures} == {(SIDE, SIDE, 3)}
    assert min(float(picture.std()) for picture in pictures) > 10  # no grey nothing


@pytest.mark.slow("the published model at its full size: two steps, a checkpoint of 929 MiB, and reading it twice")
@pytest.mark.parametrize(
    ("precision", "micro_batch"),
    [("bf16", BATCH // 2), pytest.param("fp32", 1, marks=pytest.mark.long)],
    ids=["bf16", "fp32"],
)
def test_two_full_size_steps_evaluate_and_report(shards: Path, run: Path, precision: str, micro_batch: int) -> None:
    # Exactly two steps of the published model and recipe, of two micro-batches and more.
    words = (*FULL, f"batch={BATCH}", f"micro_batch={micro_batch}", f"engine.precision={precision}")
    finish("train", *CONFIGS, f"data.shards={shards}", f"run={run}", *words, timeout=500)
    steps = records(run, "train")
    assert [record["step"] for record in steps] == [1, 2]
    for record in steps:
        assert math.isfinite(record["loss"]) and record["loss"] > 0 and record["grad_norm"] > 0
        assert record["lr"] == pytest.approx({"image": 1e-5, "temporal": 1e-2, "prompts": 1e-3})
    said = result(run)
    assert (said["clips"], sum(said["count"]), said["step"]) == (len(CHOSEN) // 5, len(CHOSEN) // 5, 2)
    assert said["protocol"]["num_frames"] == 16 and said["protocol"]["size"] == SIDE
    finish("evaluate", run, timeout=300)
    assert result(run) == said
    finish("report", run)
    page = (run / "report" / "index.html").read_text()
    assert "1 of 5 folds" in page
    assert "59.61" not in page and "71.25" not in page  # the paper's numbers are not those of two steps
