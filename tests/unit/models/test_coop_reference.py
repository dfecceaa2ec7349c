"""With the same weights CoOp and Co-CoOp answer and learn as their released code did; see tests/reference/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.models.build import build
from dfer.models.config import CoCoOpConfig, CoOpConfig
from dfer.models.config_towers import TowersConfig
from dfer.recognition import ClipBatch, Recognizer
from tests.reference import coop_recipe as recipe
from tests.reference.coop_recipe import CASES, Case
from tests.unit.models.conftest import REFERENCE

EMOTIONS = Emotions(names=recipe.CLASSES)
NAMES = {
    "ctx": "prompts.contexts",
    "meta_net.linear1.weight": "meta.0.weight",
    "meta_net.linear1.bias": "meta.0.bias",
    "meta_net.linear2.weight": "meta.2.weight",
    "meta_net.linear2.bias": "meta.2.bias",
}
"""Released names of what is trained, and ours."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(REFERENCE / "coop.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> TowersConfig:
    """The small CLIP as a file in OpenAI's names."""
    folder = tmp_path_factory.mktemp("clip")
    weights = {name: torch.from_numpy(np.asarray(x)) for name, x in recipe.drawn(recipe.clip_shapes()).items()}
    save_file(weights, folder / "clip.safetensors")
    (folder / "arch.json").write_text(json.dumps(recipe.CLIP_LAYOUT))
    return TowersConfig(arch=str(folder / "arch.json"), pretrained=str(folder / "clip.safetensors"))


def model_of(case: Case, towers: TowersConfig) -> Recognizer:
    words = case.words or None
    config: CoOpConfig | CoCoOpConfig = CoCoOpConfig(
        towers=towers, num_contexts=case.contexts, context_words=words, temperature=1 / recipe.SCALE
    )
    if case.method == "coop":
        config = CoOpConfig(
            towers=towers,
            num_contexts=case.contexts,
            context_words=words,
            shared_contexts=case.shared,
            context_position=case.position,  # type: ignore[arg-type]
            temperature=1 / recipe.SCALE,
        )
    model = build(config, EMOTIONS, num_frames=1, seed=5)
    new = {NAMES[name]: torch.from_numpy(x) for name, x in recipe.drawn(recipe.new_shapes(case)).items()}
    left = model.load_state_dict(new, strict=False)
    assert not left.unexpected_keys
    return model


def pictures() -> ClipBatch:
    """Clips of a single frame."""
    frames = torch.from_numpy(recipe.pictures())[:, None]
    return ClipBatch(frames=frames, labels=torch.arange(len(frames)), index=torch.arange(len(frames)))


def close(value: torch.Tensor, expected: Any, *, absolute: float = 1e-4, what: str = "") -> None:
    assert value.shape == expected.shape, what
    np.testing.assert_allclose(value.detach().numpy(), expected, atol=absolute, rtol=0, err_msg=what)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_gradients_and_five_steps_equal_the_released_code(
    case: Case, towers: TowersConfig, recorded: dict[str, Any]
) -> None:
    model, batch = model_of(case, towers), pictures()
    theirs = {name.removeprefix(f"{case.name}/"): x for name, x in recorded.items() if name.startswith(f"{case.name}/")}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {NAMES[name.removeprefix("grad/")] for name in theirs if name.startswith("grad/")}
    sgd = {"lr": recipe.RATE, "momentum": recipe.MOMENTUM, "weight_decay": recipe.DECAY}
    optimizer = torch.optim.SGD(trained.values(), **sgd)
    for step in range(recipe.STEPS):
        optimizer.zero_grad()
        logits = model(batch).logits
        F.cross_entropy(logits, batch.labels).backward()
        if step == 0:
            close(logits, theirs["logits"])
            for name, own in NAMES.items():
                if own in trained:
                    expected = theirs[f"grad/{name}"]
                    close(trained[own].grad, expected, absolute=1e-3 * float(np.abs(expected).max()), what=name)  # type: ignore[arg-type]
        optimizer.step()
    for name, own in NAMES.items():
        if own in trained:
            close(trained[own], theirs[f"after/{name}"], what=name)
    close(model(batch).logits, theirs["after/logits"], absolute=1e-3)


def test_the_recording_tells_cases_apart_and_the_steps_move_the_parameters(recorded: dict[str, Any]) -> None:
    """Else agreement within the tolerance would mean nothing."""
    logits = [recorded[f"{case.name}/logits"] for case in CASES]
    assert min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i]) > 0.01
    for case in CASES:
        assert np.abs(recorded[f"{case.name}/after/logits"] - recorded[f"{case.name}/logits"]).max() > 0.01
        for name in recorded:
            if name.startswith(f"{case.name}/grad/"):
                assert np.abs(recorded[name]).max() > 1e-4, name


def test_the_recording_says_where_it_comes_from() -> None:
    about = json.loads((Path(REFERENCE) / "coop.json").read_text())
    assert about["repository"] == "KaiyangZhou/CoOp" and about["commit"].startswith("ff61507")
