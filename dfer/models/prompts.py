"""Class prompts with learnable contexts (Zhao & Patras, BMVC 2023, section 3.2; after CoOp, Zhou et al. 2022).

Letters: B clips, K prompts (with contexts: one a class), L tokens of the longest prompt, N contexts, W width of a
token, D embedding.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.models.config import ContextPosition
from dfer.models.towers import END_TOKEN, START_TOKEN, tokenize

CONTEXT_STD = 0.02
"""Standard deviation of fresh contexts (released DFER-CLIP code; CoOp, section 3.1)."""
PERIOD = tokenize(["."])[0]


class TextEncoder(Protocol):
    """The text tower as prompts use it; see `Towers`."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up the token embeddings [K L W] of int64 tokens [K L]."""
        ...

    def encode_prompts(self, prompts: Tensor, eos: Tensor) -> Tensor:
        """Compute text features [K D], not normalised, of prompts [K L W] that end at eos [K]."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptLayout:
    """Positions in the prompts, which are as long as the longest one.

    tokens: int64 [K L], 0 at contexts and after the end token. slots: int64 [K N], the positions of the contexts.
    eos: int64 [K], the position of the end token, at which the text feature is taken.
    """

    tokens: Tensor
    slots: Tensor
    eos: Tensor


def layout(
    texts: list[str],
    *,
    num_contexts: int,
    position: ContextPosition,
    context_length: int,
    period_last: bool = False,
    truncate: bool = False,
) -> PromptLayout:
    """Place start token, contexts, text and end token for every class.

    `end`: contexts, text. `front`: text, contexts. `middle`: the first half of the contexts (rounded down), text, rest.
    As in CoOp, the names give the position of the text relative to the contexts.
    Tokens after the end token cannot influence it because of the causal mask, so they are omitted.

    period_last: a period at the end of a text stays behind all contexts, as in CoOp's code; in DFER-CLIP's it belongs
    to the text. truncate: cut texts that are too long, as CLIP's `tokenize(truncate=True)` does.

    Raises:
        ConfigProblem: a prompt is longer than the text tower allows.
    """
    bodies = tokenize(texts)
    if truncate:
        bodies = [body[: context_length - 2 - num_contexts] for body in bodies]
    before = {"end": num_contexts, "middle": num_contexts // 2, "front": 0}[position]
    length = max(len(body) for body in bodies) + num_contexts + 2
    if length > context_length:
        raise ConfigProblem(
            f"num_contexts: {num_contexts} contexts make a prompt of {length} tokens, the text tower takes "
            f"{context_length}. Use at most {num_contexts - (length - context_length)} or a shorter text."
        )
    tokens = torch.zeros(len(bodies), length, dtype=torch.int64)
    slots = torch.zeros(len(bodies), num_contexts, dtype=torch.int64)
    for row, body in enumerate(bodies):
        first = [1 + i for i in range(before)]
        tail = int(period_last and body[-1:] == PERIOD)
        second = [1 + len(body) - tail + i for i in range(before, num_contexts)]
        slots[row] = torch.tensor(first + second, dtype=torch.int64)
        free = [at for at in range(1, 1 + len(body) + num_contexts) if at not in {*first, *second}]
        tokens[row, 0] = START_TOKEN
        tokens[row, free] = torch.tensor(body)
        tokens[row, 1 + len(body) + num_contexts] = END_TOKEN
    eos = torch.tensor([1 + len(body) + num_contexts for body in bodies])
    return PromptLayout(tokens=tokens, slots=slots, eos=eos)


class PromptLearner(nn.Module):
    """Prompts with learned contexts, one set per class or one shared set; other tokens use the token embedding."""

    def __init__(self, layout: PromptLayout, *, width: int, shared: bool, initial: Tensor | None = None) -> None:
        """initial: [N W], initial values of shared contexts; None draws them."""
        super().__init__()
        classes, contexts = layout.slots.shape
        # Derived from the configuration, so not stored with the weights.
        self.tokens: Tensor
        self.slots: Tensor
        self.eos: Tensor
        self.register_buffer("tokens", layout.tokens, persistent=False)
        self.register_buffer("slots", layout.slots, persistent=False)
        self.register_buffer("eos", layout.eos, persistent=False)
        shape = (contexts, width) if shared else (classes, contexts, width)
        drawn = torch.randn(shape) * CONTEXT_STD if initial is None else initial.detach().clone()
        self.contexts = nn.Parameter(drawn) if contexts else None

    def forward(self, towers: TextEncoder, shift: Tensor | None = None) -> Tensor:
        """Compute text features [K D], not normalised. shift: [B W], added to every shared context of a clip (Co-CoOp);
        the features are then [B K D]."""
        prompts = towers.embed(self.tokens)
        contexts = self.contexts
        if shift is not None:
            assert contexts is not None and contexts.dim() == 2, "shared contexts"
            return self._shifted(towers, prompts, contexts + rearrange(shift, "b w -> b 1 w"))
        if contexts is not None:
            if contexts.dim() == 2:
                contexts = repeat(contexts, "n w -> k n w", k=len(prompts))
            index = repeat(self.slots, "k n -> k n w", w=prompts.shape[-1])
            prompts = prompts.scatter(1, index, contexts.to(prompts.dtype))
        return towers.encode_prompts(prompts, self.eos)

    def _shifted(self, towers: TextEncoder, prompts: Tensor, contexts: Tensor) -> Tensor:
        """Compute features [B K D] of prompts [K L W] with contexts [B N W]."""
        clips, classes = len(contexts), len(prompts)
        whole = repeat(prompts, "k l w -> (b k) l w", b=clips)
        index = repeat(self.slots, "k n -> (b k) n w", b=clips, w=prompts.shape[-1])
        whole = whole.scatter(1, index, repeat(contexts.to(prompts.dtype), "b n w -> (b k) n w", k=classes))
        features = towers.encode_prompts(whole, repeat(self.eos, "k -> (b k)", b=clips))
        return rearrange(features, "(b k) d -> b k d", b=clips)
