"""The temporal model against torch's own transformer layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.models.config_towers import TemporalConfig
from dfer.models.temporal import TemporalTransformer, temporal_model


def test_depth_0_is_the_mean_of_the_frames() -> None:
    model = temporal_model(6, num_frames=4, config=TemporalConfig(depth=0))
    features = torch.arange(24.0).reshape(1, 4, 6)
    assert model(features).tolist() == [[9.0, 10.0, 11.0, 12.0, 13.0, 14.0]]
    assert not list(model.parameters())


@pytest.mark.parametrize("frames", [16, 5])
def test_layers_are_those_of_torch(frames: int) -> None:
    config = TemporalConfig(depth=2, heads=4, head_dim=8, mlp_dim=40)
    model = TemporalTransformer(32, num_frames=16, config=config)
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            32, 4, 40, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
        )
        layer.self_attn.in_proj_weight.data = block.attention.qkv.weight.data
        layer.self_attn.in_proj_bias.data.zero_()
        pairs = {
            "self_attn.out_proj": "attention.out",
            "norm1": "norm1",
            "norm2": "norm2",
            "linear1": "mlp.0",
            "linear2": "mlp.2",
        }
        for theirs, ours in pairs.items():
            layer.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
        layers.append(layer)
    features = torch.randn(3, frames, 32)
    x = torch.cat([model.token.expand(3, 1, 32), features], dim=1) + model.positions[: frames + 1]
    for layer in layers:
        x = layer(x)
    torch.testing.assert_close(model(features), x[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", [{"depth": -1}, {"heads": 0}, {"head_dim": 0}, {"mlp_dim": 0}])
def test_sizes_must_make_sense(change: dict[str, int]) -> None:
    with pytest.raises(ConfigProblem, match="temporal: depth may not be negative"):
        TemporalConfig(**change)
