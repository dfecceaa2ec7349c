"""The demonstration of Exp-CLIP: what its teacher reads, and what its head gains on people whom nobody trained on."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfer.data.features import FeatureSet
from dfer.emotions import BASIC7
from dfer.storage import Folder
from tests.integration.commands import environment, finish

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PICTURES = 40


def pairs_of(raw: Path, folder: Path) -> FeatureSet:
    """The pairs of the captioned pictures of a tree, by the demonstration's own configuration."""
    finish("build", "described", raw, folder / "shards", "--jobs", 1, "--no-progress", module="shards")
    words = [f"run={folder}/run", f"pairs.shards={folder}/shards", f"pairs.features={folder}/features"]
    words += ["pairs.partitions=[train]", "pairs.towers.pretrained=null", "pairs.batch=8"]
    finish("extract", ROOT / "configs" / "exp_clip" / "demo_extract.yaml", *words)
    (place,) = (folder / "features").iterdir()
    pairs = FeatureSet.open(Folder(str(place)))
    assert pairs is not None
    return pairs


def test_other_classes_change_no_feature(tmp_path: Path) -> None:
    """Every class becomes the next one in the table of classes; the teacher has the descriptions alone."""
    raw, other = tmp_path / "raw", tmp_path / "other"
    finish("synth", "described", raw, "--clips", PICTURES, "--size", 32, "--no-progress", module="shards")
    shutil.copytree(raw, other)
    rows = list(csv.reader((raw / "labels.csv").read_text().splitlines()))
    after = {name: BASIC7[(number + 1) % len(BASIC7)] for number, name in enumerate(BASIC7)}
    moved = [[file, after.get(name, name), person] for file, name, person in rows]
    assert sum(old != new for old, new in zip(rows, moved, strict=True)) > PICTURES / 2
    (other / "labels.csv").write_text("".join(f"{','.join(row)}\n" for row in moved))
    ours, theirs = pairs_of(raw, tmp_path / "one"), pairs_of(other, tmp_path / "two")
    assert ours.keys == theirs.keys and len(ours) > 10
    assert len(ours.features["teacher"].unique(dim=0)) > 5, "the descriptions differ"
    for name in ("student", "teacher"):
        assert torch.equal(ours.features[name], theirs.features[name])


@pytest.mark.long
@pytest.mark.timeout(2460)
@pytest.mark.slow("the whole demonstration: 5,600 faces, 40 epochs of a small CLIP, a head, two evaluations")
def test_the_head_raises_zero_shot_uar(tmp_path: Path) -> None:
    env = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "launch" / "demo_zeroshot.sh"), str(tmp_path / "demo"), "2"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "exp_clip minus clip" in done.stdout
    (table,) = tmp_path.glob("demo/*/zeroshot/report/report.json")
    told = json.loads(table.read_text())
    (found,) = told["sets"]
    plain = next(line for line in found["lines"] if line["model"] == "clip")["intervals"]["uar"]
    assert plain["low"] > 1 / len(BASIC7)
    (gain,) = found["differences"]
    assert gain["intervals"]["uar"]["low"] > 0, found["differences"]
    assert "action units" in told["remark"].lower()
