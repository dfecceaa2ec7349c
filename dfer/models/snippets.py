"""From snippets to a clip: integration of their features, weights against noise, and prompts from what they show
(DK-CLIP, Li et al., ACM MM 2024; integration and prompts after X-CLIP, Ni et al., ECCV 2022).

Letters: B clips, S snippets of a clip, P patches, M width of a patch token, D embedding, K classes, O heads.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.models.layers import QuickGelu, SelfAttention, attend

HEAD_DIM = 64
"""Width of an attention head in both parts (released code: D // 64 heads)."""

INIT_STD = 0.02
"""Deviation of the truncated normal that linear layers and positions are drawn from (released code)."""

SAME = 1e-5
"""Cosine similarities that differ by less are equal: rounding in fp32 makes differences of about 1e-7, and the scaling
of the noise reduction would blow them up."""


def heads_of(dim: int) -> int:
    """Number of heads for a width; narrow models have one."""
    return max(1, dim // HEAD_DIM)


def draw_linear(module: nn.Module) -> None:
    """Draw the weights of linear layers from a truncated normal; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def feed_forward(dim: int) -> nn.Sequential:
    """A layer of four times the width with quick GELU, and back."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), QuickGelu(), nn.Linear(4 * dim, dim))


class SnippetIntegration(nn.Module):
    """The clip's feature: the mean over snippets of one pre-norm layer's output plus its input."""

    def __init__(self, dim: int, *, snippets: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(snippets, dim))
        nn.init.trunc_normal_(self.positions, std=INIT_STD)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(nn.MultiheadAttention(dim, heads_of(dim)))
        self.mlp = feed_forward(dim)
        draw_linear(self)

    def forward(self, snippets: Tensor) -> Tensor:
        """[B S D] -> [B D]; S is at most the number of positions."""
        x = snippets + self.positions[: snippets.shape[1]]
        x = x + self.attn(self.norm1(x))[0]
        x = x + self.mlp(self.norm2(x))
        return (x + snippets).mean(dim=1)  # type: ignore[no-any-return]


class Weighing(NamedTuple):
    """weights: float [B S], sum 1 in each clip. kept: bool [B S], the snippets that are not erased."""

    weights: Tensor
    kept: Tensor


def weigh(clips: Tensor, snippets: Tensor, *, erase_below: float) -> Weighing:
    """Weigh snippets [B S D] by their similarity to the clip's feature [B D]; both are unit vectors.

    Similarities are scaled to 0..1 within a clip; a softmax gives the weights. Snippets of less weight than
    `erase_below` are erased, but never the heaviest ones. A clip whose snippets are equally similar, such as a still,
    gets weights 1/S; gradients are then 0 there. Gradients flow into `weights`; `kept` has none.
    """
    similar = torch.einsum("bd,bsd->bs", clips, snippets)
    low, high = similar.amin(dim=1, keepdim=True), similar.amax(dim=1, keepdim=True)
    same = high - low < SAME
    span = torch.where(same, torch.ones_like(low), high - low)
    weights = ((similar - low) / span).masked_fill(same, 0.0).softmax(dim=1)
    heaviest = weights == weights.amax(dim=1, keepdim=True)
    return Weighing(weights=weights, kept=(weights >= erase_below) | heaviest)


def mean_of_kept(values: Tensor, kept: Tensor) -> Tensor:
    """Average values [B S P D] over the kept snippets [B S], of which each clip has at least one; returns [B P D]."""
    share = kept.to(values.dtype) / kept.sum(dim=1, keepdim=True)
    return torch.einsum("bs,bspd->bpd", share, values)


class VisualTokens(nn.Module):
    """Layer norm and a linear map without bias: patch tokens into the space of the text."""

    def __init__(self, width: int, dim: int) -> None:
        """The map is drawn from N(0, 1), as in the released code."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """[... P M] -> [... P D]."""
        return self.norm(patches) @ self.proj  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Text attends to visual tokens. Only the output projection has a bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = heads_of(dim)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Text [B K D], visual tokens [B P D] -> [B K D]."""
        parts = (self.q_proj(text), self.k_proj(visual), self.v_proj(visual))
        q, k, v = (rearrange(part, "b n (o d) -> b o n d", o=self.heads) for part in parts)
        return self.proj(rearrange(attend(q, k, v), "b o k d -> b k (o d)"))  # type: ignore[no-any-return]


class PromptLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward, each with a residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross_attn, self.mlp = CrossAttention(dim), feed_forward(dim)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """[B K D] -> [B K D]."""
        text = text + self.cross_attn(self.norm1(text), visual)
        return text + self.mlp(self.norm2(text))  # type: ignore[no-any-return]


class PromptGenerator(nn.Module):
    """Enhance class texts by what a clip shows: text + alpha (text + updates).

    The layers' output contains their input, as in the released code, so that the text itself counts 1 + alpha.
    """

    def __init__(self, dim: int, *, layers: int, alpha: float) -> None:
        """alpha: initial value of the D learned factors."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(PromptLayer(dim) for _ in range(layers))
        self.alpha = nn.Parameter(torch.full((dim,), alpha))
        draw_linear(self)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Class texts [K D] and visual tokens [B P D] -> enhanced texts [B K D], not normalised."""
        text = text.expand(len(visual), -1, -1)
        visual, enhanced = self.norm(visual), text
        for layer in self.layers:
            enhanced = layer(enhanced, visual)
        return text + self.alpha * enhanced


def agreement(local: Tensor, whole: Tensor, *, detached: bool, log_input: bool) -> Tensor:
    """Cross entropy of local logits [B K] to the prediction of global logits [B K] as soft target; returns [B].

    As released, the softmax of the local logits is itself used as logits, and gradients flow into the target too.
    detached: no gradient into the target. log_input: use the local logits as they are.
    """
    target = whole.softmax(dim=-1)
    given = local if log_input else local.softmax(dim=-1)
    return -((target.detach() if detached else target) * F.log_softmax(given, dim=-1)).sum(dim=-1)
