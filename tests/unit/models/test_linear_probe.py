"""The linear probe: a head on the mean of a tower that stays as it is, fed with frames or with features."""

import pytest
import torch

from dfer.emotions import label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.config import DferClipConfig, LinearProbeConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.linear_probe import LinearProbe
from dfer.models.start import take
from dfer.recognition import PADDING, ClipBatch, FeatureBatch, Progress

EMOTIONS = label_set("basic7")
CONFIG = LinearProbeConfig(towers=TowersConfig(arch="tiny-conv-64"))
START, END = (Progress(epoch=epoch, step=epoch, fraction=epoch / 50) for epoch in (0, 49))


def probe(config: LinearProbeConfig = CONFIG, *, seed: int = 1, dims: dict[str, int] | None = None) -> LinearProbe:
    found = build(config, EMOTIONS, num_frames=2, seed=seed, dims=dims)
    assert isinstance(found, LinearProbe)
    return found


def clips(count: int = 3) -> ClipBatch:
    draw = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (count, 2, 3, 64, 64), generator=draw, dtype=torch.uint8)
    return ClipBatch(frames=frames, labels=torch.arange(count), index=torch.arange(count))


@pytest.mark.parametrize("normalised", [True, False])
def test_logits_are_the_heads_of_the_mean_frame_feature(normalised: bool) -> None:
    model, batch = probe(LinearProbeConfig(towers=CONFIG.towers, clip_normalisation=normalised)), clips()
    assert model.tower is not None
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # of CLIP, OpenAI's release
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    for row, clip in enumerate(batch.frames):
        pictures = clip / 255
        pictures = (pictures - mean) / std if normalised else pictures
        feature = torch.stack([model.tower.visual(picture[None])[0] for picture in pictures]).mean(0)
        expected = model.head.weight @ feature + model.head.bias
        assert torch.allclose(model(batch).logits[row], expected, atol=1e-5)
    assert ("deviation" in model.normalisation) is normalised


def test_features_stand_for_frames_and_the_head_is_drawn_the_same() -> None:
    whole, batch = probe(), clips()
    features = whole.encode(batch)
    assert {name: value.shape for name, value in features.items()} == {"frames": (3, 2, 128)}
    fed = probe(dims={"frames": 128})
    assert fed.tower is None and fed.state_dict().keys() == whole.state_dict().keys() - whole.tower_weights()
    assert torch.equal(fed.head.weight, whole.head.weight)
    out = fed(FeatureBatch(features=features, index=batch.index))
    assert torch.equal(out.logits, whole(batch).logits)
    with pytest.raises(ValueError, match="dfer_clip: expected a method that takes features"):
        build(DferClipConfig(), EMOTIONS, num_frames=2, seed=1, dims={"frames": 128})


@pytest.mark.parametrize("progress", [START, END])
def test_the_head_alone_is_trained_and_all_of_it_gets_a_gradient(progress: Progress) -> None:
    model, batch = probe().train(), clips()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sum(model.loss(model(batch), batch, progress).values()).backward()  # type: ignore[union-attr]
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head.weight", "head.bias"} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.param_groups()["head"].params)  # type: ignore[union-attr]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "batch statistics"


def test_padding_counts_nothing() -> None:
    model, batch = probe(), clips(3)
    padded = ClipBatch(frames=batch.frames, labels=batch.labels, index=torch.tensor([0, PADDING, 2]))
    kept = ClipBatch(frames=batch.frames[[0, 2]], labels=torch.tensor([0, 2]), index=torch.tensor([0, 2]))
    losses = [model.loss(model(one), one, START)["cross_entropy"] for one in (padded, kept)]
    assert torch.allclose(losses[0], losses[1], atol=1e-6)
    nothing = ClipBatch(frames=batch.frames, labels=batch.labels, index=torch.full((3,), PADDING))
    assert model.loss(model(nothing), nothing, START)["cross_entropy"] == 0


def test_the_tower_of_another_method_s_run_is_taken_whole_or_refused() -> None:
    model, others = probe(), build(DferClipConfig(towers=CONFIG.towers), EMOTIONS, num_frames=2, seed=9)
    weights = others.state_dict()
    names = EMOTIONS.names
    taken = take(model, weights, classes=names, own_classes=names, where="a run")
    assert model.tower is not None and set(taken.whole) == model.tower_weights()
    assert set(taken.left) == {"head.weight", "head.bias"}
    for name, value in model.tower.visual.state_dict().items():
        assert torch.equal(value, weights[f"towers.visual.{name}"])
    without = {name: value for name, value in weights.items() if not name.startswith("towers.visual.")}
    with pytest.raises(
        CheckpointError, match=r"a run: expected tower\.visual\.\S+ of .*, got none named tower\.visual"
    ):
        take(model, without, classes=names, own_classes=names, where="a run")
