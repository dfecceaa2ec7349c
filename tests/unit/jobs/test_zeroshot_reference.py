"""With the same weights the suite answers as the released test of Exp-CLIP did; see tests/reference/README.md."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfer.config import from_plain
from dfer.distributed import World
from dfer.evaluation.scores import percent
from dfer.interruption import Stop
from dfer.jobs.zeroshot_config import ZeroshotConfig
from dfer.jobs.zeroshot_features import CLIPS, Texts, Towers, clip_features
from dfer.jobs.zeroshot_scores import answered, evaluate_set
from dfer.jobs.zeroshot_sets import open_set
from dfer.models.zero_shot import read_head
from dfer.report.zeroshot import suite_of
from tests.reference import exp_clip_recipe as recipe
from tests.unit.data.shardkit import Clip, write_shards

RECORDED = Path(__file__).parents[2] / "reference"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(RECORDED / "exp_clip.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ZeroshotConfig:
    """The small CLIP as a file in OpenAI's names, the head as torch saves it, pictures and clips without loss."""
    home = tmp_path_factory.mktemp("exp_clip")
    weights = {name: torch.from_numpy(np.asarray(x)) for name, x in recipe.clip_weights().items()}
    save_file(weights, home / "clip.safetensors")
    (home / "arch.json").write_text(json.dumps(recipe.CLIP_LAYOUT))
    torch.save({"mlp.weight": torch.from_numpy(recipe.head())}, home / "ExpCLIP_model.pth")
    sets = {}
    for stored in recipe.STORED:
        recipe.write_pictures(home / stored / "pictures", stored=stored)
        frames = [list(map(png, recipe.frames(n, stored=stored))) for n in range(len(recipe.LENGTHS))]
        tested = [Clip(key=f"{n}", label=n, frames=shown) for n, shown in enumerate(frames)]
        (home / stored / "clips").mkdir()
        write_shards(
            home / stored / "clips", {"test": [tested], "train": [[Clip(key="x", frames=frames[-1])]]}, media="png"
        )
        sets[f"{stored}-pictures"] = {"pictures": f"{home}/{stored}/pictures", "classes": "basic7"}
        sets[f"{stored}-clips"] = {"shards": f"{home}/{stored}/clips", "classes": "basic7"}
    model = {"towers": {"arch": f"{home}/arch.json", "pretrained": f"{home}/clip.safetensors"}}
    plain = {
        "run": f"{home}/run",
        "features": f"{home}/features",
        "models": {"exp_clip": {**model, "head": f"{home}/ExpCLIP_model.pth"}},
        "sets": sets,
        "workers": 0,
        "batch": 32,
    }
    return from_plain(ZeroshotConfig, plain)


@pytest.mark.slow("a hundred frames of 224 pixels, read, encoded and answered for five prompt kinds")
@pytest.mark.parametrize(("stored", "within"), [("whole", 1e-4), ("resized", 0.02)])
@pytest.mark.parametrize("what", ["pictures", "clips"])
def test_logits_and_scores_equal_the_released_test(
    what: str, stored: str, within: float, config: ZeroshotConfig, recorded: dict[str, Any]
) -> None:
    name, model = f"{stored}-{what}", config.models["exp_clip"]
    data, towers = open_set(config, name), Towers(config, "exp_clip", World())
    head = read_head(Path(str(model.head)), dim=towers.embed_dim)
    clips = clip_features(towers, data, Stop()).select(data.keys).features[CLIPS]
    theirs = list(map(int, data.keys)) if what == "clips" else [_place(key) for key in data.keys]
    for kind in recipe.KINDS:
        found = answered(clips, Texts(towers, data.emotions, kind), model, head, data)
        expected = recorded[f"{stored}/{kind}/{what}"][theirs]
        np.testing.assert_allclose(found.logits.numpy(), expected, atol=within, rtol=0, err_msg=kind)
    table = suite_of([evaluate_set(config, name, f"{config.run}/{name}", World(), Stop())], absent={}, waiting=())
    for line in table.sets[0].lines[: len(recipe.KINDS)]:
        uar, war = recorded[f"{stored}/{line.kind}/{what}/scores"]
        assert (percent(line.mean.uar), percent(line.mean.war)) == (f"{uar:.2f}", f"{war:.2f}")


def _place(key: str) -> int:
    """Place of a picture in the release, whose class folders are sorted in the order of the classes."""
    name, _, file = key.partition("/")
    return 2 * recipe.CLASSES.index(name) + int(file[0])


def test_the_recording_tells_kinds_and_clips_apart_and_has_short_clips(recorded: dict[str, Any]) -> None:
    """Else agreement within the tolerance would mean nothing."""
    for what in ("pictures", "clips"):
        logits = [recorded[f"whole/{kind}/{what}"] for kind in recipe.KINDS]
        assert min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i]) > 0.1
        rows = logits[0]
        assert min(np.abs(a - b).max() for i, a in enumerate(rows) for b in rows[:i]) > 0.05
    assert sum(length <= 16 for length in recipe.LENGTHS) == 3


def test_the_recording_says_where_it_comes_from() -> None:
    about = json.loads((RECORDED / "exp_clip.json").read_text())
    assert about["repository"] == "zengqunzhao/Exp-CLIP" and about["commit"].startswith("23ace53")
    assert sum(about["ensembles"].values()) == 165
