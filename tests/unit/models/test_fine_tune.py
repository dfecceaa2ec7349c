"""Full fine-tuning: a linear classifier on the mean, or on the temporal model, of a trained tower's features."""

import pytest
import torch

from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import FineTuneConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.fine_tune import FineTune
from dfer.recognition import Progress
from tests.unit.models.tiny import START, batch

EMOTIONS = label_set("basic7")
END = Progress(epoch=49, step=490, fraction=0.98)


def fine_tune(depth: int, *, arch: str = "tiny-conv-64", normalised: bool = False) -> FineTune:
    temporal = TemporalConfig(depth=depth, heads=2, head_dim=16, mlp_dim=48)
    config = FineTuneConfig(towers=TowersConfig(arch=arch), temporal=temporal, clip_normalisation=normalised)
    found = build(config, EMOTIONS, num_frames=4, seed=1)
    assert isinstance(found, FineTune)
    return found


def test_without_temporal_model_the_logits_are_the_head_s_of_the_mean_feature() -> None:
    model, shown = fine_tune(0), batch()
    for row, clip in enumerate(shown.frames):
        feature = torch.stack([model.towers.visual(picture[None] / 255)[0] for picture in clip]).mean(0)
        assert torch.allclose(model(shown).logits[row], model.head.weight @ feature + model.head.bias, atol=1e-5)


def test_with_a_temporal_model_the_order_of_frames_counts() -> None:
    shown = batch(2, 4)
    turned = batch(2, 4)
    turned.frames.copy_(shown.frames.flip(1))
    assert torch.allclose(fine_tune(0)(shown).logits, fine_tune(0)(turned).logits, atol=1e-5)
    assert not torch.allclose(fine_tune(1)(shown).logits, fine_tune(1)(turned).logits, atol=1e-3)


@pytest.mark.parametrize("progress", [START, END])
@pytest.mark.parametrize("arch", ["tiny-conv-64", "tiny-vit-64"])
@pytest.mark.parametrize("depth", [0, 1])
def test_everything_is_trained_and_gets_a_gradient(depth: int, arch: str, progress: Progress) -> None:
    model, shown = fine_tune(depth, arch=arch).train(), batch()
    model.loss(model(shown), shown, progress)["cross_entropy"].backward()
    groups = model.param_groups()
    assert list(groups) == ["image", *(["temporal"] if depth else []), "head"]
    assert {id(p) for group in groups.values() for p in group.params} == {id(p) for p in model.parameters()}
    assert all(p.grad is not None for p in model.parameters())


def test_classes_are_rows_of_the_head_and_normalisation_is_the_method_s() -> None:
    assert fine_tune(0).class_parameters() == {"head.weight", "head.bias"}
    assert "deviation" in fine_tune(0, normalised=True).normalisation and "none" in fine_tune(0).normalisation
    shown = batch()
    assert not torch.allclose(fine_tune(0, normalised=True)(shown).logits, fine_tune(0)(shown).logits, atol=1e-4)
