"""VGG19 and ResNet18: as the released code computes and trains them, and as methods of this project."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, label_set
from dfer.errors import UsageError
from dfer.models.build import build
from dfer.models.cnn import Cnn
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.foreign.cnn import ours
from dfer.recognition import ClipBatch, Progress
from tests.reference import recipe_cnn as recipe
from tests.unit.models.released_cnn import assert_same, recorded, released_weights

EMOTIONS = label_set("basic7")
START, END = (Progress(epoch=epoch, step=epoch, fraction=epoch / 60) for epoch in (0, 59))
nets = pytest.mark.parametrize("net", recipe.NETS)


def cnn(net: str = "resnet18", emotions: Emotions = EMOTIONS, **changes: Any) -> Cnn:
    found = build(CnnConfig(net=net, **changes), emotions, num_frames=1, seed=1)  # type: ignore[arg-type]
    assert isinstance(found, Cnn)
    return found


def released(net: str) -> Cnn:
    model = cnn(net)
    model.load_state_dict(ours(released_weights(net)))
    return model


def batch(frames: torch.Tensor | None = None) -> ClipBatch:
    pictures = torch.from_numpy(recipe.pictures())[:, None] if frames is None else frames
    labels = torch.from_numpy(recipe.labels())[: len(pictures)]
    return ClipBatch(frames=pictures, labels=labels, index=torch.arange(len(pictures)))


def arrays_of(net: str) -> dict[str, Any]:
    return {name.removeprefix(f"{net}/"): value for name, value in recorded("cnn")[0].items() if net in name}


@nets
def test_logits_and_gradients_equal_the_released_code(net: str) -> None:
    arrays, model, faces = arrays_of(net), released(net), batch()
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(faces).logits, arrays["eval_logits"], atol=1e-4, rtol=1e-5)
    torch.manual_seed(recipe.dropout_seed(0))
    out = model.train()(faces)
    model.loss(out, faces, START)["cross_entropy"].backward()
    np.testing.assert_allclose(out.logits.detach(), arrays["train_logits"], atol=1e-4, rtol=1e-5)
    assert_same(in_their_order(net, gradients(model)), arrays, "gradient", relative=1e-3)


@pytest.mark.slow("five steps of the whole network in double precision")
@pytest.mark.parametrize("net", [pytest.param("vgg19", marks=pytest.mark.long), "resnet18"])
def test_five_clamped_steps_equal_the_released_code(net: str) -> None:
    """SGD with every element of the gradient clamped to 0.1, as mainpro_FER.py trains; in double precision."""
    arrays, model, faces = arrays_of(net), released(net).double(), small()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.DECAY)
    losses = []
    for step in range(recipe.STEPS):
        model.train()
        torch.manual_seed(recipe.dropout_seed(step))
        optimizer.zero_grad()
        loss = model.loss(model(faces), faces, START)["cross_entropy"]
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), recipe.CLAMP)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["losses"], atol=1e-4)
    floating = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert_same(in_their_order(net, floating), arrays, "after", relative=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(faces).logits, arrays["after_logits"], atol=1e-4)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def in_their_order(net: str, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the released names, which give the order of the recorded numbers."""
    names = list(recorded("cnn")[1]["nets"][net]["shapes"])
    theirs = {own: names[int(at)] for own, at in ours({n: torch.tensor(i) for i, n in enumerate(names)}).items()}
    return {theirs[name]: value for name, value in found.items()}


def test_the_recording_tells_pictures_apart_and_its_clamp_changes_gradients() -> None:
    arrays = recorded("cnn")[0]
    for net in recipe.NETS:
        assert np.ptp(arrays[f"{net}/eval_logits"], axis=0).min() > 0.01
        assert arrays[f"{net}/clamped"] > 1000


def small() -> ClipBatch:
    """Three pictures of 32 pixels."""
    return batch(torch.from_numpy(recipe.step_pictures())[:, None])


def narrow(net: str = "resnet18", emotions: Emotions = EMOTIONS, **changes: Any) -> Cnn:
    """The network with an eighth of its channels."""
    return cnn(net, emotions, width=8, **changes)


