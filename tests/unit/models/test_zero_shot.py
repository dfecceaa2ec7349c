"""Zero-shot CLIP and Exp-CLIP: logits by hand, prompts of several sentences, heads from files, features for frames."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.errors import CheckpointError, UsageError
from dfer.models.build import build
from dfer.models.config import ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.files import check_files
from dfer.models.texts import class_prompts
from dfer.models.zero_shot import ZeroShot
from dfer.recognition import FeatureBatch
from tests.unit.models.tiny import START, batch

EMOTIONS = label_set("basic7")
TOWERS = TowersConfig(arch="tiny-conv-64")
TOKENIZER = SimpleTokenizer()


def zero_shot(*, dims: dict[str, int] | None = None, **changes: Any) -> ZeroShot:
    found = build(ZeroShotConfig(towers=TOWERS, **changes), EMOTIONS, num_frames=4, seed=1, dims=dims)
    assert isinstance(found, ZeroShot)
    return found.eval()


def text_feature(model: ZeroShot, text: str) -> Tensor:
    """One sentence through the tower by itself, at all 77 positions."""
    tokens = TOKENIZER([text])
    return model.towers.encode_prompts(model.towers.embed(tokens), tokens.argmax(dim=1))[0]


@pytest.mark.parametrize("kind", ["class_names", "ensemble_5"])
@pytest.mark.parametrize("with_head", [False, True])
def test_logits_are_means_over_the_prompts_of_a_class(kind: str, with_head: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    projection = torch.randn(40, 128) if with_head else torch.eye(128)
    if with_head:
        torch.save({"mlp.weight": projection}, tmp_path / "head.pth")
    model = zero_shot(text=kind, head=str(tmp_path / "head.pth") if with_head else None)
    shown = batch(2, 3)
    logits = model(shown).logits
    prompts = class_prompts(EMOTIONS, kind)
    units = [[F.normalize(projection @ text_feature(model, text), dim=0) for text in texts] for texts in prompts]
    assert model.towers.visual is not None
    for row, clip in enumerate(shown.frames):
        frames = torch.stack([projection @ model.towers.visual(picture[None] / 255)[0] for picture in clip])
        feature = F.normalize(frames.mean(dim=0), dim=0)
        for column, own in enumerate(units):
            each = [100 * feature @ unit for unit in own]
            assert logits[row, column] == pytest.approx(float(sum(each)) / len(each), abs=2e-3)


def test_frames_are_normalised_only_where_it_says_so() -> None:
    plain, normalised = zero_shot(), zero_shot(clip_normalisation=True)
    shown = batch()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # of CLIP, OpenAI's release
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    assert normalised.towers.visual is not None
    expected = normalised.towers.visual((shown.frames[0] / 255 - mean) / std)
    assert torch.allclose(normalised.encode(shown)["frames"][0], expected, atol=1e-5)
    assert not torch.allclose(plain.encode(shown)["frames"][0], expected, atol=1e-2)
    assert (plain.normalisation, normalised.normalisation) == (
        "none (frames scaled to 0..1)",
        "CLIP's mean and deviation",
    )


def test_features_stand_for_frames_without_an_image_tower() -> None:
    whole, shown = zero_shot(text="ensemble_5"), batch()
    fed = zero_shot(text="ensemble_5", dims={"frames": 128})
    assert fed.towers.visual is None
    assert fed.state_dict().keys() == whole.state_dict().keys() - whole.tower_weights()
    out = fed(FeatureBatch(features=whole.encode(shown), index=shown.index))
    assert torch.equal(out.logits, whole(shown).logits)


def test_text_features_are_computed_once_and_again_after_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown, calls = zero_shot(), batch(), []
    monkeypatch.setattr(type(model.towers), "encode_prompts", lambda self, *given: calls.append(1) or self.text(*given))
    first = model(shown).logits
    assert torch.equal(model(shown).logits, first) and len(calls) == 1
    other = build(model.config, EMOTIONS, num_frames=4, seed=2)
    model.load_state_dict(other.state_dict())
    assert torch.allclose(model(shown).logits, other(shown).logits, atol=1e-5) and not torch.equal(
        model(shown).logits, first
    )


def test_nothing_is_trained() -> None:
    model, shown = zero_shot().train(), batch()
    assert model.param_groups() == {} and not any(p.requires_grad for p in model.parameters())
    loss = model.loss(model(shown), shown, START)["cross_entropy"]
    assert loss > 0 and not loss.requires_grad and not model.towers.training


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=r"frames: expected 64 x 64 pixels, .* got 32 x 32\. Set data.size=64"):
        zero_shot()(batch(size=32))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_head_is_read_from_either_kind_of_file_and_named(suffix: str, tmp_path: Path) -> None:
    path, weight = tmp_path / f"ExpCLIP{suffix}", torch.randn(9, 128).half()
    if suffix == ".pth":
        torch.save({"mlp.weight": weight}, path)
    else:
        save_file({"mlp.weight": weight}, path)
    model = zero_shot(head=str(path))
    assert model.head is not None and torch.equal(model.head, weight.float())
    assert model.origin == f"model.head={path}"
    assert model(batch()).logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"mlp.weight": torch.ones(4, 512)}, r"got mlp.weight \(4, 512\)\. Set model.towers.arch to the CLIP it was"),
        ({"mlp.weight": torch.ones(4)}, r"got mlp.weight \(4,\)\. Give a head of Exp-CLIP"),
        ({"mlp.weight": torch.ones(4, 128), "mlp.bias": torch.ones(4)}, r"mlp.bias \(4,\)\. Give a head of Exp-CLIP"),
        ({"visual.proj": torch.ones(4, 128)}, r"got visual.proj \(4, 128\)\. .* a CLIP goes to model.towers.pretrain"),
    ],
)
def test_a_file_that_is_no_head_for_this_tower(weights: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=rf"head.pth: expected one tensor mlp.weight of \(any .* {says}"):
        zero_shot(head=str(path))


def test_a_head_that_is_not_there_is_told_before_anything_is_built(tmp_path: Path) -> None:
    said = r"model.head=\S+none.pth: expected a local file, got no such file\. Correct the path\.$"
    with pytest.raises(CheckpointError, match=said):
        check_files(ZeroShotConfig(towers=TOWERS, head=str(tmp_path / "none.pth")))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"temperature: expected more than 0, got 0"):
        ZeroShotConfig(temperature=0)
    with pytest.raises(ConfigProblem, match=r"text: expected one of"):
        ZeroShotConfig(text="ensemble")
