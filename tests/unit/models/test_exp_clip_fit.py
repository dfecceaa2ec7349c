"""The projection head beside the released training of Exp-CLIP (tests/reference/record_exp_clip_fit.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dfer.models.config import ProjectionConfig
from dfer.models.head_file import FILE, RELEASED, write_head
from dfer.models.projection import STUDENT, TEACHER, ProjectionHead
from dfer.models.zero_shot import read_head
from dfer.recognition import FeatureBatch, Progress
from dfer.storage import Folder
from dfer.training.config import GroupConfig, SgdConfig
from dfer.training.optim import build_optimizer
from tests.reference import exp_clip_fit_recipe as recipe

RECORDED = Path(__file__).parents[2] / "reference" / "exp_clip_fit.npz"
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
    losses = []
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        out = head(batch)
        loss = sum(head.loss(out, batch, START).values())
        loss.backward()
        if number == 0:
            close(head.mlp.weight.grad, recorded["gradient"])
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(recorded["losses"].tolist(), rel=1e-5)
    assert not np.allclose(recorded["head"], recipe.head(), atol=1e-4)
    close(head.mlp.weight, recorded["head"])


def close(ours: torch.Tensor | None, theirs: np.ndarray) -> None:
    """1e-5 of the largest value."""
    assert ours is not None
    assert np.abs(ours.detach().numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_fitted_head_is_read_in_both_layouts(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    write_head(Folder(tmp_path), weight, facts={"CLIP": "arch <b> `x`"})
    for name in (FILE, RELEASED):
        assert torch.equal(read_head(tmp_path / name, dim=4), weight)
    released = torch.load(tmp_path / RELEASED, weights_only=True)
    assert list(released) == ["mlp.weight"] and torch.equal(released["mlp.weight"], weight)
    card = (tmp_path / "README.md").read_text()
    assert "# Projection head, 4 to 6" in card and "- CLIP: arch &lt;b> 'x'" in card
