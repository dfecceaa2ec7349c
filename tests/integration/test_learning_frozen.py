"""A small CLIP learns on generated faces by `contrastive`; methods that need trained towers learn from it.

Chance is one in seven. Each method must beat it on the test clips of its fold by three standard errors of chance.
"""

from pathlib import Path

import pytest

from tests.integration.commands import Capture, make_shards
from tests.integration.learning import learned
from tests.suite import once

pytestmark = [pytest.mark.integration, pytest.mark.long]

CLIPS = 700
TINY = """
run: run
epochs: 1
batch: 32
eval_batch: 64
log_every: 100
data:
  shards: {shards}
  frames: 2
  size: 64
  workers: 0
  augment: {{crop: true, min_area: 0.85, flip: 0.5, brightness: 0.1}}
engine: {{name: ddp, clip_norm: 1.0}}
checkpoint: {{every_epochs: 100, keep_last: 1}}
model: {{towers: {{arch: tiny-conv-64}}, {model}}}
optim: {{{optim}}}
{more}
"""
ADAM = "name: adamw, weight_decay: 0.05"
EXTRA = {
    "contrastive": (
        "name: contrastive, text: class_descriptor, text_from: class, train_text: false",
        f"{ADAM}, groups: {{image: {{lr: 1.0e-3}}, scale: {{lr: 1.0e-3}}}}",
    ),
    "zero_shot": ("name: zero_shot, text: class_descriptor", "name: sgd, groups: {}"),
    "coop": (
        "name: coop, num_contexts: 4, text: class_descriptor, shared_contexts: false",
        f"{ADAM}, groups: {{prompts: {{lr: 2.0e-2}}}}",
    ),
    "cocoop": (
        "name: cocoop, num_contexts: 4, text: class_descriptor",
        f"{ADAM}, groups: {{prompts: {{lr: 2.0e-2}}, meta: {{lr: 5.0e-3}}}}",
    ),
    "linear_probe": (
        "name: linear_probe, clip_normalisation: false",
        "name: adamw, groups: {head: {lr: 1.0e-2}}",
    ),
    "fine_tune": (
        "name: fine_tune",
        f"{ADAM}, groups: {{image: {{lr: 1.0e-3}}, head: {{lr: 1.0e-3}}}}",
    ),
    "fine_tune_temporal": (
        "name: fine_tune, temporal: {depth: 1, heads: 2, head_dim: 16, mlp_dim: 64, init_std: 0.02}",
        f"{ADAM}, groups: {{image: {{lr: 1.0e-3}}, temporal: {{lr: 1.0e-3}}, head: {{lr: 1.0e-3}}}}",
    ),
}
EPOCHS = {
    "contrastive": 12,
    "coop": 5,
    "cocoop": 4,
    "linear_probe": 5,
    "fine_tune": 15,
    "fine_tune_temporal": 12,
    "zero_shot": 1,
}
COSINE = "schedule: {name: cosine, warmup_epochs: 1}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with once(tmp_path_factory, "learning") as (folder, made):
        return (folder if made else make_shards(folder, "dfew", clips=CLIPS)) / "shards"


def trained(capsys: Capture, method: str, shards: Path, folder: Path, *words: str) -> float:
    """Train a method on one fold; returns by how many standard errors of chance its WAR exceeds chance."""
    model, optim = EXTRA[method]
    path = folder / f"{method}.yaml"
    path.write_text(TINY.format(shards=shards, model=model, optim=optim, more=COSINE if EPOCHS[method] > 5 else ""))
    verb = "evaluate" if method == "zero_shot" else "train"
    return learned(capsys, verb, path, folder / method, f"epochs={EPOCHS[method]}", *words, clips=CLIPS // 5)


@pytest.mark.slow("700 clips are drawn, a CLIP and four methods are trained: 70 s of CPU time")
def test_frozen_towers_learn_from_a_small_clip_that_was_trained_here(
    capsys: Capture, shards: Path, tmp_path: Path
) -> None:
    found = {"contrastive": trained(capsys, "contrastive", shards, tmp_path)}
    start = f"model.start={tmp_path / 'contrastive'}"
    for method in ("zero_shot", "coop", "cocoop", "linear_probe"):
        found[method] = trained(capsys, method, shards, tmp_path, start)
    assert min(found.values()) > 3, found


@pytest.mark.slow("12 to 15 epochs of an image tower: half a minute on an idle machine")
@pytest.mark.parametrize(("method", "words"), [("fine_tune", ()), ("fine_tune_temporal", ("data.frames=4",))])
def test_fine_tuning_learns(capsys: Capture, shards: Path, tmp_path: Path, method: str, words: tuple[str, ...]) -> None:
    """Without and with a temporal model."""
    assert trained(capsys, method, shards, tmp_path, *words) > 3
