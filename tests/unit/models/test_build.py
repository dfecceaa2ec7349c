"""The same configuration and seed give the same weights anywhere."""

from pathlib import Path

import pytest
import torch

from dfer.emotions import label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.config import TowersConfig
from tests.unit.models.tiny import tiny

BASIC = label_set("basic7")


def weights(seed: int, **changes: object) -> dict[str, torch.Tensor]:
    return build(tiny(**changes), BASIC, num_frames=4, seed=seed).state_dict()


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    first = weights(5)
    torch.manual_seed(12)
    torch.randn(100)
    again, other = weights(5), weights(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = ["prompts.contexts", "temporal.token", "temporal.blocks.0.mlp.0.weight", "towers.visual.conv1.weight"]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_the_callers_random_state_stays() -> None:
    before = torch.get_rng_state()
    weights(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pretrained_clip_does_not_change_what_is_drawn(tmp_path: Path) -> None:
    plain = weights(5)
    clip = {
        name.removeprefix("towers.").removeprefix("text."): value
        for name, value in weights(9).items()
        if name.startswith("towers.")
    }
    torch.save(clip, tmp_path / "clip.pt")
    loaded = weights(5, towers=TowersConfig(arch="tiny-vit-64", pretrained=str(tmp_path / "clip.pt")))
    assert all(torch.equal(loaded[name], plain[name]) for name in plain if not name.startswith("towers."))
    assert all(
        torch.equal(loaded[f"towers.{name}"], value) for name, value in clip.items() if name.startswith("visual.")
    )


def test_fresh_parts_have_the_papers_spread() -> None:
    state = build(tiny(num_contexts=16), label_set("mafw11"), num_frames=16, seed=0).state_dict()
    assert abs(state["prompts.contexts"].std().item() - 0.02) < 1e-3
    assert abs(state["temporal.positions"].std().item() - 1) < 0.1
    assert abs(state["temporal.token"].std().item() - 1) < 0.25


def test_a_checkpoint_loaded_next_needs_no_file() -> None:
    gone = tiny(towers=TowersConfig(arch="tiny-conv-64", pretrained="/gone/clip.pt"))
    trained = build(tiny(arch="tiny-conv-64"), BASIC, num_frames=4, seed=5)
    with pytest.raises(CheckpointError, match=r"/gone/.*got no such file"):
        build(gone, BASIC, num_frames=4, seed=6)
    model = build(gone, BASIC, num_frames=4, seed=6, weights=False)
    model.load_state_dict(trained.state_dict())
