"""CoOp and Co-CoOp: frozen towers, features for frames, clips of several frames, gradients for all that is trained.

Numbers of the released code are in test_coop_reference.py.
"""

from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.cocoop import CoCoOp
from dfer.models.config import CoCoOpConfig, CoOpConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.coop import CoOp
from dfer.recognition import FeatureBatch, Progress
from tests.unit.models.tiny import START, batch

EMOTIONS = label_set("basic7")
END = Progress(epoch=49, step=490, fraction=0.98)
TOWERS = TowersConfig(arch="tiny-conv-64")
CONFIGS: dict[str, CoOpConfig | CoCoOpConfig] = {
    "shared": CoOpConfig(towers=TOWERS, num_contexts=4),
    "own": CoOpConfig(towers=TOWERS, num_contexts=4, shared_contexts=False, context_position="middle"),
    "cocoop": CoCoOpConfig(towers=TOWERS),
    "words": CoCoOpConfig(towers=TOWERS, context_words="a photo of a"),
}
every = pytest.mark.parametrize("name", CONFIGS)


def model_of(name: str, *, dims: dict[str, int] | None = None) -> CoOp | CoCoOp:
    found = build(CONFIGS[name], EMOTIONS, num_frames=4, seed=1, dims=dims)
    assert isinstance(found, CoOp | CoCoOp)
    return found


@every
def test_features_stand_for_frames_and_new_parts_are_drawn_the_same(name: str) -> None:
    whole, shown = model_of(name), batch()
    fed = model_of(name, dims={"frames": 128})
    assert fed.towers.visual is None
    assert fed.state_dict().keys() == whole.state_dict().keys() - whole.tower_weights()
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in fed.state_dict().items())
    out = fed(FeatureBatch(features=whole.encode(shown), index=shown.index))
    assert torch.allclose(out.logits, whole(shown).logits, atol=1e-4)


@every
@pytest.mark.parametrize("progress", [START, END])
def test_only_prompts_are_trained_and_all_of_them_get_a_gradient(name: str, progress: Progress) -> None:
    model, shown = model_of(name).train(), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    out = model(shown)
    model.loss(out, shown, progress)["cross_entropy"].backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None}
    assert trained == {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {key for key in before if key.startswith(("prompts.", "meta."))}
    assert {id(p) for group in model.param_groups().values() for p in group.params} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every
def test_no_autograd_in_the_image_tower(name: str) -> None:
    model, shown = model_of(name).train(), batch()
    assert model.towers.visual is not None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        model.towers.features(shown, normalise=False)
        assert not kept and not model.towers.training
        model(shown)
    assert kept


def test_contexts_per_class_follow_their_class_to_another_run() -> None:
    assert model_of("own").class_parameters() == {"prompts.contexts"}
    assert model_of("shared").class_parameters() == model_of("cocoop").class_parameters() == frozenset()


def test_a_clip_is_its_mean_frame_feature_and_its_bias_is_its_own() -> None:
    """Each clip alone gives the answer it gives in a batch; the network sees the normalised mean."""
    model, shown = model_of("cocoop"), batch(3, 4)
    assert isinstance(model, CoCoOp)
    seen: list[torch.Tensor] = []
    model.meta.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    whole = model(shown).logits
    feature = F.normalize(model.encode(shown)["frames"].mean(dim=1), dim=-1)
    assert torch.allclose(seen[0], feature, atol=1e-6)
    for row in range(3):
        fed = FeatureBatch(features={"frames": model.encode(shown)["frames"][row : row + 1]}, index=shown.index[:1])
        assert torch.allclose(model(fed).logits[0], whole[row], atol=1e-4)


def test_given_words_are_the_first_contexts() -> None:
    model = model_of("words")
    expected = model.towers.embed(torch.tensor(SimpleTokenizer().encode("a photo of a")))
    assert model.prompts.contexts is not None and torch.equal(model.prompts.contexts, expected)
    drawn = model_of("cocoop").prompts.contexts
    assert drawn is not None and drawn.shape == (4, 64) and 0.01 < float(drawn.detach().std()) < 0.03


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (CoOpConfig, {"num_contexts": 0}, r"num_contexts: expected 1 or more, got 0\. Nothing else is trained"),
        (CoCoOpConfig, {"temperature": 0.0}, "temperature: expected more than 0"),
        (CoOpConfig, {"context_words": " "}, "context_words: expected words, got none"),
        (CoOpConfig, {"context_words": "a", "start": "run"}, "context_words, start: expected one of them, got both"),
        (CoOpConfig, {"context_words": "a", "shared_contexts": False}, "expected shared contexts for given words"),
        (CoOpConfig, {"text": "nothing"}, "text: expected one of"),
    ],
)
def test_wrong_settings_are_refused(kind: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigProblem, match=says):
        kind(**changes)


def test_words_of_several_tokens_are_refused() -> None:
    config = CoOpConfig(towers=TOWERS, context_words="a photograph of helplessnesses")
    with pytest.raises(ConfigProblem, match=r"context_words: expected words of one token each, got \d+ tokens for"):
        build(config, EMOTIONS, num_frames=4, seed=1)
