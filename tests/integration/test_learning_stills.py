"""The CNNs and CLIVP-FER learn on stills of generated faces, in RAF-DB's layout.

Chance is one in seven. Each method must beat it on the 280 test pictures by three standard errors of chance. The CNNs
begin from random weights, CLIVP-FER from a small CLIP that is trained here on the same training pictures. Accuracies
and CPU times: docs/benchmarks/2026-11-28_learning.md.
"""

from pathlib import Path

import pytest

from tests.integration.commands import Capture, make_shards
from tests.integration.learning import learned
from tests.suite import once

pytestmark = [pytest.mark.integration, pytest.mark.long]

STILLS, TESTED = 1400, 280
BASE = """
run: run
log_every: 100
data: {{shards: {shards}, frames: 1, workers: 0}}
engine: {{name: ddp, clip_norm: 1.0}}
checkpoint: {{every_epochs: 100, keep_last: 1}}
"""
CNN = """
base: base.yaml
batch: 32
eval_batch: 280
data:
  size: 32
  augment: {name: cnn, crop: true, flip: 0.5, side: 36}
  views: {crops: 10}
schedule: {name: cosine, warmup_epochs: 1}
"""
RECIPES = {
    "resnet18": """
base: cnn.yaml
epochs: 10
model: {name: cnn, net: resnet18, width: 8, dropout: 0.2}
optim: {name: sgd, momentum: 0.9, weight_decay: 5.0e-4, groups: {network: {lr: 0.05}}}
engine: {clip_norm: null, clip_value: 0.1}
""",
    "vgg19": """
base: cnn.yaml
epochs: 14
batch: 16
model: {name: cnn, net: vgg19, width: 8, dropout: 0.1}
optim: {name: adamw, weight_decay: 0.01, groups: {network: {lr: 1.0e-3}}}
schedule: {warmup_epochs: 2}
""",
    "contrastive": """
base: base.yaml
epochs: 8
batch: 32
eval_batch: 70
data: {size: 64, augment: {crop: true, min_area: 0.85, flip: 0.5, brightness: 0.1}}
model: {name: contrastive, towers: {arch: tiny-conv-64}, text: clivp_fer, text_from: class, train_text: false}
optim: {name: adamw, weight_decay: 0.05, groups: {image: {lr: 1.0e-3}, scale: {lr: 1.0e-3}}}
schedule: {name: cosine, warmup_epochs: 1}
""",
    "clivp_fer": """
base: base.yaml
epochs: 4
batch: 32
eval_batch: 70
data: {size: 64, augment: {name: clivp_fer, flip: 0.5, rotation: 5.0}}
model: {name: clivp_fer, towers: {arch: tiny-conv-64}, caption: zero_shot}
optim: {name: adam, weight_decay: 1.0e-4, groups: {head: {lr: 3.0e-3}}}
""",
}
CLIVP_FER = {
    "mode 0": ("model.mode=0",),
    "zero_shot": ("model.caption=zero_shot",),
    "all": ("model.caption=all",),
    "true_label": ("model.caption=true_label",),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards of the stills and a configuration of every recipe."""
    with once(tmp_path_factory, "learning_stills") as (folder, made):
        if not made:
            shards = make_shards(folder, "raf_db", clips=STILLS) / "shards"
            for name, text in {"base": BASE.format(shards=shards), "cnn": CNN, **RECIPES}.items():
                (folder / f"{name}.yaml").write_text(text)
        return folder


@pytest.mark.slow("1,400 stills are drawn, a CNN is trained: half a minute of CPU time each")
@pytest.mark.parametrize("net", ["resnet18", "vgg19"])
def test_a_cnn_learns_from_random_weights(capsys: Capture, configs: Path, tmp_path: Path, net: str) -> None:
    assert learned(capsys, "train", configs / f"{net}.yaml", tmp_path / net, clips=TESTED) > 3


@pytest.mark.slow("a CLIP and four classifiers are trained: a minute of CPU time")
def test_clivp_fer_learns_from_a_small_clip(capsys: Capture, configs: Path, tmp_path: Path) -> None:
    """In both modes, with the honest captions and with that of the true label, which leaks."""
    clip = tmp_path / "clip"
    found = {"contrastive": learned(capsys, "train", configs / "contrastive.yaml", clip, clips=TESTED)}
    for name, words in CLIVP_FER.items():
        run = tmp_path / name.replace(" ", "")
        start = f"model.start={clip}"
        found[name] = learned(capsys, "train", configs / "clivp_fer.yaml", run, start, *words, clips=TESTED)
    assert min(found.values()) > 3, found
