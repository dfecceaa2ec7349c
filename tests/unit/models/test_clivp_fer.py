"""CLIVP-FER: the released head and its input, captions by protocol, and what stays frozen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, label_set
from dfer.models.build import build
from dfer.models.clivp_fer import ClivpFer
from dfer.models.config_clivp_fer import ClivpFerConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.texts import class_texts
from dfer.recognition import PADDING, ClipBatch, FeatureBatch, Progress
from tests.reference import recipe_cnn as recipe
from tests.unit.models.released_cnn import assert_same, recorded

KMU = Emotions(names=("anger", "disgust", "fear", "happiness", "sadness", "surprise"))
"""The six classes of KMU-FED in the order of the released code."""
TOWERS = TowersConfig(arch="tiny-conv-64")
START, END = (Progress(epoch=epoch, step=epoch, fraction=epoch / 40) for epoch in (0, 39))
NAMES = {"fc1": "head.hidden", "fc2": "head.out"}


def model(emotions: Emotions = KMU, *, dims: dict[str, int] | None = None, **changes: Any) -> ClivpFer:
    config = ClivpFerConfig(**{"towers": TOWERS, **changes})
    found = build(config, emotions, num_frames=2, seed=1, dims=dims)
    assert isinstance(found, ClivpFer)
    return found


def clips(count: int = 6, classes: int = 6) -> ClipBatch:
    draw = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (count, 2, 3, 64, 64), generator=draw, dtype=torch.uint8)
    return ClipBatch(frames=frames, labels=torch.arange(count) % classes, index=torch.arange(count))


# --- the released code


def reference(arch: str) -> tuple[ClivpFer, FeatureBatch]:
    """A model with the recorded head, 512 features a picture as ViT-B/32, and the recorded features of its captions."""
    found = model(towers=TowersConfig(arch=arch), caption="true_label")
    weights = recipe.drawn({name: tuple(shape) for name, shape in recorded("clivp_fer")[1]["shapes"].items()})
    head = {f"{NAMES[name[:3]]}.{name[4:]}": torch.from_numpy(value) for name, value in weights.items()}
    found.load_state_dict(head, strict=False)
    assert {f"{name}" for name in head} == {name for name in found.state_dict() if name.startswith("head.")}
    found._texts = F.normalize(torch.from_numpy(recipe.text_features()), dim=-1)
    features = {"frames": torch.from_numpy(recipe.image_features())[:, None]}
    labels = torch.from_numpy(recipe.face_labels())
    return found, FeatureBatch(features=features, labels=labels, index=torch.arange(len(labels)))


def released_names(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    back = {ours: theirs for theirs, ours in NAMES.items()}
    return {f"{back[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in found.items()}


def test_input_logits_gradients_and_steps_equal_the_released_code(arch: str) -> None:
    arrays, (found, faces) = recorded("clivp_fer")[0], reference(arch)
    image = faces.features["frames"].mean(1)
    np.testing.assert_allclose(found.join(image, faces), arrays["features"], atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(found.eval()(faces).logits, arrays["eval_logits"], atol=1e-4)
    optimizer = torch.optim.Adam(found.head.parameters(), lr=recipe.HEAD_LR, weight_decay=recipe.HEAD_DECAY)
    losses = []
    for step in range(recipe.HEAD_STEPS):
        found.train()
        torch.manual_seed(recipe.dropout_seed(step))
        optimizer.zero_grad()
        out = found(faces)
        loss = found.loss(out, faces, START)["cross_entropy"]
        loss.backward()
        if step == 0:
            np.testing.assert_allclose(out.logits.detach(), arrays["train_logits"], atol=1e-4)
            grads = {name: p.grad for name, p in found.named_parameters() if p.grad is not None}
            assert_same(released_names(grads), arrays, "gradient", relative=1e-3)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["losses"], atol=1e-4)
    head = {f"head.{name}": value for name, value in found.head.state_dict().items()}
    assert_same(released_names(head), arrays, "after", relative=1e-4)


def test_the_captions_are_the_released_ones_and_neutral_is_ours() -> None:
    assert class_texts(KMU, "clivp_fer") == recorded("clivp_fer")[1]["captions"]
    neutral = class_texts(label_set("basic7"), "clivp_fer")[2]
    assert neutral.startswith("A facial expression with relaxed facial muscles") and neutral.endswith("eyebrows.")


def test_other_classes_need_captions_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"text=clivp_fer: expected a text for every class, got none for contempt,"):
        model(label_set("mafw11"))
    path = tmp_path / "captions.yaml"
    path.write_text("awake: A face with open eyes.\nasleep: A face with closed eyes.\n")
    assert model(Emotions(names=("awake", "asleep")), text=str(path))(clips(2, 2)).logits.shape == (2, 2)


# --- captions by protocol


def test_each_protocol_chooses_its_caption() -> None:
    """By hand, out of the features of picture and captions."""
    faces = clips()
    zero, every, true = (model(caption=caption) for caption in ("zero_shot", "all", "true_label"))
    image = zero.encode(faces)["frames"].mean(1)
    texts = zero.texts(image.device)
    assert torch.allclose(texts.norm(dim=-1), torch.ones(6), atol=1e-5) and torch.equal(
        texts, every.texts(image.device)
    )
    scores = 100 * F.normalize(image, dim=-1) @ texts.T
    for row, score in enumerate(scores):
        assert torch.equal(zero.captions(image, faces)[row], texts[int(score.argmax())])
        mixed = sum(share * text for share, text in zip(torch.softmax(score, 0), texts))
        assert torch.allclose(every.captions(image, faces)[row], mixed, atol=1e-5)  # type: ignore[arg-type]
        assert torch.equal(true.captions(image, faces)[row], texts[row])


def test_only_true_label_reads_labels_and_says_so() -> None:
    faces = clips()
    turned = ClipBatch(frames=faces.frames, labels=(faces.labels + 1) % 6, index=faces.index)  # type: ignore[operator]
    unknown = ClipBatch(frames=faces.frames, index=faces.index)
    for caption in ("zero_shot", "all"):
        found = model(caption=caption).eval()
        assert not found.leaks_label and caption in found.presentation
        assert torch.equal(found(faces).logits, found(turned).logits)
        assert torch.equal(found(faces).logits, found(unknown).logits)
    found = model(caption="true_label").eval()
    assert found.leaks_label and "true label, at test time too" in found.presentation
    assert not torch.allclose(found(faces).logits, found(turned).logits)
    with pytest.raises(ValueError, match="expected a batch with labels"):
        found(unknown)


def test_mode_0_has_no_caption() -> None:
    faces = clips()
    plain, pooled = model(mode=0).eval(), model(mode=0, pooling="released").eval()
    image = plain.encode(faces)["frames"].mean(1)
    assert torch.equal(plain.join(image, faces), image)
    assert torch.allclose(pooled.join(image, faces), image.view(6, 32, 4).mean(-1), atol=1e-6)
    assert (plain.width, pooled.width) == (128, 32) and not plain.leaks_label
    assert (plain.presentation, pooled.presentation) == ("no caption, pooling none", "no caption, pooling released")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pooling": "none"}, r"pooling: expected null in mode 1, got none\. It is a choice of mode 0"),
        (
            {"mode": 0, "caption": "true_label"},
            r"caption: expected zero_shot, .* got true_label\. Mode 0 has no",
        ),
        ({"dropout": -0.1}, r"dropout: expected a share from 0 to below 1, got -0\.1"),
        ({"text": "clivp"}, r"text: expected one of .* got 'clivp'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigProblem, match=says):
        ClivpFerConfig(**changes)


def test_an_embedding_that_groups_of_four_do_not_divide_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    vision = '{"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}'
    text = '{"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}'
    path.write_text(f'{{"embed_dim": 30, "vision_cfg": {vision}, "text_cfg": {text}}}')
    with pytest.raises(ConfigProblem, match=r"towers\.arch: expected an embedding of a multiple of 4, got 30"):
        model(towers=TowersConfig(arch=str(path)))


# --- frozen towers


def test_frames_are_normalised_as_imagenet_and_features_stand_for_frames() -> None:
    whole, faces = model().eval(), clips()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = whole.towers.visual((faces.frames[2, 1:] / 255 - mean) / std)
    features = whole.encode(faces)
    assert torch.allclose(features["frames"][2, 1], expected[0], atol=1e-5)
    fed = model(dims={"frames": 128}).eval()
    assert fed.state_dict().keys() == whole.state_dict().keys() - whole.tower_weights()
    assert whole.tower_weights() and all(name.startswith("towers.visual.") for name in whole.tower_weights())
    out = fed(FeatureBatch(features=features, index=faces.index))
    assert torch.equal(out.logits, whole(faces).logits)
    tower = ClivpFerConfig(towers=TOWERS).frozen_tower
    assert tower is not None and tower.imagenet and tower.towers == TOWERS


@pytest.mark.parametrize("progress", [START, END])
@pytest.mark.parametrize("changes", [{"caption": "all"}, {"mode": 0}], ids=str)
def test_the_head_alone_is_trained_and_all_of_it_gets_a_gradient(progress: Progress, changes: dict[str, Any]) -> None:
    found, faces = model(**changes).train(), clips()
    assert not any(module.training for module in found.towers.modules()) and found.head.training
    found.loss(found(faces), faces, progress)["cross_entropy"].backward()
    trained = {name for name, p in found.named_parameters() if p.requires_grad}
    assert trained == {f"head.{part}.{kind}" for part in ("hidden", "out") for kind in ("weight", "bias")}
    assert {id(p) for p in found.param_groups()["head"].params} == {id(p) for p in found.head.parameters()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.head.parameters())
    assert all(p.grad is None for p in found.towers.parameters())


def test_captions_are_encoded_once_and_again_with_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found, other, faces = model().eval(), build(ClivpFerConfig(towers=TOWERS), KMU, num_frames=2, seed=2), clips()
    assert isinstance(other, ClivpFer)
    calls: list[int] = []
    encode = found.towers.encode_prompts
    monkeypatch.setattr(found.towers, "encode_prompts", lambda *a: calls.append(1) or encode(*a))  # type: ignore[func-returns-value]
    first = [found(faces).logits for _ in range(3)]
    assert len(calls) == 1 and torch.equal(first[0], first[2])
    found.load_state_dict(other.state_dict())
    assert torch.equal(found(faces).logits, other.eval()(faces).logits) and len(calls) == 2


def test_padding_does_not_count_in_the_loss() -> None:
    found, faces = model().eval(), clips()
    padded = ClipBatch(frames=faces.frames, labels=faces.labels, index=torch.tensor([0, 1, PADDING, 3, PADDING, 5]))
    with torch.no_grad():
        out = found(faces)
        expected = F.cross_entropy(out.logits[[0, 1, 3, 5]], torch.tensor([0, 1, 3, 5]))
        assert torch.allclose(found.loss(out, padded, START)["cross_entropy"], expected)


# --- learning; what the label gives away is in tests/unit/jobs/test_leak.py


def trained(found: ClivpFer, frames: torch.Tensor, labels: torch.Tensor, *, steps: int = 60) -> ClivpFer:
    """Adam as published, on the features of the pictures."""
    whole = ClipBatch(frames=frames, labels=labels, index=torch.arange(len(labels)))
    faces = FeatureBatch(features=found.encode(whole), labels=labels, index=whole.index)
    optimizer = torch.optim.Adam(found.head.parameters(), lr=3e-3, weight_decay=1e-4)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        found.loss(found.train()(faces), faces, START)["cross_entropy"].backward()
        optimizer.step()
    return found.eval()


def accuracy(found: nn.Module, frames: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        out = found(ClipBatch(frames=frames, labels=labels, index=torch.arange(len(labels))))
    return (out.logits.argmax(-1) == labels).float().mean().item()


@pytest.mark.parametrize("changes", [{"caption": "zero_shot"}, {"caption": "all"}, {"mode": 0}], ids=str)
def test_it_learns_what_the_pictures_show(changes: dict[str, Any]) -> None:
    """Bars at one of six heights on noise, above chance by 3 standard errors."""
    rng, labels = np.random.default_rng(7), torch.arange(180) % 6
    faces = rng.integers(0, 180, (180, 1, 3, 64, 64), dtype=np.uint8)
    for row, label in enumerate(labels.tolist()):
        faces[row, :, :, 10 * label : 10 * label + 10] += 70
    frames = torch.from_numpy(faces)
    found = trained(model(**changes), frames[:120], labels[:120])
    assert accuracy(found, frames[120:], labels[120:]) > 1 / 6 + 3 * (5 / 36 / 60) ** 0.5
