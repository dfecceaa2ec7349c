"""DK-CLIP learns on generated faces, from a small CLIP that is trained here first.

Chance is one in seven; each of its three answers must beat it on the test clips of fold 1 by three standard errors of
chance. From random towers, three configurations on 280 clips overfitted and stayed at chance. 2026-11-27, two busy
cores, CPU time: 24 s for the tree, 47 s for the CLIP (zero-shot WAR 44.4), 61 s for DK-CLIP (loss 11.4 to 3.9; WAR
45.4, local 42.3, fused 43.9; chance 14.3).
"""

from pathlib import Path

import pytest

from tests.integration.commands import Capture, here, make_shards, records, result
from tests.integration.learning import errors_above_chance

pytestmark = [pytest.mark.integration, pytest.mark.long]

CLIPS = 980
BASE = """
epochs: 1
batch: 32
eval_batch: 64
log_every: 10
data:
  shards: shards
  frames: 4
  size: 64
  workers: 0
  augment: {crop: true, min_area: 0.85, flip: 0.5, brightness: 0.1}
engine: {name: ddp, clip_norm: 1.0}
checkpoint: {every_epochs: 100, keep_last: 1}
schedule: {name: cosine, warmup_epochs: 1}
"""
CLIP = """
base: base.yaml
data: {frames: 2}
model: {name: contrastive, towers: {arch: tiny-vit-64}, text: action_units, text_from: class, train_text: false}
optim: {name: adamw, weight_decay: 0.05, groups: {image: {lr: 1.0e-3}, scale: {lr: 1.0e-3}}}
"""
DK_CLIP = """
base: base.yaml
model: {name: dk_clip, towers: {arch: tiny-vit-64}, snippet: 2, second_encoder: clip}
optim:
  name: adamw
  betas: [0.9, 0.98]
  weight_decay: 1.0e-3
  no_decay: true
  groups:
    image: {lr: 5.0e-4}
    semantic: {lr: 5.0e-4}
    messages: {lr: 1.0e-3}
    integration: {lr: 1.0e-3}
    prompts: {lr: 1.0e-3}
"""


@pytest.mark.slow("980 clips are drawn, a CLIP and then DK-CLIP are trained: 2 to 4 minutes")
def test_dk_clip_learns_from_a_small_clip(capsys: Capture, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "faces", "dfew", clips=CLIPS) / "shards"
    for name, text in {"base": BASE, "clip": CLIP, "dk_clip": DK_CLIP}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for name, epochs in {"clip": 10, "dk_clip": 4}.items():
        words = [f"data.shards={shards}", f"run={tmp_path / name}", f"epochs={epochs}"]
        if name == "dk_clip":
            (weights,) = (tmp_path / "clip" / "checkpoints").glob("step_*/weights.safetensors")
            words.append(f"model.towers.pretrained={weights}")
        done = here(capsys, "train", tmp_path / f"{name}.yaml", *words)
        assert done.returncode == 0, done.stderr[-3000:]
    found = result(tmp_path / "dk_clip")
    assert found["clips"] == CLIPS // 5
    wars = {"global": found["war"], **{name: answer["war"] for name, answer in found["variants"].items()}}
    assert min(errors_above_chance(war, found["clips"]) for war in wars.values()) > 3, wars
    losses = [record["loss"] for record in records(tmp_path / "dk_clip", "train")]
    assert losses[-1] < losses[0] / 2, losses
