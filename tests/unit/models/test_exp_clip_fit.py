"""The projection head beside the released training of Exp-CLIP (tests/reference/record_exp_clip_fit.py)."""

import hashlib
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from dfer.cli import is_override
from dfer.config_files import load
from dfer.errors import CheckpointError
from dfer.jobs.config import RunConfig
from dfer.jobs.zeroshot_config import ZeroshotConfig
from dfer.models import head_file
from dfer.models.config import ProjectionConfig, ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.head_file import (
    FILE,
    RELEASED,
    MadeFor,
    made_for,
    other_weights,
    settings_sha256,
    weights_of,
    write_head,
)
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.models.towers import clip_settings
from dfer.models.zero_shot import read_head
from dfer.recognition import FeatureBatch, Progress
from dfer.storage import Folder
from dfer.training.config import GroupConfig, SgdConfig
from dfer.training.optim import build_optimizer
from tests.reference import exp_clip_fit_recipe as recipe

RECORDED = Path(__file__).parents[2] / "reference" / "exp_clip_fit.npz"
PAIRS = {"clip": {"arch": "tiny-conv-64", "weights": "random, seed 1", "normalisation": "none"}, "size": 64}
"""The key of some pairs, as far as a card reads it."""
START = Progress(epoch=0, step=0, fraction=0.0)


def batches() -> list[FeatureBatch]:
    """The pairs of every step: a teacher's feature is the mean of its tokens."""
    made = []
    for pictures in recipe.pictures():
        flat = pictures.reshape(len(pictures), -1)
        features = {STUDENT: recipe.student(flat), TEACHER: recipe.tokens(flat).mean(axis=1)}
        tensors = {name: torch.from_numpy(value.copy()) for name, value in features.items()}
        made.append(FeatureBatch(index=torch.arange(len(flat)), features=tensors))
    return made


def test_loss_gradient_and_five_steps_equal_the_release() -> None:
    recorded = np.load(RECORDED)
    config = ProjectionConfig(temperature=1 / recipe.SCALE)
    head = ProjectionHead(config, student=recipe.STUDENT, teacher=recipe.TEACHER, gather=lambda rows: rows)
    head.mlp.weight.data.copy_(torch.from_numpy(recipe.head()))
    groups = {"head": GroupConfig(lr=recipe.LR)}
    optimizer = build_optimizer(SgdConfig(momentum=recipe.MOMENTUM, weight_decay=recipe.DECAY, groups=groups), head)
    losses, accuracies = [], []
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        out = head(batch)
        loss = sum(head.loss(out, batch, START).values())
        loss.backward()
        if number == 0:
            close(head.mlp.weight.grad, recorded["gradient"])
        optimizer.step()
        losses.append(loss.item())
        right, pairs = head.take_right().tolist()
        accuracies.append(100 * right / pairs)
    assert losses == pytest.approx(recorded["losses"].tolist(), rel=1e-5)
    assert accuracies == pytest.approx(recorded["accuracies"].tolist(), rel=1e-6)
    assert len({*recorded["accuracies"].tolist()}) == 2
    assert not np.allclose(recorded["head"], recipe.head(), atol=1e-4)
    close(head.mlp.weight, recorded["head"])