@nets
def test_dropout_and_batch_statistics_make_training_differ_from_evaluation(net: str) -> None:
    model, faces = narrow(net), small()
    assert model.coupling == "micro_batch"
    with torch.no_grad():
        torch.manual_seed(3)
        first = model.train()(faces).logits
        second = model(faces).logits
        torch.manual_seed(3)
        again = model(faces).logits
        assert torch.equal(first, again) and not torch.equal(first, second)  # the stream of the engine decides
        assert torch.equal(model.eval()(faces).logits, model(faces).logits)
        model.dropout.p = 0.0
        parts = [model.train()(batch(faces.frames[part])).logits for part in (slice(2), slice(2, 3))]
        assert not torch.allclose(torch.cat(parts), model(faces).logits, atol=1e-3)


@nets
def test_a_clip_gets_the_mean_of_its_frames_logits(net: str) -> None:
    model, frames = narrow(net).eval(), small().frames
    with torch.no_grad():
        single = model(batch(frames)).logits
        clip = model(batch(frames.transpose(0, 1))).logits
    assert clip.shape == (1, 7) and torch.allclose(clip, single.mean(0, keepdim=True), atol=1e-5)


@nets
@pytest.mark.parametrize("progress", [START, END])
def test_every_parameter_is_trained_and_gets_a_gradient(net: str, progress: Progress) -> None:
    model, faces = narrow(net).train(), small()
    model.loss(model(faces), faces, progress)["cross_entropy"].backward()
    (group,) = model.param_groups().values()
    assert group.decay and {id(p) for p in group.params} == {id(p) for p in model.parameters()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in group.params)
    assert model.class_parameters() == {"head.weight", "head.bias"} <= {n for n, _ in model.named_parameters()}


@nets
@pytest.mark.parametrize("size", [31, 57, 224])
def test_other_sizes_are_refused(net: str, size: int) -> None:
    frames = torch.zeros(1, 1, 3, size, size, dtype=torch.uint8)
    with pytest.raises(
        UsageError, match=rf"frames: expected 32 x 32 to 56 x 56 .* got {size} x {size}\. Set data.size"
    ):
        narrow(net)(batch(frames))


@nets
@pytest.mark.parametrize("size", [32, 48, 56])
def test_sizes_whose_last_map_is_one_cell(net: str, size: int) -> None:
    with torch.no_grad():
        out = narrow(net).eval()(batch(torch.zeros(2, 1, 3, size, size, dtype=torch.uint8)))
    assert out.logits.shape == (2, 7)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"dropout: expected a share from 0 to below 1, got 1\.0\. The published"):
        CnnConfig(dropout=1.0)
    with pytest.raises(ConfigProblem, match=r"width: expected 1 to 1024, got 0\. The published one is 64"):
        CnnConfig(width=0)


@pytest.mark.parametrize("net", [pytest.param("vgg19", marks=pytest.mark.long), "resnet18"])
def test_it_learns_small_faces_within_seconds(net: str) -> None:
    """Two classes that differ by a bright mouth in noisy pictures; above chance by 3 standard errors."""
    two, rng, labels = Emotions(names=("happiness", "sadness")), np.random.default_rng(4), np.arange(64) % 2
    faces = rng.integers(0, 120, (64, 1, 3, 32, 32), dtype=np.uint8)
    faces[labels == 1, :, :, 20:28, 8:24] += 120
    model, frames, told = narrow(net, two), torch.from_numpy(faces), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(0)
    for step in range(60):
        rows = [(8 * step + i) % 24 for i in range(8)]
        part = ClipBatch(frames=frames[rows], labels=told[rows], index=torch.arange(8))
        optimizer.zero_grad()
        model.loss(model.train()(part), part, START)["cross_entropy"].backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(ClipBatch(frames=frames[24:], index=torch.arange(40))).logits.argmax(-1)
    assert (answers == told[24:]).float().mean() > 0.5 + 3 * (0.25 / 40) ** 0.5


def test_padding_does_not_count_in_the_loss() -> None:
    model, faces = narrow().eval(), small()
    padded = ClipBatch(frames=faces.frames, labels=faces.labels, index=torch.tensor([0, 1, -1]))
    with torch.no_grad():
        out = model(faces)
        expected = F.cross_entropy(out.logits[:2], torch.tensor([0, 1]))
        assert torch.allclose(model.loss(out, padded, START)["cross_entropy"], expected)
