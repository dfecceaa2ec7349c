"""Cross-frame image encoders: frames exchange messages between the layers of CLIP's image tower (X-CLIP, Ni et al.,
ECCV 2022, section 3.2; DK-CLIP, Li et al., ACM MM 2024).

Letters: G groups of N frames that exchange messages, C colours, H height, W width of a frame, P patches of a frame,
L = P + 1 tokens of a frame, M model width, D embedding.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.errors import message
from dfer.models.layers import PatchEmbedding, SelfAttention


class MessageBlock(nn.Module):
    """A layer of CLIP's image tower with messages: the class token of each frame makes a message, messages attend to
    each other, and each frame attends to its own message as one more token."""

    def __init__(self, block: Any) -> None:
        """block: a layer of the image tower, whose parameters are taken over; those of the messages are drawn."""
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, block.attn, block.ln_2, block.mlp
        width = self.ln_1.normalized_shape[0]
        self.message_fc = nn.Linear(width, width)
        self.message_ln = nn.LayerNorm(width)
        self.message_attn = SelfAttention(nn.MultiheadAttention(width, self.attn.heads))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[(G N) L M] -> [(G N) L M]. frames: N."""
        sent = rearrange(self.message_fc(x[:, 0]), "(g n) m -> g n m", n=frames)
        sent = sent + self.message_attn(self.message_ln(sent))[0]
        tokens = torch.cat([x, rearrange(sent, "g n m -> (g n) 1 m").to(x.dtype)], dim=1)
        x = x + self.attn(self.ln_1(tokens))[0][:, :-1]
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class CrossFrameEncoder(nn.Module):
    """CLIP's image tower with a MessageBlock in the place of every layer."""

    def __init__(self, visual: nn.Module) -> None:
        """visual: open_clip's image tower, whose parameters are taken over. Raises ConfigProblem as `check_vision`."""
        super().__init__()
        check_vision(visual)
        tower = cast(Any, visual)
        self.conv1, self.ln_pre, self.ln_post = tower.conv1, tower.ln_pre, tower.ln_post
        self.class_embedding: nn.Parameter = tower.class_embedding
        self.positional_embedding: nn.Parameter = tower.positional_embedding
        self.proj: nn.Parameter = tower.proj
        self.blocks = nn.ModuleList(MessageBlock(block) for block in tower.transformer.resblocks)

    def forward(self, pictures: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Compute features [(G N) D] and patch tokens [(G N) P M] of pictures [(G N) C H W]. frames: N."""
        patches = rearrange(self.conv1(pictures), "n m h w -> n (h w) m")
        x = self.ln_pre(_placed(patches, self.class_embedding, self.positional_embedding))
        for block in self.blocks:
            x = block(x, frames)
        return self.ln_post(x[:, 0]) @ self.proj, x[:, 1:]


class SnippetEncoder(nn.Module):
    """A second encoder over the mean patch tokens of snippets, which exchange messages: the image tower without its
    patch embedding and its projection (DK-CLIP, visual semantics encoder)."""

    def __init__(self, visual: nn.Module, *, init: Literal["clip", "random"]) -> None:
        """visual: open_clip's image tower, which is copied. init: `clip` keeps the copy's parameters, `random` draws
        them as PyTorch's layers do by default."""
        super().__init__()
        check_vision(visual)
        tower = copy.deepcopy(cast(Any, visual))
        if init == "random":
            redraw(tower)
        self.ln_pre = tower.ln_pre
        self.class_embedding: nn.Parameter = tower.class_embedding
        self.positional_embedding: nn.Parameter = tower.positional_embedding
        self.blocks = nn.ModuleList(MessageBlock(block) for block in tower.transformer.resblocks)

    def forward(self, patches: Tensor, frames: int) -> Tensor:
        """[(G N) P M] -> [(G N) P M]. frames: N, here the snippets of a clip."""
        x = self.ln_pre(_placed(patches, self.class_embedding, self.positional_embedding))
        for block in self.blocks:
            x = block(x, frames)
        return x[:, 1:]  # type: ignore[no-any-return]


def _placed(patches: Tensor, token: Tensor, positions: Tensor) -> Tensor:
    """Put the class token before patches [N P M] and add positions; returns [N L M]."""
    first = repeat(token + positions[0], "m -> n one m", n=len(patches), one=1)
    return torch.cat([first.to(patches.dtype), patches + positions[1:].to(patches.dtype)], dim=1)


def redraw(visual: nn.Module) -> None:
    """Draw all parameters of an image tower anew: layers as PyTorch does by default, class token and positions with
    deviation 1 / sqrt(M), as CLIP and DK-CLIP's release do."""
    for module in visual.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
            module.reset_parameters()
    for module in visual.modules():
        if isinstance(module, SelfAttention):  # as nn.MultiheadAttention
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    tower = cast(Any, visual)
    std = 1 / math.sqrt(len(tower.class_embedding))
    nn.init.normal_(tower.class_embedding, std=std)
    nn.init.normal_(tower.positional_embedding, std=std)


def check_vision(visual: nn.Module) -> None:
    """Raise ConfigProblem unless this is a vision transformer of CLIP's form: patches, a class token that is the
    answer, and plain layers."""
    problem = _problem(visual)
    if problem:
        expected, do = "a vision transformer of CLIP's form", "Take ViT-B-16-quickgelu, or another one of OpenAI's."
        raise ConfigProblem(message("towers.arch", expected=expected, got=problem, do=do))


def _problem(visual: nn.Module) -> str:
    """Describe what keeps a tower from taking messages; empty if nothing does."""
    tower = cast(Any, visual)
    blocks: Sequence[Any] = getattr(getattr(visual, "transformer", None), "resblocks", ())
    if not isinstance(getattr(visual, "conv1", None), PatchEmbedding) or not len(blocks):
        return f"a {type(visual).__name__} without patches and layers"
    if tower.attn_pool is not None or tower.pool_type != "tok":
        return "a tower that pools its tokens"
    if not isinstance(tower.patch_dropout, nn.Identity):
        return "a tower that drops patches"
    plain = all(
        isinstance(getattr(block, "attn", None), SelfAttention) and isinstance(block.ls_1, nn.Identity)
        for block in blocks
    )
    return "" if plain else "layers of another kind"
