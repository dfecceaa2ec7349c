"""Every trainable parameter of every method has a gradient, at the start and near the end of training."""

import pytest
import torch

from dfer.recognition import Progress
from tests.methods import METHODS


@pytest.mark.parametrize("fraction", [0.0, 0.99])
@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_gets_a_gradient(name: str, fraction: float) -> None:
    torch.manual_seed(1)
    method = METHODS[name]
    model, batch = method.build().train(), method.batch(0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    progress = Progress(epoch=round(99 * fraction), step=round(99 * fraction), fraction=fraction)
    torch.stack([*model.loss(model(batch), batch, progress).values()]).sum().backward()
    assert trained
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