def close(ours: torch.Tensor | None, theirs: np.ndarray) -> None:
    """1e-5 of the largest value."""
    assert ours is not None
    assert np.abs(ours.detach().numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_fitted_head_is_read_in_both_layouts(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    write_head(Folder(tmp_path), weight, facts={"CLIP": "arch <b> `x`"}, pairs=PAIRS)
    for name in (FILE, RELEASED):
        assert torch.equal(read_head(tmp_path / name, dim=4), weight)
    released = torch.load(tmp_path / RELEASED, weights_only=True)
    assert list(released) == ["mlp.weight"] and torch.equal(released["mlp.weight"], weight)
    assert made_for(tmp_path / FILE) is None and made_for(tmp_path / RELEASED) is None
    card = (tmp_path / "README.md").read_text()
    assert "# Projection head, 4 to 6" in card and "- CLIP: arch &lt;b> 'x'" in card


# --- the commands of the card


def commands(folder: Path) -> dict[str, list[str]]:
    """The words of both commands behind the configurations, by job."""
    block = (folder / "README.md").read_text().partition("```sh\n")[2].partition("```")[0]
    found = {}
    for line in block.splitlines():
        words = [word.replace("HEAD/", f"{folder}/").replace("FOLDER/", f"{folder}/") for word in shlex.split(line)]
        assert words[:2] in (["dfer", "crossval"], ["dfer", "zeroshot"])
        given = [word for word in words[2:] if not is_override(word)]
        assert given == {"crossval": ["methods/zero_shot", "sets/SET"], "zeroshot": ["exp_clip/zeroshot"]}[words[1]]
        found[words[1]] = [word for word in words if is_override(word)]
    return found


def small(folder: Path) -> dict[str, Any]:
    """An architecture and weights of the user's own, each in a file."""
    folder.mkdir()
    own = resources.files("dfer.models").joinpath("configs", "tiny-vit-64.json").read_text()
    (folder / "my clip.json").write_text(own)
    arch, weights = {"name": "my clip.json", "sha256": "ab"}, {"name": "$(touch x)`&'.pt", "sha256": "cd"}
    return {"arch": arch, "weights": weights, "image_size": 96, "normalisation": "clip", "precision": "fp32"}


def test_the_commands_of_a_card_take_the_head_with_the_clip_it_was_fitted_on(tmp_path: Path) -> None:
    """Also a name from a stranger's pairs is one word of the shell, in which nothing runs."""
    large = {"arch": "ViT-L-14-quickgelu", "weights": "tag openai", "normalisation": "none", "precision": "fp32"}
    drawn = {"arch": "tiny-vit-64", "weights": "random, seed 1", "normalisation": "none", "precision": "fp32"}
    own = small(tmp_path / "own")
    cases: dict[str, tuple[dict[str, Any], TowersConfig, int]] = {
        "large": (large, TowersConfig(arch="ViT-L-14-quickgelu", pretrained="openai"), 224),
        "drawn": (drawn, TowersConfig(arch="tiny-vit-64"), 64),
        "own": (
            own,
            TowersConfig(
                arch=f"{tmp_path}/own/my clip.json", pretrained=f"{tmp_path}/own/$(touch x)'&'.pt", image_size=96
            ),
            96,
        ),
    }
    for name, (clip, towers, size) in cases.items():
        dim = clip_settings(towers)["embed_dim"]
        made = MadeFor(arch=Path(towers.arch).name, settings=settings_sha256(towers), weights=clip["weights"])
        pairs = {"clip": clip, "size": size}
        write_head(Folder(tmp_path / name), torch.randn(8, dim), facts={}, pairs=pairs, clip=made)
        found = commands(tmp_path / name)
        run = load(["methods/zero_shot", "sets/dfew"], RunConfig, [*found["crossval"], "run=x", "fold=1"])
        suite = load(["exp_clip/zeroshot"], ZeroshotConfig, found["zeroshot"])
        assert list(suite.models) == ["clip_b32", "mine"] and run.data.size == size
        assert isinstance(run.model, ZeroShotConfig)
        for model in (run.model, suite.models["mine"]):
            assert model.towers == towers and model.clip_normalisation == (clip["normalisation"] == "clip")
            assert len(read_head(Path(str(model.head)), dim=dim, towers=model.towers)) == 8
        said = "; HEAD is the folder of this file, FOLDER that of CLIP's file:\n"
        assert (said in (tmp_path / name / "README.md").read_text()) == (name == "own")


# --- of which CLIP a head is

TINY = TowersConfig(arch="tiny-conv-64")


def head_for(folder: Path, towers: TowersConfig, weights: Any) -> Path:
    clip = MadeFor(arch=towers.arch, settings=settings_sha256(towers), weights=weights)
    write_head(Folder(folder), torch.eye(128), facts={}, pairs=PAIRS, clip=clip)
    assert made_for(folder / FILE) == clip
    return folder / FILE


def test_a_head_of_another_architecture_of_equal_width_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "mine.json"
    shipped = resources.files("dfer.models").joinpath("configs", "tiny-conv-64.json")
    odd.write_text(shipped.read_text())
    head = head_for(tmp_path, TINY, "tag openai")
    for same in (TINY, TowersConfig(arch=str(odd)), TowersConfig(arch="tiny-conv-64", pretrained="x.pt")):
        assert len(read_head(head, dim=128, towers=same)) == 128
    other = json.loads(shipped.read_text())
    other["text_cfg"]["layers"] += 1
    odd.write_text(json.dumps(other))
    said = r"model.head=\S+head.safetensors: expected a head of \S+mine.json, got one that was fitted on tiny-conv-64"
    with pytest.raises(CheckpointError, match=said):
        read_head(head, dim=128, towers=TowersConfig(arch=str(odd)))
    write_head(Folder(tmp_path / "a"), torch.eye(128), facts={}, pairs=PAIRS, clip=made_for(head))
    assert (tmp_path / "a" / FILE).read_bytes() == head.read_bytes(), "the same head has the same bytes"


def test_a_released_head_is_refused_on_another_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"mlp.weight": torch.eye(512)}, tmp_path / "released.pth")
    data = (tmp_path / "released.pth").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    monkeypatch.setattr(head_file, "HEADS", {git: "B16"})
    sixteen, thirty_two = (TowersConfig(arch=f"ViT-B-{n}-quickgelu", pretrained="openai") for n in (16, 32))
    assert len(read_head(tmp_path / "released.pth", dim=512, towers=sixteen)) == 512
    with pytest.raises(CheckpointError, match=r"expected a head of ViT-B-32-quickgelu, got one .* ViT-B-16-quickgelu"):
        read_head(tmp_path / "released.pth", dim=512, towers=thirty_two, model="models.b32")
    assert other_weights(tmp_path / "released.pth", "tag openai") == ""
    assert other_weights(tmp_path / "released.pth", {"name": "ViT-B-16.pt", "sha256": "ab"}) == ""
    said = other_weights(tmp_path / "released.pth", {"name": "mine.pt", "sha256": "0123456789abcdef"})
    assert said.startswith(
        "released.pth was fitted on the weights: tag openai, and these towers have the file mine.pt ("
    )


def test_other_weights_are_noted(tmp_path: Path) -> None:
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    ones, twos = (weights_of(TowersConfig(arch="tiny-conv-64", pretrained=str(path))) for path in (first, second))
    head = head_for(tmp_path, TINY, ones)
    assert other_weights(head, ones) == "" and other_weights(head, None) == ""
    assert "these towers have the file two.safetensors" in other_weights(head, twos)
    assert "these towers have the weights: drawn from seed 1" in other_weights(head, "drawn from seed 1")
    drawn = head_for(tmp_path / "drawn", TINY, "random, seed 1")
    assert other_weights(drawn, "drawn from seed 1") == "" and "random, seed 1" in other_weights(drawn, twos)
    assert weights_of(TINY) is None and weights_of(TowersConfig(arch="tiny-conv-64", pretrained="/none")) is None


@pytest.mark.parametrize("metadata", [{}, {"clip": "{"}, {"clip": "[1]"}, {"clip": "{}"}])
def test_metadata_of_others_says_nothing(metadata: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"mlp.weight": torch.eye(3)}, metadata=metadata))
    assert made_for(tmp_path / "a.safetensors") is None
