"""DK-CLIP trained as a user does: on every engine, and continued."""

import math
from pathlib import Path

import pytest
import torch

from tests.integration.commands import finish, last_weights, records, result

pytestmark = pytest.mark.integration

TINY = """
run: run
epochs: 2
batch: 8
eval_batch: 8
rank_mean: 2
data:
  shards: {shards}
  frames: 4
  size: 64
  workers: 0
model:
  name: dk_clip
  towers: {{arch: tiny-vit-64}}
  snippet: 2
  losses: {{schedule: global_then_all, epoch: 1}}
optim:
  name: adamw
  no_decay: true
  weight_decay: 1.0e-3
  groups:
    image: {{lr: 3.0e-4}}
    semantic: {{lr: 3.0e-4}}
    messages: {{lr: 3.0e-4}}
    integration: {{lr: 3.0e-4}}
    prompts: {{lr: 3.0e-4}}
engine: {{name: deepspeed, zero: 3}}
checkpoint: {{every_epochs: 1}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, dfew: Path) -> Path:
    path = tmp_path_factory.mktemp("dk_clip") / "dk_clip.yaml"
    path.write_text(TINY.format(shards=dfew / "shards"))
    return path


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def test_it_trains_under_zero_3_and_scores_all_of_its_answers(config: Path, tmp_path: Path) -> None:
    """The loss changes its terms at epoch 1; without a gradient for every parameter before and after, it would stop."""
    finish("train", config, f"run={tmp_path}")
    found = result(tmp_path)
    assert set(found["variants"]) == {"local", "fused"} and found["clips"] == 7
    assert found["protocol"]["normalisation"] == "ImageNet's mean and deviation"
    ranks = found["rank_mean"]
    assert ranks["ranks"] == 2 and math.isclose(ranks["uar"], sum(ranks["recall"]) / 7)
    terms = [set(record["terms"]) for record in records(tmp_path, "train")]
    assert terms[0] == {"global"} and terms[-1] == {"global", "local", "agreement"}


@pytest.mark.long
@pytest.mark.parametrize("engine", ["{name: ddp, zero: 0}", "{zero: 0}", "{zero: 1}", "{zero: 2}"])
def test_engines_agree_and_a_run_continues_under_another(config: Path, tmp_path: Path, engine: str) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    finish("train", config, f"run={whole}")
    finish("train", config, f"run={parted}", "epochs=1", f"engine={engine}")
    finish("train", config, f"run={parted}")
    assert losses(parted) == pytest.approx(losses(whole), rel=1e-3)
    ours, theirs = last_weights(parted), last_weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)
