"""Generated trees of stills and of AFEW: every layout is built, verified and shown; runs are repeated and resumed."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfer.errors import UsageError
from shards import __main__ as cli
from shards.sources import SOURCES
from shards.synthetic import synth
from shards.synthetic.stills import LAYOUTS, STILLS
from shards.verify import load_manifest

FORMS = {"affectnet_resized": "affectnet", "affectnet_folders": "affectnet", "fer2013_folders": "fer2013"}
FEWEST = {
    "raf_db": 14,
    "affectnet": 16,
    "affectnet_resized": 16,
    "affectnet_folders": 16,
    "fer2013": 21,
    "fer2013_folders": 21,
    "ferplus": 24,
    "ckplus": 7,
    "ckplus48": 7,
    "kmu_fed": 6,
    "afew": 14,
    "described": 21,
}
A_CLIP = {"ckplus": 3, "ckplus48": 3, "kmu_fed": 10}
"""Stills of a sequence."""


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def make(layout: str, out: Path, **more: int) -> None:
    synth(
        layout,
        out,
        **{"clips": FEWEST[layout], "seed": 3, "size": 48 if layout == "fer2013" else 32, **more},
        progress=False,
    )


def test_every_source_has_a_layout() -> None:
    assert {FORMS.get(name, name) for name in LAYOUTS} == set(SOURCES)
    assert set(FEWEST) == {layout.name for layout in STILLS} | {"afew", "described"}


@pytest.mark.parametrize("layout", FEWEST)
def test_a_generated_tree_is_built_verified_and_shown(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(layout, tmp_path / "raw")
    before = contents(tmp_path / "raw")
    dataset, out = FORMS.get(layout, layout), str(tmp_path / "out")
    common = ["--jobs", "1", "--no-progress"]
    assert cli.main(["build", dataset, str(tmp_path / "raw"), out, *common]) == 0
    assert cli.main(["verify", out, *common]) == 0
    assert cli.main(["show", out]) == 0
    told = capsys.readouterr().out
    assert f"generated faces in {dataset}'s layout" in told and "every frame decodes" in told
    manifest = load_manifest(out)
    assert sum(shard.clips for shard in manifest.shards) == FEWEST[layout] * A_CLIP.get(layout, 1)
    assert all(sum(row[at] for row in manifest.counts.values()) for at in range(len(manifest.classes)))
    drawn = json.loads(before["synthetic.json"])["per_clip"]
    emotions = Counter(clip["emotion"] for key, clip in drawn.items() if not key.startswith("unlabelled/"))
    counted = {name: sum(row[at] for row in manifest.counts.values()) for at, name in enumerate(manifest.classes)}
    assert counted == {name: count * A_CLIP.get(layout, 1) for name, count in emotions.items()}
    make(layout, tmp_path / "raw")
    assert contents(tmp_path / "raw") == before


@pytest.mark.parametrize("layout", ["ckplus48", "fer2013", "affectnet"])
def test_an_interrupted_tree_is_completed(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(layout, tmp_path / "whole")
    written = Path.write_bytes
    count = 0

    def stops(self: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 12:
            raise KeyboardInterrupt
        return written(self, data)

    monkeypatch.setattr(Path, "write_bytes", stops)
    with pytest.raises(KeyboardInterrupt):
        make(layout, tmp_path / "cut")
    monkeypatch.undo()
    make(layout, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_the_real_ck_sizes_come_out_of_327_sequences() -> None:
    from shards.synthetic.layouts import plan_clips

    plan = plan_clips(LAYOUTS["ckplus48"], clips=327, seed=1)
    found = Counter(clip.emotion for clip in plan)
    names = ("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
    assert [found[name] for name in names] == [45, 18, 59, 25, 69, 28, 83]


def test_stills_are_grey_of_48_pixels_by_default(tmp_path: Path) -> None:
    synth("ckplus48", tmp_path, clips=7, seed=1, progress=False)
    for path in tmp_path.rglob("*.png"):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape == (48, 48) and picture.dtype == np.uint8


def test_every_class_of_stills_looks_its_own() -> None:
    """Unlike in clips, surprise and fear differ in one frame: their mean action units are those of their patterns."""
    from shards.synthetic.action_units import COLUMN
    from shards.synthetic.pictures import still_motion

    def units(emotion: str) -> np.ndarray:
        draws = [
            still_motion(emotion, frames=1, start=1.0, rng=np.random.default_rng(seed)).units[0] for seed in range(40)
        ]
        return np.mean(draws, axis=0)

    fear, surprise, anger, disgust = map(units, ("fear", "surprise", "anger", "disgust"))
    assert fear[COLUMN["20"]] > surprise[COLUMN["20"]] + 0.4 and surprise[COLUMN["26"]] > fear[COLUMN["26"]] + 0.3
    assert disgust[COLUMN["9"]] > anger[COLUMN["9"]] + 0.4 and anger[COLUMN["23"]] > disgust[COLUMN["23"]] + 0.4


def test_a_sequence_rises_to_its_apex() -> None:
    from shards.synthetic.action_units import COLUMN
    from shards.synthetic.pictures import still_motion

    motion = still_motion("surprise", frames=6, start=0.0, rng=np.random.default_rng(2))
    jaw = motion.units[:, COLUMN["26"]]
    assert jaw[0] < 0.2 < 0.4 < jaw[-3] <= jaw[-2] == jaw[-1]


def test_the_csv_of_fer2013_has_pictures_of_48_pixels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--size: expected 48 pixels, as fer2013.csv has them, got 32. Leave --size"):
        make("fer2013", tmp_path / "x", size=32)


def test_an_unknown_layout_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ckplus48'"):
        synth("ckplus4", tmp_path / "x", clips=7, seed=1, progress=False)
    assert cli.main(["synth", "imagenet", str(tmp_path / "x"), "--clips", "7"]) == 2
