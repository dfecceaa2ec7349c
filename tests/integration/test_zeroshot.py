"""The zero-shot suite over generated faces as a user starts it: ranks, parts beside each other, `dfer evaluate`."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shards.__main__ import main as builder
from shards.synthetic import synth
from tests.integration.commands import Capture, finish, here, refused, result
from tests.integration.ranks import finish_ranks

pytestmark = pytest.mark.integration

KINDS = ("class_names", "ensemble_5")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, dfew: Path) -> Path:
    """A configuration over clips, stills, a folder of pictures and a set that is absent."""
    home = tmp_path_factory.mktemp("suite")
    synth("raf_db", home / "raf_db", clips=42, seed=3, size=48, progress=False)
    assert builder(["build", "raf_db", str(home / "raf_db"), str(home / "stills"), "--jobs", "1", "--no-progress"]) == 0
    for name in ("happiness", "fear"):
        folder = home / "pictures" / name
        folder.mkdir(parents=True)
        for number, picture in enumerate(sorted((home / "raf_db").rglob("test*.jpg"))[:3]):
            (folder / f"{number}.jpg").write_bytes(picture.read_bytes())
    torch.manual_seed(4)
    torch.save({"mlp.weight": torch.randn(64, 128)}, home / "head.pth")
    plain: dict[str, Any] = {
        "job": "zeroshot",
        "run": str(home / "run"),
        "features": str(home / "features"),
        "models": {
            "clip": {"towers": {"arch": "tiny-conv-64"}},
            "exp_clip": {"towers": {"arch": "tiny-conv-64"}, "head": str(home / "head.pth")},
        },
        "texts": list(KINDS),
        "sets": {
            "dfew": {"shards": str(dfew / "shards"), "classes": "basic7"},
            "raf_db": {"shards": str(home / "stills"), "classes": "basic7"},
            "pictures": {"pictures": str(home / "pictures")},
            "mafw": {"shards": str(home / "mafw")},
        },
        "frames": 8,
        "workers": 0,
    }
    path = home / "suite.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def counts(run: Path, name: str) -> dict[tuple[str, str], Any]:
    plain = json.loads((run / name / "results" / "zeroshot.json").read_text())
    return {(answer["model"], answer["kind"]): answer["confusion"] for answer in plain["answers"]}


@pytest.mark.slow("two ranks, a launcher with two parts, an evaluation")
def test_ranks_and_parts_give_one_table_and_evaluate_the_same(suite: Path, tmp_path: Path, dfew: Path) -> None:
    home = suite.parent
    said, _ = finish_ranks(("-m", "dfer", "zeroshot", suite, "--only", "dfew,raf_db"), ranks=2)
    assert "mafw: absent, there is no " in said.stdout and "pictures: there, but not evaluated" in said.stdout
    assert "8 frames a clip; a clip of at most 8 frames shows its first one 8 times" in said.stdout
    there = {path: path.stat().st_mtime_ns for path in (home / "features").rglob("*.safetensors")}
    again = finish("local", suite, "--parallel", 2, f"run={tmp_path / 'run'}", module="launch")
    assert "mean of 2 kinds" in again.stdout and "there, but" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in there} == there, "features are read, not computed again"
    for name in ("dfew", "raf_db"):
        assert counts(home / "run", name) == counts(tmp_path / "run", name)
    assert len((tmp_path / "run" / "report" / "index.html").read_text()) > 10_000
    words = [
        f"run={tmp_path / 'one'}",
        f"data.shards={dfew / 'shards'}",
        "data.workers=0",
        "data.frames=8",
        "data.size=64",
    ]
    words += ["fold=2", "model.towers.arch=tiny-conv-64", "model.towers.pretrained=null", "engine.name=ddp"]
    words += ["data.sampling=exp_clip", f"model.head={home / 'head.pth'}", "data.classes=basic7"]
    finish("evaluate", "methods/zero_shot_ensemble_5", *words)
    assert counts(home / "run", "dfew")["exp_clip", "ensemble_5"]["2"] == result(tmp_path / "one")["confusion"]
    with (home / "run" / "dfew" / "results" / "exp_clip-ensemble_5_predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 35


def test_wrong_input_is_told_before_anything_is_computed(suite: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.save({"mlp.weight": torch.ones(3, 512)}, tmp_path / "wide.pth")
    odd = [f"run={tmp_path / 'run'}", f"features={tmp_path / 'f'}"]
    done = here(capsys, "zeroshot", suite, *odd, f"models.exp_clip.head={tmp_path / 'wide.pth'}")
    refused(
        done, 5, "wide.pth: expected one tensor mlp.weight of (any number, 128), the width of tiny-conv-64", "(3, 512)"
    )
    (tmp_path / "numbered" / "1").mkdir(parents=True)
    picture = next(suite.parent.glob("pictures/fear/*.jpg"))
    (tmp_path / "numbered" / "1" / "a.jpg").write_bytes(picture.read_bytes())
    done = here(
        capsys, "zeroshot", suite, *odd, f"sets.pictures.pictures={tmp_path / 'numbered'}", "--only", "pictures"
    )
    refused(done, 3, "sets.pictures: ", "expected folders named as classes", "got 1.")
    done = here(capsys, "zeroshot", suite, *odd, "--only", "mafw")
    refused(done, 2, "--only: expected some of dfew, raf_db, pictures, got mafw")
    assert not (tmp_path / "f").exists()
