"""Combine frame features into a clip feature (Zhao & Patras, BMVC 2023, section 3.1 and table 1).

Letters: B clips, T frames, D feature, N heads, H width of a head.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from dfer.models.config_towers import TemporalConfig
from dfer.models.layers import attend


class Attention(nn.Module):
    """Multi-head self-attention; the input projection has no bias, the output projection has one."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B T D] -> [B T D]."""
        q, k, v = rearrange(self.qkv(x), "b t (three n h) -> three b n t h", three=3, n=self.heads)
        mixed = rearrange(attend(q, k, v), "b n t h -> b t (n h)")
        return self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer layer with tanh-GELU and without dropout."""

    def __init__(self, dim: int, *, heads: int, head_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads=heads, head_dim=head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B T D] -> [B T D]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TemporalTransformer(nn.Module):
    """Pre-norm transformer with a learned class token, whose output is the clip's feature, and learned positions."""

    def __init__(self, dim: int, *, num_frames: int, config: TemporalConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(config.init_std * torch.randn(1, dim))
        self.positions = nn.Parameter(config.init_std * torch.randn(num_frames + 1, dim))
        block = {"heads": config.heads, "head_dim": config.head_dim, "mlp_dim": config.mlp_dim}
        self.blocks = nn.Sequential(*(Block(dim, **block) for _ in range(config.depth)))

    def forward(self, features: Tensor) -> Tensor:
        """Compute clip features [B D] from frame features [B T D]; T is at most `num_frames`."""
        token = repeat(self.token, "one d -> b one d", b=len(features))
        x = torch.cat([token.to(features.dtype), features], dim=1)
        x = x + self.positions[: x.shape[1]]
        return self.blocks(x)[:, 0]  # type: ignore[no-any-return]


class TemporalMean(nn.Module):
    """The mean of the frame features: the paper's model without a temporal part (table 2)."""

    def forward(self, features: Tensor) -> Tensor:
        """[B T D] -> [B D]."""
        return features.mean(dim=1)


def temporal_model(dim: int, *, num_frames: int, config: TemporalConfig) -> TemporalTransformer | TemporalMean:
    """Build the temporal model of the configured depth; depth 0 is the mean."""
    return TemporalTransformer(dim, num_frames=num_frames, config=config) if config.depth else TemporalMean()
