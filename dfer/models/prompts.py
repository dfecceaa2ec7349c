"""Class prompts with learnable contexts (Zhao & Patras, BMVC 2023, section 3.2; after CoOp, Zhou et al. 2022).

Letters: K classes, L tokens of the longest prompt, N contexts, W width of a token.
"""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.models.config import ContextPosition
from dfer.models.towers import END_TOKEN, START_TOKEN, Towers, tokenize

CONTEXT_STD = 0.02
"""Standard deviation of fresh contexts (released DFER-CLIP code; CoOp, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class PromptLayout:
    """Positions in the prompts, which are as long as the longest one.

    tokens: int64 [K L], 0 at contexts and after the end token. slots: int64 [K N], the positions of the contexts.
    eos: int64 [K], the position of the end token, at which the text feature is taken.
    """

    tokens: Tensor
    slots: Tensor
    eos: Tensor


def layout(texts: list[str], *, num_contexts: int, position: ContextPosition, context_length: int) -> PromptLayout:
    """Place start token, contexts, text and end token for every class.

    `end`: contexts, text. `front`: text, contexts. `middle`: the first half of the contexts (rounded down), text, rest.
    As in CoOp, the names give the position of the text relative to the contexts.
    Tokens after the end token cannot influence it because of the causal mask, so they are omitted.

    Raises:
        ConfigProblem: a prompt is longer than the text tower allows.
    """
    bodies = tokenize(texts)
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
        second = [1 + len(body) + i for i in range(before, num_contexts)]
        slots[row] = torch.tensor(first + second, dtype=torch.int64)
        tokens[row, 0] = START_TOKEN
        tokens[row, 1 + before : 1 + before + len(body)] = torch.tensor(body)
        tokens[row, 1 + len(body) + num_contexts] = END_TOKEN
    eos = torch.tensor([1 + len(body) + num_contexts for body in bodies])
    return PromptLayout(tokens=tokens, slots=slots, eos=eos)


class PromptLearner(nn.Module):
    """Prompts with learned contexts, one set per class or one shared set; other tokens use the token embedding."""

    def __init__(self, layout: PromptLayout, *, width: int, shared: bool) -> None:
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
        self.contexts = nn.Parameter(torch.randn(shape) * CONTEXT_STD) if contexts else None

    def forward(self, towers: Towers) -> Tensor:
        """Compute text features [K D], not normalised."""
        prompts = towers.embed(self.tokens)
        if self.contexts is not None:
            contexts = self.contexts
            if contexts.dim() == 2:
                contexts = repeat(contexts, "n w -> k n w", k=len(prompts))
            index = repeat(self.slots, "k n -> k n w", w=prompts.shape[-1])
            prompts = prompts.scatter(1, index, contexts.to(prompts.dtype))
        return towers.encode_prompts(prompts, self.eos)
