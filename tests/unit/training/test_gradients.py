"""Parameters that are trained and get no gradient; engine_worker.py has the same under every engine."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dfer.distributed import World, process_group
from dfer.errors import UsageError
from dfer.recognition import ClipBatch, Group, Progress, Recognition
from dfer.training.build import build_engine
from dfer.training.config import AdamWConfig, EngineConfig, GroupConfig, OptimConfig, SgdConfig
from dfer.training.engine import Engine
from tests.unit.training.stubs import TinyRecognizer, clips, share

GROUPS = {"trunk": GroupConfig(lr=0.05), "head": GroupConfig(lr=0.5)}
NOW = Progress(epoch=1, step=3, fraction=0.0)


class Spare(TinyRecognizer):
    """Has a layer that only some clips use."""

    def __init__(self) -> None:
        super().__init__(wide=8)
        self.spare = nn.Linear(5, 5)

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        terms = super().loss(out, batch, progress)
        if int(batch.index.min()) >= 2:
            terms["spare"] = self.spare(out.logits).square().mean()
        return terms | {"spare": terms.get("spare", torch.zeros(()))}

    def param_groups(self) -> dict[str, Group]:
        groups = super().param_groups()
        return {**groups, "head": Group(params=[*groups["head"].params, *self.spare.parameters()])}


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group(World()):
        yield


def engine(optim: OptimConfig) -> Engine:
    return build_engine(
        EngineConfig(name="ddp"), Spare(), optim=optim, world=World(), global_batch=4, micro_batch=2, seed=1
    )


def step(made: Engine, first: int) -> None:
    made.step(share(clips(4, first=first), rank=0, world_size=1, micro_batch=2), progress=NOW)


@pytest.mark.parametrize("optim", [SgdConfig(groups=GROUPS), AdamWConfig(groups=GROUPS)])
def test_they_are_named_before_the_update_also_when_another_micro_batch_used_them(optim: OptimConfig) -> None:
    made = engine(optim)
    before = made.weights()
    with pytest.raises(UsageError) as caught:
        step(made, first=0)
    assert str(caught.value) == (
        "step 3 (epoch 1): expected a gradient for every parameter that is trained, got none for spare.bias, "
        "spare.weight. Nothing was updated. Let the method use them in every loss, or freeze them "
        "(requires_grad=False)."
    )
    assert all(torch.equal(value, before[name]) for name, value in made.weights().items())
    assert made.optimizer_state() == {}


@pytest.mark.parametrize("optim", [SgdConfig(groups=GROUPS), AdamWConfig(groups=GROUPS)])
def test_a_checkpoint_without_their_state_can_be_resumed(optim: OptimConfig) -> None:
    """It goes on as one that holds an untouched parameter's state; others must be whole."""
    first = engine(optim)
    step(first, first=2)
    state = first.optimizer_state()
    kept = {key: value for key, value in state.items() if not key.startswith("spare.")}
    assert len(kept) < len(state)
    second = engine(optim)
    second.load_optimizer_state(kept)
    found = second.optimizer_state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], kept.get(key, torch.zeros_like(value))) for key, value in state.items())
    step(second, first=2)
