"""The recorded CNNs and the head of CLIVP-FER for tests: their arrays, and weights under the released names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.reference import recipe_cnn as recipe

REFERENCE = Path(recipe.__file__).parent


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of `NAME.npz` and the facts of `NAME.json`."""
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays), json.loads((REFERENCE / f"{name}.json").read_text())


def released_weights(net: str) -> dict[str, Tensor]:
    """What the released network's `state_dict` holds, drawn by the recipe; counters of batch norm are 0."""
    shapes = {name: tuple(shape) for name, shape in recorded("cnn")[1]["nets"][net]["shapes"].items()}
    drawn = {name: torch.from_numpy(value) for name, value in recipe.drawn(shapes).items()}
    return {name: drawn.get(name, torch.zeros((), dtype=torch.int64)) for name in shapes}


def assert_same(found: dict[str, Tensor], arrays: dict[str, Any], prefix: str, *, relative: float) -> None:
    """Compare tensors by name with their recorded digest: norms, sums and first numbers. Numbers that are rounding
    errors, as the gradient of a bias before a batch norm, are below 1e-4."""
    ours = recipe.digest({name: value.detach().numpy() for name, value in found.items()})
    norms = arrays[f"{prefix}_sums"][:, 1]
    assert ours["sums"].shape == arrays[f"{prefix}_sums"].shape
    np.testing.assert_allclose(ours["sums"][:, 1], norms, rtol=relative, atol=1e-4)
    np.testing.assert_allclose(ours["first"], arrays[f"{prefix}_first"], rtol=relative, atol=1e-4)
    sizes = np.array([found[name].numel() for name in sorted(found)])
    apart = np.abs(ours["sums"][:, 0] - arrays[f"{prefix}_sums"][:, 0])
    assert (apart <= relative * (norms * np.sqrt(sizes)) + 1e-4).all()
