"""The small CLIP of the recorded arrays, and checkpoints in the released layout made of it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import recipe

REFERENCE = Path(recipe.__file__).parent
Released = Callable[..., Path]


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    with np.load(REFERENCE / "dfer_clip.npz", allow_pickle=False) as arrays:
        return dict(arrays) | {"about": json.loads((REFERENCE / "dfer_clip.json").read_text())}


@pytest.fixture(scope="session")
def clip_weights() -> dict[str, Tensor]:
    """The small CLIP in OpenAI's layout."""
    return {name: torch.from_numpy(np.asarray(x)) for name, x in recipe.drawn(recipe.clip_shapes()).items()}


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(recipe.CLIP_LAYOUT))
    return str(path)


class RecorderMeter:
    """What the released script keeps of its losses; found as `__main__.RecorderMeter` in its checkpoints."""

    def __init__(self) -> None:
        self.epoch_losses = np.zeros((50, 2), dtype=np.float32)
        self.current_epoch = 50


@pytest.fixture
def released(
    clip_weights: dict[str, Tensor],
    recorded: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Released:
    """Writes a checkpoint as the released script does: DataParallel names, CLIP twice, optimizer, recorder."""

    def write(case: Any, **extra: Any) -> Path:
        state = {f"clip_model_.{name}": value for name, value in clip_weights.items()}
        for name, value in clip_weights.items():
            if name.startswith("visual."):
                state[name.replace("visual.", "image_encoder.", 1)] = value
            elif not name.startswith(("token_embedding", "logit_scale")):
                state[f"text_encoder.{name}"] = value
        state |= {name: torch.from_numpy(x) for name, x in recipe.drawn(recipe.new_shapes(case)).items()}
        tokens = torch.from_numpy(recorded[f"{case.name}/tokens"].astype(np.int64))
        embedded = clip_weights["token_embedding.weight"][tokens]
        state["prompt_learner.token_prefix"] = embedded[:, :1]
        state["prompt_learner.token_suffix"] = embedded[:, 1 + case.contexts :]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)
        whole = {
            "epoch": 50,
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "best_acc": torch.tensor(71.25),
            "optimizer": optimizer.state_dict(),
            **extra,
        }
        path = tmp_path / f"{case.name}.pth"
        main = sys.modules["__main__"]
        with monkeypatch.context() as patch:
            patch.setattr(RecorderMeter, "__module__", "__main__")
            patch.setattr(main, "RecorderMeter", RecorderMeter, raising=False)
            torch.save({**whole, "recorder": RecorderMeter()}, path)
        return path

    return write
